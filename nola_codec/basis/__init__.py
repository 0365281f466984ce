"""Bases: `synthesize` turns k integer coefficients into n integers, and `project` is its adjoint.

The rest of the program does nothing else with a basis and never asks for its name: the properties of `Basis` say how
bases differ.

    hadamard.py                 id 1, the default: a pseudo-randomly signed Walsh-Hadamard transform
    dense.py                    ids 2 and 3: `rademacher` and `uniform`
    key.py                      BasisKey: names the pseudo-random words that make a basis

Example:
        >>> import numpy as np
        >>> from nola_codec.arrays import NUMPY
        >>> key = BasisKey(generator=1, seed=7, stream=0)
        >>> q = np.array([[[3, 0, -1, 2]]])                                  # (groups, batch, num_basis)
        >>> y = basis_by_id(1).synthesize(q, 4, (key,), peak=3, xp=NUMPY)    # (groups, batch, n)
        >>> back = basis_by_id(1).project(y, 4, (key,), NUMPY) / basis_by_id(1).norm2(4)
        >>> back.astype(int).tolist()
        [[[3, 0, -1, 2]]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nola_codec.array_types import Int64Array
from nola_codec.arrays import Array, Arrays
from nola_codec.basis.dense import Rademacher, Uniform
from nola_codec.basis.hadamard import Hadamard
from nola_codec.basis.key import BasisKey
from nola_codec.errors import FormatError, mismatch

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BASES", "NAMES", "Basis", "BasisKey", "Hadamard", "Pieces", "Rademacher", "Transform", "Uniform",
           "basis_by_id"]  # fmt: skip


class Basis(Protocol):
    """The operations of a basis. `Hadamard` describes shapes and arguments.

    Attributes:
        id: The number of the basis in a file.
        name: The name of the basis in options.
        is_fast: True if a synthesis costs n log n whatever the number of coefficients, False if each one costs n.
        is_orthogonal: True if rows are orthogonal: a projection divided by `norm2` is then the least-squares fit.
    """

    id: int
    name: str
    is_fast: bool
    is_orthogonal: bool

    def norm2(self, n: int) -> float: ...
    def max_num_basis(self, n: int) -> int | None: ...
    def bound(self, n: int, num_basis: int, peak: int) -> int: ...
    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array: ...
    def synthesize_compiled(
        self,
        coefficients: Sequence[Array],
        n: int,
        keys: tuple[BasisKey, ...],
        peak: int,
        scales: tuple[Int64Array, Int64Array] | None,
        xp: Arrays,
    ) -> list[npt.NDArray[Any]] | None: ...
    def synthesize_floats(self, values: Array, n: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array: ...
    def project(self, vectors: Array, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array: ...
    def pieces(self, n: int, num_basis: int) -> Pieces | None: ...
    def transform(
        self, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str = "int8"
    ) -> Transform: ...


class Transform(Protocol):
    """A basis that keeps the words of its generator, for many passes through it."""

    def synthesize(self, values: Array) -> Array: ...
    def project(self, vectors: Array) -> Array: ...


class Pieces(Protocol):
    """The synthesis of one long vector in pieces.

    Attributes:
        rows: The number of rows of a piece. The result is seen as (rows, n / rows), and a piece is some of its columns.
    """

    @property
    def rows(self) -> int: ...
    def synthesize(
        self, coefficients: Array, key: BasisKey, peak: int, xp: Arrays, piece: int
    ) -> Iterator[tuple[int, int, Array]]: ...


BASES: dict[int, Basis] = {b.id: b for b in (Hadamard(), Rademacher(), Uniform())}
NAMES = {b.name: b.id for b in BASES.values()}


def basis_by_id(number: int) -> Basis:
    """Return the basis with this id.

    Raises:
        FormatError: ``basis``: The id is unknown.
    """
    if number not in BASES:
        raise FormatError(mismatch("basis id", sorted(BASES), number), code="basis")
    return BASES[number]
