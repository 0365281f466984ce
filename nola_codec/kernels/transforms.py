"""The Hadamard basis of `basis/hadamard.py` on integers, with the scaling of `quant/scales.py` in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.array_types import Int64Array, Uint32Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library
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


def synthesize_hadamard_bases(
    lib: Library,
    coefficients: Sequence[npt.NDArray[Any]],
    n: int,
    plan: tuple[int, int],
    keys: Sequence[tuple[int, int]],
    purposes: tuple[int, int],
    scales: tuple[Int64Array, Int64Array] | None = None,
) -> npt.NDArray[Any]:
    """Do the same as `synthesize_hadamard` for several bases of n rows in one call, which draws their signs too.

    Args:
        lib: The library.
        coefficients: int8, int16 or int32 (vectors, n) of each basis; the dtype and the number of vectors may differ.
        n: The length of the results.
        plan: (block, passes) of n, as `block_and_passes` says.
        keys: The seed and the stream of each basis.
        purposes: The purposes of the signs of both passes.
        scales: M and s of the vectors of all bases, as in `synthesize_hadamard`; None for int32 results.

    Returns:
        int16 (vectors of all bases, n) with scales, else int32: those of the first basis, then those of the second.

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    block, passes = _require_plan(n, plan)
    require(len(keys) == len(coefficients), "a key of each basis")
    given = [require_array(own, INTEGERS, (len(own), n)) for own in coefficients]
    for seed, stream in keys:
        require(0 <= seed < 1 << 64 and 0 <= stream < 1 << 32, "keys in range")
    counts = np.array([len(own) for own in given], np.int64)
    total = int(counts.sum())
    mantissas, shifts = _require_scales(scales, total)
    panel = _panel(n, block)
    work = np.empty(2 * panel * block + (2 * n if passes == 2 else 0), np.uint32)
    signs = np.empty(2 * (n // 32 + 2), np.uint32)
    out = np.empty((total, n), np.int32 if scales is None else np.int16)
    addresses = np.array([own.ctypes.data for own in given], np.int64)
    sizes = np.array([own.itemsize for own in given], np.int64)
    seeds = np.array([seed for seed, _ in keys], np.uint64)
    streams = np.array([stream for _, stream in keys], np.int64)
    lib.call("nola_hadamard_bases", len(given), addresses, sizes, counts, seeds, streams, *purposes, n,
             block, passes, panel, signs, work, mantissas, shifts, out)  # fmt: skip
    return out


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
