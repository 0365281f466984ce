"""The Hadamard basis of `basis/hadamard.py` on integers, with the scaling of `quant/scales.py` in the same pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Int64Array, Uint32Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

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
    out: npt.NDArray[Any] | None = None,
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
        out: The array to write to, C-contiguous, of the dtype and the shape of the result; None makes one.

    Returns:
        int16 (vectors, n) with scales, else int32 (vectors, n).

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    require(coefficients.ndim == 2, "two axes of the coefficients")
    vectors, num_basis = coefficients.shape
    block, passes = plan
    require(block > 0 and n >= 0 and (n % block == 0 if passes == 1 else passes == 2 and 1 < block <= min(n, 64)),
            "a plan for n")  # fmt: skip
    coefficients = require_array(coefficients, INTEGERS, (vectors, num_basis))
    require(len(signs) == passes, "signs for each pass")
    signs = tuple(require_array(s, ("uint32",), s.shape) for s in signs)
    require(all(s.ndim == 1 and len(s) >= n // 32 + 2 for s in signs), "a sign for each element")
    if places is None:
        require(num_basis == n, "a coefficient for each element")
    else:
        places = require_array(places, ("int64",), (num_basis,))
        require(num_basis == 0 or 0 <= int(places.min()) <= int(places.max()) < n, "places inside the vector")
    mantissas = shifts = None
    if scales is not None:
        mantissas, shifts = (require_array(part, ("int64",), (vectors,)) for part in scales)
        require(bool(((mantissas > 0) & (mantissas < 1 << 16) & (shifts > 0) & (shifts < 63)).all()), "scales in range")
    panel = max(1, min(n // block, max(16, _PANEL // block)))
    whole = 2 * n if passes == 2 else n if places is not None else 0
    work = np.empty(2 * panel * block + whole, np.uint32)
    dtype = np.int32 if scales is None else np.int16
    if out is None:
        out = np.empty((vectors, n), dtype)
    require(out.shape == (vectors, n) and out.dtype == dtype and out.flags.c_contiguous, "an array for the results")
    lib.call("nola_hadamard", coefficients, coefficients.itemsize, places, vectors, num_basis, n, block, passes, panel,
             signs[0], signs[-1], work, mantissas, shifts, out)  # fmt: skip
    return out
