"""Connect to other libraries, each imported only when it is used. Every module of this package needs torch."""

from __future__ import annotations

from nola_codec.errors import require_torch

require_torch("nola_codec.integrations")
