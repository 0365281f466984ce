"""The Hadamard basis of `basis/hadamard.py` on integers, with the scaling of `quant/scales.py` in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_codec.array_types import Int64Array, Uint32Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library, address_of
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_PANEL = 1 << 16
"""Elements that are transformed before they are interleaved: 256 KiB, half of what the kernel works on."""

INTEGERS = ("int8", "int16", "int32")
LARGEST_SUM = (1 << 31) - 1
"""The largest magnitude of a sum in the kernel, which works in int32."""


def synthesize_hadamard(
    lib: Library,
    coefficients: npt.NDArray[Any],
    n: int,
    plan: tuple[int, int],
    signs: tuple[Uint32Array, ...],
    places: Int64Array | None = None,
    scales: tuple[Int64Array, Int64Array] | None = None,
) -> npt.NDArray[Any]:
    """Return y = q H D for each vector q, as int32; or scaled to int16, (y * M + 2^(s - 1)) >> s clamped.

    The caller makes sure that no sum exceeds LARGEST_SUM: the peak of the coefficients times block^passes.

    Args:
        lib: The library.
        coefficients: int8, int16 or int32 (vectors, num_basis), num_basis <= n.
        n: The length of the results.
        plan: (block, passes) of n, as `block_and_passes` says.
        signs: For each pass the words whose bits are its signs, uint32 (n // 32 + 2,) at least: the last may be any.
        places: The place of each coefficient among n, int64 (num_basis,); None if num_basis is n.
        scales: M, 1 to 65535, and s, 1 to 62, of each vector, int64 (vectors,) each; None for int32 results.

    Returns:
        int16 (vectors, n) with scales, else int32 (vectors, n).

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    require(coefficients.ndim == 2, "two axes of the coefficients")
    vectors, num_basis = coefficients.shape
    block, passes = _require_plan(n, plan)
    coefficients = require_array(coefficients, INTEGERS, (vectors, num_basis))
    require(len(signs) == passes, "signs for each pass")
    signs = tuple(require_array(s, ("uint32",), s.shape) for s in signs)
    require(all(s.ndim == 1 and len(s) >= n // 32 + 2 for s in signs), "a sign for each element")
    if places is None:
        require(num_basis == n, "a coefficient for each element")
    else:
        places = require_array(places, ("int64",), (num_basis,))
        require(num_basis == 0 or 0 <= int(places.min()) <= int(places.max()) < n, "places inside the vector")
    mantissas, shifts = _require_scales(scales, vectors)
    panel = _panel(n, block)
    whole = 2 * n if passes == 2 else n if places is not None else 0
    work = np.empty(2 * panel * block + whole, np.uint32)
    out = np.empty((vectors, n), np.int32 if scales is None else np.int16)
    lib.call("nola_hadamard", coefficients, coefficients.itemsize, places, vectors, num_basis, n, block, passes, panel,
             signs[0], signs[-1], work, mantissas, shifts, out)  # fmt: skip
    return out


class SideForm(NamedTuple):
    """What sides of one shape have in common.

    Attributes:
        n: The length of a vector.
        plan: (block, passes) of n, as `block_and_passes` says.
        components: The number of vectors that the array of the side has room for.
        is_columns: True if they are the columns of the array, (n, components); else it is (components, n).
    """

    n: int
    plan: tuple[int, int]
    components: int
    is_columns: bool


class VectorPools(NamedTuple):
    """The coefficients of the vectors of many sides.

    Attributes:
        pools: int8, int16 or int32 (vectors, n) arrays.
        numbers: The number of the pool of each side, int64 (sides,).
        rows: The row of the first vector of each side in its pool, int64 (sides,).
        counts: The number of vectors of each side, int64 (sides,).
    """

    pools: Sequence[npt.NDArray[Any]]
    numbers: Int64Array
    rows: Int64Array
    counts: Int64Array


def synthesize_hadamard_sides(
    lib: Library,
    coefficients: VectorPools,
    forms: Sequence[SideForm],
    numbers: Int64Array,
    seed: int,
    streams: Int64Array,
    purposes: tuple[int, int],
    scales: tuple[Int64Array, Int64Array],
    places: Int64Array,
    out: npt.NDArray[np.int16],
) -> None:
    """Write sides into parts of one array: as `synthesize_hadamard` does, with all rows of each basis, and scaled.

    Args:
        lib: The library.
        coefficients: The coefficients of all sides.
        forms: The forms of sides.
        numbers: The number of the form of each side, int64 (sides,).
        seed: The seed of all bases.
        streams: The stream of the basis of each side, int64 (sides,).
        purposes: The purposes of the signs of both passes.
        scales: M and s, as in `synthesize_hadamard`, of the vectors of all sides, int64 (vectors,) each.
        places: Where each side begins in `out`, int64 (sides,).
        out: int16 (size,). Components without a vector become zero.

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    count = len(numbers)
    pools = [require_array(pool, INTEGERS, (len(pool), pool.shape[-1])) for pool in coefficients.pools]
    numbers, streams, places, owners, rows, counts = (
        require_array(each, ("int64",), (count,)) for each in (numbers, streams, places, *coefficients[1:])
    )
    require(_are_below(numbers, len(forms)) and _are_below(owners, len(pools)), "known forms and pools")
    require(_are_below(streams, 1 << 32), "streams in range")
    require(0 <= seed < 1 << 64 and out.ndim == 1 and out.dtype.name == "int16", "a seed and a flat int16 array")
    plans = [(form.n, *_require_plan(form.n, form.plan), _panel(form.n, form.plan[0])) for form in forms]
    require(all(form.components >= 0 and form.plan[1] * form.n < 1 << 40 for form in forms), "forms in range")
    table = np.array([(form.n, form.components, form.is_columns) for form in forms], np.int64).reshape(-1, 3)
    lengths, components, is_columns = table[numbers].T
    arrays = np.array([(address_of(p), p.itemsize, *p.shape) for p in pools], np.int64).reshape(-1, 4)
    addresses, widths, heights, given = arrays[owners].T
    require(np.array_equal(lengths, given) and bool((counts <= components).all()), "vectors of the forms")
    require(bool(((counts >= 0) & (rows >= 0) & (rows <= heights - counts)).all()), "vectors inside their pools")
    require(bool(((places >= 0) & (places <= out.size - components * lengths)).all()), "sides inside the array")
    addresses = addresses + rows * lengths * widths
    sides = np.stack([addresses, widths, counts, streams, numbers, components, is_columns, places], 1)
    mantissas, shifts = _require_scales(scales, int(sides[:, 2].sum()))
    works = [2 * panel * block + (2 * n if passes == 2 else 0) for n, block, passes, panel in plans]
    columns = counts * lengths * is_columns
    signs = np.empty(2 * (int(lengths.max(initial=0)) // 32 + 2), np.uint32)
    lib.call("nola_hadamard_sides", sides, count, np.array(plans, np.int64).reshape(-1, 4), seed, *purposes, signs,
             np.empty(max(works, default=0), np.uint32), np.empty(int(columns.max(initial=0)), np.int16),
             mantissas, shifts, out)  # fmt: skip


def _are_below(numbers: Int64Array, bound: int) -> bool:
    return not numbers.size or 0 <= int(numbers.min()) <= int(numbers.max()) < bound


def _require_plan(n: int, plan: tuple[int, int]) -> tuple[int, int]:
    block, passes = plan
    require(block > 0 and n >= 0 and (n % block == 0 if passes == 1 else passes == 2 and 1 < block <= min(n, 64)),
            "a plan for n")  # fmt: skip
    return plan


def _require_scales(
    scales: tuple[Int64Array, Int64Array] | None, vectors: int
) -> tuple[Int64Array, Int64Array] | tuple[None, None]:
    if scales is None:
        return None, None
    mantissas, shifts = (require_array(part, ("int64",), (vectors,)) for part in scales)
    require(bool(((mantissas > 0) & (mantissas < 1 << 16) & (shifts > 0) & (shifts < 63)).all()), "scales in range")
    return mantissas, shifts


def _panel(n: int, block: int) -> int:
    """Return the number of blocks that are transformed at once."""
    return max(1, min(n // block, max(16, _PANEL // block)))
