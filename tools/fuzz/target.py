"""What a target is, and how two things are one input."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_SEED = 10_000
IN_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
"""The folder for inputs that must be files."""


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: The name of the row.
        seeds: Returns the inputs to begin with; called once.
        change: Changes an input at random.
        read: Reads an input in all the ways that it can be read.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], object]


def pack_two(first: bytes, second: bytes) -> bytes:
    """Return two strings of bytes as one."""
    return struct.pack("<I", len(first)) + first + second


def unpack_two(packed: bytes) -> tuple[bytes, bytes]:
    """Undo `pack_two`, for any bytes."""
    (length,) = struct.unpack_from("<I", packed.ljust(4, b"\0"))
    return packed[4 : 4 + length], packed[4 + length :]


def pack_adapter(config: Any, data: bytes) -> bytes:
    """Return a configuration (None for none) and the bytes of a file of tensors as one string of bytes."""
    return pack_two(b"" if config is None else json.dumps(config).encode(), data)


def unpack_adapter(packed: bytes) -> tuple[Any, bytes]:
    """Undo `pack_adapter`. Raises ValueError for bytes that it did not make."""
    text, data = unpack_two(packed)
    return (json.loads(text) if text else None), data
