"""The key of a basis: it names the pseudo-random words that make it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BasisKey:
    """Generator id, 64-bit seed and 32-bit stream. Equal keys make equal bases."""

    generator: int
    seed: int
    stream: int
