"""The key of a basis, which names the pseudo-random words that the basis is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BasisKey:
    """The key of a basis. Equal keys make equal bases.

    Attributes:
        generator: The id of the generator.
        seed: The user's seed, 64 bits.
        stream: The generator stream, 32 bits.
    """

    generator: int
    seed: int
    stream: int
