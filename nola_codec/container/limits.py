"""Limits that a reader checks before it allocates memory for what a file declares (specification, "Limits")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds, inclusive. A caller with larger models may pass larger ones.

    The specification explains each of them.
    """

    header_stored: int = 16 << 20
    header_plain: int = 64 << 20
    records: int = 1 << 17
    kinds: int = 1 << 16
    quantizers: int = 256
    rungs: int = 64
    rows: int = 1 << 14
    sections: int = 1 << 18
    units: int = 1 << 24
    rank: int = 1 << 16
    dimensions: int = 8
    dimension: int = 1 << 31
    factor_elements: int = 1 << 31
    total_elements: int = 1 << 34
    name: int = 1024
    coefficients: int = 1 << 34
    words: int = 1 << 34
    chain: int = 32


DEFAULT_LIMITS = Limits()
