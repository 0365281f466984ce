"""Bases: `synthesize` turns integer coefficients into integers, `project` is its adjoint. Two primitives serve all.

basis_by_id(1).synthesize(q, n=576, keys=(BasisKey(PHILOX, seed=7, stream=0),), peak=15, xp=NUMPY)
"""

from __future__ import annotations

from typing import Protocol

from nola_codec.arrays import Array, Arrays
from nola_codec.basis.dense import Rademacher, Uniform
from nola_codec.basis.hadamard import Hadamard
from nola_codec.basis.key import BasisKey
from nola_codec.errors import FormatError, expected

__all__ = ["BASES", "NAMES", "Basis", "BasisKey", "Hadamard", "Rademacher", "Uniform", "basis_by_id"]


class Basis(Protocol):
    """The contract; shapes are told in `Hadamard`."""

    id: int
    name: str

    def norm2(self, n: int) -> float: ...
    def max_num_basis(self, n: int) -> int | None: ...
    def bound(self, n: int, num_basis: int, peak: int) -> int: ...
    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array: ...
    def project(self, vectors: Array, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array: ...


BASES: dict[int, Basis] = {b.id: b for b in (Hadamard(), Rademacher(), Uniform())}
NAMES = {b.name: b.id for b in BASES.values()}


def basis_by_id(number: int) -> Basis:
    """The basis with this id. Raises FormatError for an unknown one."""
    if number not in BASES:
        raise FormatError(expected("basis id", sorted(BASES), number), code="basis")
    return BASES[number]
