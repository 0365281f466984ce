"""Words, signs and subsets of the generator of bases, as `prng/` defines them; and the dense bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_codec.array_types import Int64Array, Uint32Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def random_words(lib: Library, *, seed: int, stream: int, purpose: int, start: int, count: int) -> Uint32Array:
    """Return words `start` to `start + count` of a stream, uint32 (count,); arguments as in `prng.words`.

    Raises:
        ValueError: An argument is out of range.
    """
    require(0 <= stream < 1 << 32 and 0 <= purpose < 1 << 32, "stream and purpose in range")
    require(start >= 0 and count >= 0 and start + count < 1 << 62, "start and count in range")
    out = np.empty(count, np.uint32)
    lib.call("nola_words", seed, stream, purpose, start, count, out)
    return out


def unpack_signs(lib: Library, words: Uint32Array, count: int) -> npt.NDArray[np.int8]:
    """Return `count` signs, int8 (count,): 1 - 2 * bit, the bits of each word taken least significant first.

    Raises:
        ValueError: There are not enough words.
    """
    words = require_array(words, ("uint32",), words.shape)
    require(words.ndim == 1 and 0 <= count <= 32 * len(words), "a word for each 32 signs")
    out = np.empty(count, np.int8)
    lib.call("nola_signs", words, count, out)
    return out


def smallest_positions(lib: Library, words: Uint32Array, size: int) -> Int64Array:
    """Return the positions of the `size` smallest words, ascending, int64 (size,); equal words go by position.

    Raises:
        ValueError: There are fewer words.
    """
    words = require_array(words, ("uint32",), words.shape)
    require(words.ndim == 1 and 0 <= size <= len(words), "no more positions than words")
    out = np.empty(size, np.int64)
    lib.call("nola_subset", words, len(words), size, out)
    return out


def synthesize_dense(
    lib: Library, name: str, *, seed: int, stream: int, coefficients: npt.NDArray[np.int32], n: int
) -> npt.NDArray[Any]:
    """Return y = q G for each vector q, with the rows of a dense basis; they are made in registers and not kept.

    The caller makes sure that no sum exceeds 2^31 - 1 for rademacher, or 2^63 - 1 for uniform.

    Args:
        lib: The library.
        name: "rademacher" or "uniform".
        seed: As in `random_words`.
        stream: As in `random_words`.
        coefficients: int32 (vectors, num_basis).
        n: The length of the results.

    Returns:
        int32 (vectors, n) for rademacher, int64 for uniform.

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    require(coefficients.ndim == 2 and n >= 0, "two axes of the coefficients and a length")
    vectors, num_basis = coefficients.shape
    coefficients = require_array(coefficients, ("int32",), (vectors, num_basis))
    require(0 <= stream < 1 << 32, "a known stream")
    sums = np.zeros((vectors, n), {"rademacher": np.int32, "uniform": np.int64}[name])
    lib.call(f"nola_{name}", seed, stream, coefficients, vectors, num_basis, n, sums)
    return sums
