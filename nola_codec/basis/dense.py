"""Dense bases, generated in chunks of rows and thrown away: `rademacher` (id 2) and `uniform` (id 3).

These are the paper's bases in exact form (NOLA, eq. 1): row j of the basis is a frozen pseudo-random matrix, flattened.
Random access by counter makes any chunk of rows cheap, so memory is bounded whatever num_basis is.
"""

from __future__ import annotations

from collections.abc import Iterator

from nola_codec.arrays import Array, Arrays
from nola_codec.basis.key import BasisKey
from nola_codec.prng import RADEMACHER, UNIFORM, signs, words

CHUNK_ENTRIES = 1 << 22
"""Basis entries made at once, unless the caller says otherwise: 32 MiB as int64 while they are generated."""


class DenseBasis:
    """The common part of dense bases; a subclass makes the rows.

    Attributes:
        entry_bound: Largest magnitude of an entry.
        chunk_entries: Basis entries made at once.
    """

    is_fast = False
    is_orthogonal = False
    entry_bound: int

    def __init__(self, chunk_entries: int = CHUNK_ENTRIES) -> None:
        self.chunk_entries = chunk_entries

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        raise NotImplementedError

    def max_num_basis(self, n: int) -> int | None:
        """None: any number of rows can be drawn."""
        return None

    def bound(self, n: int, num_basis: int, peak: int) -> int:
        """Largest magnitude that any partial sum can take, for coefficients of magnitude at most `peak`."""
        return peak * num_basis * self.entry_bound

    def _chunks(self, n: int, num_basis: int) -> list[tuple[int, int]]:
        step = max(1, self.chunk_entries // max(n, 1))
        return [(start, min(start + step, num_basis)) for start in range(0, num_basis, step)]

    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array:
        """Compute the integers y = q G for each vector q; arguments and result as in `Hadamard.synthesize`."""
        dtype = xp.integer_work_dtype(self.bound(n, int(coefficients.shape[-1]), peak))
        return self.synthesize_floats(xp.cast(coefficients, dtype), n, keys, xp)

    def synthesize_floats(self, values: Array, n: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """`synthesize` in the dtype of its input: exact for small integers, ordinary floats otherwise."""
        groups, batch, num_basis = values.shape
        dtype = str(values.dtype).removeprefix("torch.")
        results = []
        for group, key in enumerate(keys):
            total = xp.zeros((batch, n), dtype)
            for start, rows in self.rows(key, n, num_basis, xp, dtype):
                total = total + values[group][:, start : start + len(rows)] @ rows  # (batch, rows) @ (rows, n)
            results.append(total)
        return xp.stack(results, 0)

    def rows(self, key: BasisKey, n: int, num_basis: int, xp: Arrays, dtype: str) -> Iterator[tuple[int, Array]]:
        """The basis' rows, `chunk_entries` entries at a time: (number of the first, (rows, n) of `dtype`)."""
        for start, stop in self._chunks(n, num_basis):
            yield start, self._rows(key, n, start, stop, xp, dtype)

    def project(self, vectors: Array, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """The adjoint, G x for each vector x; arguments and result as in `Hadamard.project`."""
        groups, batch, n = vectors.shape
        dtype = str(vectors.dtype).removeprefix("torch.")
        results = []
        for group, key in enumerate(keys):
            parts = [vectors[group] @ rows.swapaxes(0, 1) for _, rows in self.rows(key, n, num_basis, xp, dtype)]
            results.append(xp.concat(parts, -1))
        return xp.stack(results, 0)

    def pieces(self, n: int, num_basis: int) -> None:
        """None: a dense basis makes a vector whole."""
        return

    def transform(
        self, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str = "int8"
    ) -> DenseTransform:
        """A `DenseTransform`: all rows, num_basis * n entries a key."""
        return DenseTransform(self, n, num_basis, keys, xp, dtype)


class DenseTransform:
    """A dense basis with all its rows kept in memory, for many passes through it."""

    def __init__(
        self, basis: DenseBasis, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str
    ) -> None:
        """Make the rows of groups of bases; arguments as in `HadamardTransform`, `dtype` that of the rows."""
        self._xp = xp
        self._rows = [xp.concat([rows for _, rows in basis.rows(k, n, num_basis, xp, dtype)], 0) for k in keys]

    def synthesize(self, values: Array) -> Array:
        """(groups, batch, num_basis) floats -> (groups, batch, n), in their dtype."""
        dtype = str(values.dtype).removeprefix("torch.")
        made = [own @ self._xp.cast(rows, dtype) for own, rows in zip(values, self._rows, strict=True)]
        return self._xp.stack(made, 0)

    def project(self, vectors: Array) -> Array:
        """The adjoint of `synthesize`: (groups, batch, n) floats -> (groups, batch, num_basis)."""
        dtype = str(vectors.dtype).removeprefix("torch.")
        made = [own @ self._xp.cast(rows, dtype).swapaxes(0, 1) for own, rows in zip(vectors, self._rows, strict=True)]
        return self._xp.stack(made, 0)


class Rademacher(DenseBasis):
    """Independent signs, one bit an entry. Row j starts at bit j * 32 * ceil(n / 32) of the stream."""

    id = 2
    name = "rademacher"
    entry_bound = 1

    def norm2(self, n: int) -> float:
        """Squared norm of each row, exactly."""
        return float(n)

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        pitch = 32 * ((n + 31) // 32)
        flat = signs(
            key.generator,
            seed=key.seed,
            stream=key.stream,
            purpose=RADEMACHER,
            start=start * pitch,
            count=(stop - start) * pitch,
            xp=xp,
        )
        return xp.cast(flat, dtype).reshape(stop - start, pitch)[:, :n]


class Uniform(DenseBasis):
    """Uniform integers in [-32768, 32767], two from a word, low half first. Row j starts at word j * ceil(n / 2)."""

    id = 3
    name = "uniform"
    entry_bound = 1 << 15

    def norm2(self, n: int) -> float:
        """Expected squared norm of a row: n * (2^32 + 2) / 12."""
        return n * ((1 << 32) + 2) / 12

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        pitch = (n + 1) // 2
        packed = words(
            key.generator,
            seed=key.seed,
            stream=key.stream,
            purpose=UNIFORM,
            start=start * pitch,
            count=(stop - start) * pitch,
            xp=xp,
        )
        halves = xp.stack((packed & 0xFFFF, packed >> 16), -1) - 32768
        return xp.cast(halves.reshape(stop - start, 2 * pitch)[:, :n], dtype)
