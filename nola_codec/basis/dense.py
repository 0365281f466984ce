"""Dense bases, `rademacher` (id 2) and `uniform` (id 3): their rows are made in chunks at each use, and not kept.

They are the bases of the NOLA paper (eq. 1) in exact form: row j is a frozen pseudo-random matrix, flattened. The
generator can start at any row, so memory is bounded whatever num_basis is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.array_types import Int64Array
from nola_codec.arrays import Array, Arrays, TorchArrays, library_for
from nola_codec.basis.key import BasisKey
from nola_codec.kernels.generators import synthesize_dense
from nola_codec.kernels.transforms import INTEGERS
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.lazy import numpy as np
from nola_codec.prng import RADEMACHER, UNIFORM, signs, words
from nola_codec.quant.scales import scale_to_int16

if TYPE_CHECKING:
    import numpy.typing as npt

CHUNK_ENTRIES = 1 << 22
"""The default number of basis entries that are made at once: 32 MiB as int64."""


class DenseBasis:
    """The common part of dense bases; a subclass makes the rows.

    Attributes:
        name: The name of the basis in options.
        entry_bound: The largest magnitude of an entry.
        largest_sum: The largest magnitude of a sum that the kernel can hold.
        chunk_entries: The number of basis entries that are made at once.
    """

    is_fast = False
    is_orthogonal = False
    name: str
    entry_bound: int
    largest_sum: int

    def __init__(self, chunk_entries: int = CHUNK_ENTRIES) -> None:
        self.chunk_entries = chunk_entries

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        raise NotImplementedError

    def _pitch(self, n: int) -> int:
        """Return the entries that are made for a row of n: whole words of the generator, so at least 1."""
        raise NotImplementedError

    def max_num_basis(self, n: int) -> int | None:
        """Return None: a dense basis can have any number of rows."""
        return None

    def bound(self, n: int, num_basis: int, peak: int) -> int:
        """Return the largest magnitude that a partial sum can have if no coefficient exceeds `peak` in magnitude."""
        return peak * num_basis * self.entry_bound

    def _chunks(self, n: int, num_basis: int) -> list[tuple[int, int]]:
        step = max(1, self.chunk_entries // self._pitch(n))
        return [(start, min(start + step, num_basis)) for start in range(0, num_basis, step)]

    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array:
        """Return the integers y = q G for each vector q; arguments and result are those of `Hadamard.synthesize`."""
        dtype = xp.integer_work_dtype(self.bound(n, int(coefficients.shape[-1]), peak))
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
        """Do the same with the compiled kernel; arguments and result are those of `Hadamard.synthesize_compiled`.

        Results without scales are int64 for `uniform`.
        """
        lib = library_for(xp)
        if lib is None or not all(own.dtype.name in INTEGERS for own in coefficients):
            return None
        if self.bound(n, coefficients[0].shape[1], peak) > self.largest_sum:
            return None
        made = [
            synthesize_dense(lib, self.name, seed=key.seed, stream=key.stream,
                             coefficients=own.astype(np.int32, copy=False), n=n)
            for own, key in zip(coefficients, keys, strict=True)
        ]  # fmt: skip
        if scales is None:
            return made
        ends = np.cumsum([len(own) for own in coefficients])
        parts = [np.split(part[:, None], ends[:-1]) for part in scales]
        return [scale_to_int16(sums, m, s, xp) for sums, m, s in zip(made, *parts, strict=True)]

    def synthesize_floats(self, values: Array, n: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """Do the same as `synthesize` in the dtype of the input: exact for small integers, rounded for other floats."""
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
        """Yield the rows in chunks of `chunk_entries` entries: (number of the first row, rows (rows, n) of `dtype`)."""
        for start, stop in self._chunks(n, num_basis):
            yield start, self._rows(key, n, start, stop, xp, dtype)

    def project(self, vectors: Array, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays) -> Array:
        """Return the adjoint, G x for each vector x; arguments and result are those of `Hadamard.project`."""
        groups, batch, n = vectors.shape
        dtype = str(vectors.dtype).removeprefix("torch.")
        results = []
        for group, key in enumerate(keys):
            parts = [vectors[group] @ rows.swapaxes(0, 1) for _, rows in self.rows(key, n, num_basis, xp, dtype)]
            results.append(xp.concat(parts, -1))
        return xp.stack(results, 0)

    def pieces(self, n: int, num_basis: int) -> None:
        """Return None: a dense basis cannot make a vector in pieces."""
        return

    def transform(
        self, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str = "int8"
    ) -> DenseTransform:
        """Return a transform that keeps all rows, num_basis * n entries for each key."""
        return DenseTransform(self, n, num_basis, keys, xp, dtype)


class DenseTransform:
    """A dense basis with all its rows kept in memory, for many passes through it."""

    def __init__(
        self, basis: DenseBasis, n: int, num_basis: int, keys: tuple[BasisKey, ...], xp: Arrays, dtype: str
    ) -> None:
        """Make the rows of groups of bases; arguments are those of `HadamardTransform`, `dtype` is that of the rows."""
        self._xp = xp
        self._rows = [xp.concat([rows for _, rows in basis.rows(k, n, num_basis, xp, dtype)], 0) for k in keys]

    def synthesize(self, values: Array) -> Array:
        """Turn floats (groups, batch, num_basis) into (groups, batch, n) of the same dtype."""
        dtype = str(values.dtype).removeprefix("torch.")
        made = [own @ self._xp.cast(rows, dtype) for own, rows in zip(values, self._rows, strict=True)]
        return self._xp.stack(made, 0)

    def project(self, vectors: Array) -> Array:
        """Apply the adjoint of `synthesize`: floats (groups, batch, n) become (groups, batch, num_basis)."""
        dtype = str(vectors.dtype).removeprefix("torch.")
        made = [own @ self._xp.cast(rows, dtype).swapaxes(0, 1) for own, rows in zip(vectors, self._rows, strict=True)]
        return self._xp.stack(made, 0)


class Rademacher(DenseBasis):
    """The basis of independent signs, one bit an entry. Row j starts at bit j * 32 * ceil(n / 32) of the stream."""

    id = 2
    name = "rademacher"
    entry_bound = 1
    largest_sum = (1 << 31) - 1

    def norm2(self, n: int) -> float:
        """Return the squared norm of each row, which is exact."""
        return float(n)

    def _pitch(self, n: int) -> int:
        return 32 * max(1, (n + 31) // 32)

    def synthesize(self, coefficients: Array, n: int, keys: tuple[BasisKey, ...], peak: int, xp: Arrays) -> Array:
        """Do what `DenseBasis.synthesize` does; on a device with Triton no sign is ever stored."""
        bound = self.bound(n, int(coefficients.shape[-1]), peak)
        in_triton = isinstance(xp, TorchArrays) and uses_triton(xp.device.type)
        if not in_triton or bound >= 1 << 31:
            return super().synthesize(coefficients, n, keys, peak, xp)
        from nola_codec.kernels.triton import rademacher

        groups, batch, _ = coefficients.shape
        sums = xp.zeros((groups, batch, n), "int32")
        for own, total, key in zip(xp.cast(coefficients, "int32"), sums, keys, strict=True):
            rademacher.add_rows(own, total, xp.asarray(np.full(batch, key.stream, np.int64)), key.seed)
        return xp.cast(sums, "float64")

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        pitch = self._pitch(n)
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
    """The basis of uniform integers in [-32768, 32767], two from a word, low half first.

    Row j starts at word j * ceil(n / 2).
    """

    id = 3
    name = "uniform"
    entry_bound = 1 << 15
    largest_sum = (1 << 63) - 1

    def norm2(self, n: int) -> float:
        """Return the expected squared norm of a row, n * (2^32 + 2) / 12."""
        return n * ((1 << 32) + 2) / 12

    def _pitch(self, n: int) -> int:
        return 2 * max(1, (n + 1) // 2)

    def _rows(self, key: BasisKey, n: int, start: int, stop: int, xp: Arrays, dtype: str) -> Array:
        pitch = self._pitch(n) // 2
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
