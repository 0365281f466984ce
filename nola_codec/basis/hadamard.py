"""The `hadamard` basis: a Walsh-Hadamard transform of blocks with pseudo-random signs (id 1, the default).

Rows are orthogonal and have the same norm, so a projection is a formula, and a synthesis costs n log n whatever the
number of coefficients. Every length works. If the largest power of two that divides n is under 64, there are two
overlapping passes of square blocks. Each pass multiplies the elements that it leaves out by the square root of its
block. This gives an integer matrix with orthogonal rows and no padding (specification, "Bases").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nola_codec.array_types import Int64Array, Uint32Array
from nola_codec.arrays import NUMPY, Array, Arrays, library_for
from nola_codec.basis.key import BasisKey
from nola_codec.kernels.transforms import INTEGERS, LARGEST_SUM, synthesize_hadamard
from nola_codec.lazy import numpy as np
from nola_codec.prng import SIGNS, SIGNS_SECOND, packed_signs, signs, subset

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_BLOCK = 4096
_MEMO_LENGTH = 1 << 18
_SIGN_PIECE = 1 << 22
_SINGLE_GEMM = 128  # for larger blocks the Kronecker form H_a X H_b is faster than one product


def block_and_passes(n: int) -> tuple[int, int]:
    """Return (block, passes) for length `n`: one pass of a power of two, or two passes of a power of four.

    For n = 3 the block is 1, so the pass only applies signs.

    >>> block_and_passes(576), block_and_passes(4096), block_and_passes(97)
    ((64, 1), (4096, 1), (64, 2))
    """
    power = n & -n
    if power >= 64 or power == n:
        return min(power, MAX_BLOCK), 1
    if n < 4:
        return 1, 1
    return (64 if n >= 64 else 16 if n >= 16 else 4), 2


class Hadamard:
    """Basis 1, which the module's docstring describes."""

    id = 1
    name = "hadamard"
    is_fast = True
    is_orthogonal = True

    def norm2(self, n: int) -> float:
        """Return the squared norm of each row, which is exact."""
        block, passes = block_and_passes(n)
        return float(block**passes)

    def max_num_basis(self, n: int) -> int | None:
        """Return n: there are no more orthogonal rows."""
        return n

    def bound(self, n: int, num_basis: int, peak: int) -> int:
        """Return the largest magnitude that a partial sum can have if no coefficient exceeds `peak` in magnitude."""
        block, passes = block_and_passes(n)
        return int(peak * block**passes)

    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array:
        """Return the integers y = q H D for each vector q.

        Args:
            coefficients: (groups, batch, num_basis) integers of any dtype, num_basis <= n.
            n: The length of the results.
            keys: The basis key of each group.
            peak: A bound of the coefficients' magnitude.
            xp: The library of the arrays.

        Returns:
            (groups, batch, n), exact integers in a float dtype.
        """
        num_basis = int(coefficients.shape[-1])
        dtype = xp.integer_work_dtype(self.bound(n, num_basis, peak))
        made = self.synthesize_compiled(coefficients, n, keys, peak, None, xp)
        if made is not None:
            return np.stack(made).astype(dtype)
        return self.synthesize_floats(xp.cast(coefficients, dtype), n, keys, xp)

    def synthesize_compiled(
        self,
        coefficients: Sequence[Array],
        n: int,
        keys: tuple[BasisKey, ...],
        peak: int,
        scales: tuple[Int64Array, Int64Array] | None,
        xp: Arrays,
    ) -> list[npt.NDArray[Any]] | None:
        """Do the same as `synthesize` with the compiled kernel, and scale in the same pass.

        Args:
            coefficients: (batch, num_basis) of each group; batches and dtypes may differ.
            n: As in `synthesize`.
            keys: As in `synthesize`.
            peak: As in `synthesize`.
            scales: The mantissa and the shift of each vector, int64 (sum of batches,) each; None does not
                scale.
            xp: As in `synthesize`.

        Returns:
            (batch, n) of each group, int16 with scales, else int32; None if there is no kernel for these arguments.
        """
        lib = library_for(xp)
        if lib is None or not all(own.dtype.name in INTEGERS for own in coefficients):
            return None
        num_basis = coefficients[0].shape[1]
        if self.bound(n, num_basis, peak) > LARGEST_SUM:
            return None
        plan = block_and_passes(n)
        parts: list[Any] = [None] * len(keys)
        if scales is not None:
            ends = np.cumsum([len(own) for own in coefficients])
            parts = list(zip(*(np.split(part, ends[:-1]) for part in scales), strict=True))
        purposes = (SIGNS, SIGNS_SECOND)[: plan[1]]
        return [
            synthesize_hadamard(
                lib,
                own,
                n,
                plan,
                tuple(_packed_signs(key, purpose, n) for purpose in purposes),
                None if num_basis == n else _subset(key, n, num_basis, NUMPY),
                part,
            )
            for own, key, part in zip(coefficients, keys, parts, strict=True)
        ]

    def synthesize_floats(self, values: Array, n: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """Do the same as `synthesize` in the dtype of the input: exact for small integers, rounded for other floats."""
        return self.transform(n, int(values.shape[-1]), keys, xp, _dtype(values)).synthesize(values)

    def project(self, vectors: Array, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """Return the adjoint: the inner products of each vector with the rows of the basis.

        Args:
            vectors: (groups, batch, n) floats.
            num_basis: The number of rows of the basis.
            keys: The basis key of each group.
            xp: The library of the arrays.

        Returns:
            (groups, batch, num_basis) in the vectors' dtype. Divided by `norm2` they are the least-squares
            coefficients.
        """
        n = int(vectors.shape[-1])
        return self.transform(n, num_basis, keys, xp, _dtype(vectors)).project(vectors)

    def pieces(self, n: int, num_basis: int) -> HadamardPieces | None:
        """Return an object that synthesizes a long vector in pieces, or None if this is not possible.

        It is possible if there are as many coefficients as elements, and the length takes one pass.
        """
        return HadamardPieces(n) if num_basis == n and block_and_passes(n)[1] == 1 else None

    def transform(
        self, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str = "int8"
    ) -> HadamardTransform:
        """Return a transform that keeps signs and positions; it takes one byte an element if `dtype` is int8."""
        return HadamardTransform(n, num_basis, keys, xp, dtype)


class HadamardTransform:
    """A Hadamard basis that keeps its signs and the positions of its coefficients.

    A training goes back and forth through a basis thousands of times. The signs take one byte an element, far less
    than the basis itself.
    """

    def __init__(self, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str = "int8") -> None:
        """Draw signs and positions for groups of bases.

        Args:
            n: The length of the vectors.
            num_basis: The number of coefficients.
            keys: The basis key of each group.
            xp: The array library to work with.
            dtype: The dtype in which the signs are kept.
        """
        self.n, self.num_basis, self.xp = n, num_basis, xp
        self.block, self.passes = block_and_passes(n)
        self._first = _signs(keys, SIGNS, n, xp, dtype)
        self._second = _signs(keys, SIGNS_SECOND, n, xp, dtype) if self.passes == 2 else None
        self._places = None if num_basis == n else xp.stack([_subset(key, n, num_basis, xp) for key in keys], 0)

    def synthesize(self, values: Array) -> Array:
        """Turn floats (groups, batch, num_basis) into (groups, batch, n) of the same dtype."""
        xp, n, dtype = self.xp, self.n, _dtype(values)
        groups, batch, num_basis = values.shape
        if self._places is not None:
            full = [xp.zeros((batch, n), dtype) for _ in range(groups)]
            for own, places, given in zip(full, self._places, values, strict=True):
                own[:, places] = given
            values = xp.stack(full, 0) if groups > 1 else full[0][None]  # (groups, batch, n), zeros in between
        block = self.block
        if self._second is None:
            return _synthesize_blocks(values, block, xp) * xp.cast(self._first, dtype)
        root, whole = _root(block), n - n % block
        head = _synthesize_blocks(values[..., :whole], block, xp)  # all but the last n mod block elements
        values = xp.concat((head, values[..., whole:] * root), -1) * xp.cast(self._first, dtype)
        tail = _synthesize_blocks(values[..., n - whole :], block, xp)  # all but the first n mod block elements
        return xp.concat((values[..., : n - whole] * root, tail), -1) * xp.cast(self._second, dtype)

    def project(self, vectors: Array) -> Array:
        """Apply the adjoint of `synthesize`: floats (groups, batch, n) become (groups, batch, num_basis)."""
        xp, n, dtype, block = self.xp, self.n, _dtype(vectors), self.block
        if self._second is not None:
            root, whole = _root(block), n - n % block
            vectors = vectors * xp.cast(self._second, dtype)
            tail = _project_blocks(vectors[..., n - whole :], block, xp)
            vectors = xp.concat((vectors[..., : n - whole] * root, tail), -1) * xp.cast(self._first, dtype)
            head = _project_blocks(vectors[..., :whole], block, xp)
            values = xp.concat((head, vectors[..., whole:] * root), -1)
        else:
            values = _project_blocks(vectors * xp.cast(self._first, dtype), block, xp)
        if self._places is None:
            return values
        return xp.stack([values[group][:, places] for group, places in enumerate(self._places)], 0)


def _dtype(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class HadamardPieces:
    """The synthesis of one vector of n coefficients in pieces, which takes 8 bytes an element instead of 40.

    Attributes:
        n: The length of the vector, which must take one pass (`block_and_passes`).
    """

    n: int

    @property
    def rows(self) -> int:
        """The block; a piece is some columns of the result, seen as (block, n / block)."""
        return block_and_passes(self.n)[0]

    def synthesize(
        self, coefficients: Array, key: BasisKey, peak: int, xp: Arrays, piece: int
    ) -> Iterator[tuple[int, int, Array]]:
        """Do the same as `Hadamard.synthesize` for one vector.

        Args:
            coefficients: (n,) integers of any dtype.
            key: The basis key.
            peak: A bound of the coefficients' magnitude.
            xp: The library of the arrays.
            piece: The approximate number of elements of a piece.

        Yields:
            (start, stop, values): values are columns start to stop of the result, int64 (block, stop - start).
        """
        n, block = self.n, self.rows
        blocks = n // block
        dtype = xp.integer_work_dtype(peak * block)
        flips = xp.zeros((n,), "int8")
        for start in range(0, n, _SIGN_PIECE):
            stop = min(start + _SIGN_PIECE, n)
            drawn = signs(key.generator, seed=key.seed, stream=key.stream, purpose=SIGNS, start=start,
                          count=stop - start, xp=xp)  # fmt: skip
            flips[start:stop] = xp.cast(drawn, "int8")
        flips = flips.reshape(block, blocks)
        step = max(1, piece // block)
        for start in range(0, blocks, step):
            stop = min(start + step, blocks)
            rows = xp.cast(coefficients[start * block : stop * block], dtype).reshape(stop - start, block)
            made = xp.cast(_multiply_hadamard(rows, block, xp).swapaxes(0, 1), "int64")  # (block, stop - start)
            yield start, stop, made * flips[:, start:stop]


def _root(block: int) -> int:
    return {4: 2, 16: 4, 64: 8}[block]


def _subset(key: BasisKey, n: int, num_basis: int, xp: Arrays) -> Array:
    if xp.has_cache and n <= _MEMO_LENGTH:
        return _subset_memo(key, n, num_basis)
    return subset(key.generator, seed=key.seed, stream=key.stream, population=n, size=num_basis, xp=xp)


def _packed_signs(key: BasisKey, purpose: int, n: int) -> Uint32Array:
    return packed_signs(key.generator, seed=key.seed, stream=key.stream, purpose=purpose, count=n)


def _signs(keys: tuple[BasisKey, ...], purpose: int, n: int, xp: Arrays, dtype: str) -> Array:
    """Return signs (groups, 1, n)."""
    if xp.has_cache and n <= _MEMO_LENGTH:
        rows = [_signs_memo(key, purpose, n, dtype) for key in keys]
    else:
        rows = [_sign_row(key, purpose, n, xp, dtype) for key in keys]
    return xp.stack(rows, 0).reshape(len(keys), 1, n)


def _sign_row(key: BasisKey, purpose: int, n: int, xp: Arrays, dtype: str) -> Array:
    drawn = signs(key.generator, seed=key.seed, stream=key.stream, purpose=purpose, start=0, count=n, xp=xp)
    return xp.cast(drawn, dtype)


# A fit goes through one basis hundreds of times, so its signs are kept: 32 rows of at most 2^18 elements.
@lru_cache(maxsize=32)
def _signs_memo(key: BasisKey, purpose: int, n: int, dtype: str) -> Array:
    return _sign_row(key, purpose, n, NUMPY, dtype)


@lru_cache(maxsize=32)
def _subset_memo(key: BasisKey, n: int, num_basis: int) -> Array:
    return subset(key.generator, seed=key.seed, stream=key.stream, population=n, size=num_basis, xp=NUMPY)


def _synthesize_blocks(values: Array, block: int, xp: Arrays) -> Array:
    """Transform every block, and interleave: element p of block b goes to place p * blocks + b."""
    shape = tuple(values.shape)
    mixed = _multiply_hadamard(values.reshape(-1, block), block, xp)
    return mixed.reshape(-1, shape[-1] // block, block).swapaxes(-1, -2).reshape(shape)


def _project_blocks(values: Array, block: int, xp: Arrays) -> Array:
    """Apply the adjoint of `_synthesize_blocks`."""
    shape = tuple(values.shape)
    rows = values.reshape(-1, block, shape[-1] // block).swapaxes(-1, -2).reshape(-1, block)
    return _multiply_hadamard(rows, block, xp).reshape(shape)


def _multiply_hadamard(rows: Array, block: int, xp: Arrays) -> Array:
    """Multiply rows (rows, block) by the Sylvester matrix H_block, in one product or as H_a X H_b."""
    dtype = _dtype(rows)
    if block == 1:
        return rows
    if block <= _SINGLE_GEMM:
        return rows @ _sylvester(block, dtype, xp)
    a = 1 << ((block.bit_length() - 1) // 2)
    b = block // a
    right = (rows.reshape(-1, b) @ _sylvester(b, dtype, xp)).reshape(-1, a, b)  # (rows, a, b) X H_b
    return (_sylvester(a, dtype, xp) @ right).reshape(-1, block)  # H_a (a, a) times each (a, b)


def _sylvester(size: int, dtype: str, xp: Arrays) -> Array:
    return xp.asarray(_sylvester_array(size, dtype))


@lru_cache(maxsize=64)
def _sylvester_array(size: int, dtype: str) -> npt.NDArray[Any]:
    matrix = np.ones((1, 1), dtype)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
