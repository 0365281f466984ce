"""Samples are drawn once, and kept in a file from which a killed training goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nola_codec.stores.files import atomic_file


def samples_file(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """Return the file of the samples of a training with this checkpoint; None without one."""
    return None if checkpoint is None else Path(f"{os.fspath(checkpoint)}-samples")


def keep_samples(path: Path | None, key: str, draw: Callable[[], Any]) -> Any:
    """Return the samples of a file if they are those of `key`; else draw them, and write the file.

    Args:
        path: The file, or None to keep nothing.
        key: A text that holds all that the samples depend on.
        draw: A function that returns the samples as JSON holds them.
    """
    if path is not None and path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # another program's file, or an old one: it is drawn again
            found = None
        if isinstance(found, dict) and found.get("key") == key:
            return found["samples"]
    samples = draw()
    if path is not None:
        with atomic_file(path) as stream:
            stream.write(json.dumps({"key": key, "samples": samples}).encode())
    return samples
