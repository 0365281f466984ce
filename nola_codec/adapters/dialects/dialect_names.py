"""Names of dialects, for what must not load the dialects themselves."""

from __future__ import annotations

FORMATS = ("peft", "kohya", "diffusers", "diffusers-old", "mlx", "gguf", "loralib")
"""Dialects that an adapter can be converted to."""
