"""Thin connections to other libraries, which are imported only when they are used. All of them need torch."""

from __future__ import annotations

from nola_codec.errors import require_torch

require_torch("nola_codec.integrations")
