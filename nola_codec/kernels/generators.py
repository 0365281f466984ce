"""Words and signs of the generators of bases, as `prng/` defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Uint32Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

_GENERATORS = (1, 2)


def random_words(
    lib: Library, generator: int, *, seed: int, stream: int, purpose: int, start: int, count: int
) -> Uint32Array:
    """Return words `start` to `start + count` of a stream, uint32 (count,); arguments as in `prng.words`.

    Raises:
        ValueError: An argument is out of range.
    """
    require(generator in _GENERATORS, "a known generator")
    require(0 <= stream < 1 << 32 and 0 <= purpose < 1 << 32, "stream and purpose in range")
    require(start >= 0 and count >= 0 and start + count < 1 << 62, "start and count in range")
    out = np.empty(count, np.uint32)
    lib.call("nola_words", generator, seed, stream, purpose, start, count, out)
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
