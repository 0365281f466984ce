"""The names of dialects that an adapter can be converted to, for code that must not load the dialects themselves."""

from __future__ import annotations

TARGET_DIALECTS = ("peft", "kohya", "diffusers", "diffusers-old", "mlx", "gguf", "loralib")
