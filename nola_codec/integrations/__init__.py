"""What needs torch and other people's libraries; these are imported only when they are used."""

from __future__ import annotations

from nola_codec.errors import require_torch

require_torch("nola_codec.integrations")
