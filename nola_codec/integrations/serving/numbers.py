"""The integers that servers know adapters by: 31 bits, from the content, the same in every process.

Two contents may hash to one number. So a number belongs to the content that asked for it first, which an entry of the
cache records, and another content takes its next number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from nola_codec.disk_cache import DiskCache

KIND = "adapter-number"
_OWNER = "content"


def candidate(content: str, attempt: int) -> int:
    """Return a number from 1 to 2^31 - 1: the one that a content asks for at an attempt, counted from 0."""
    digest = hashlib.sha256(f"{content}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % ((1 << 31) - 1) + 1


def number_of(cache: DiskCache, content: str, keep: Callable[[str, str], None]) -> int:
    """Return the number of a content.

    Args:
        cache: The cache that records who has which number.
        content: A text that names the content.
        keep: Called as ``keep(kind, key)`` before an entry is made, to hold it.

    Raises:
        NolaError: ``disk-full``, ``cache-unwritable``.
    """

    def build(directory: Path) -> None:
        (directory / _OWNER).write_text(content, encoding="ascii")

    attempt = 0
    while True:
        number = candidate(content, attempt)
        keep(KIND, str(number))
        owner = (cache.make(KIND, str(number), build) / _OWNER).read_text(encoding="ascii")
        if owner == content:
            return number
        attempt += 1
