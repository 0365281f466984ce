"""Counter-based generators: (seed, stream, purpose, position) gives the same word on every device, with no state.

    words(PHILOX, seed=7, stream=0, purpose=SIGNS, start=0, count=4, xp=NUMPY)

A generator is a pure function of a key and a counter, so any range of words can be made without those before it.

    philox.py              the generator of bases
    mt19937.py, draws.py   PyTorch's generator on a CPU, and the tensors that are drawn again with it
"""

from __future__ import annotations

from nola_codec.array_types import Uint32Array
from nola_codec.arrays import NUMPY, Array, Arrays, library_for
from nola_codec.errors import FormatError, mismatch
from nola_codec.kernels import library
from nola_codec.kernels.generators import random_words, smallest_positions, unpack_signs
from nola_codec.lazy import numpy as np
from nola_codec.prng.philox import MASK, philox4x32

PHILOX = 1
NAMES = {"philox4x32-10": PHILOX}
"""The ids of the generators that a file may name."""
_WORDS_PER_COUNTER = 4

# The purposes have different numbers, so that no two uses of a stream share words.
SIGNS, SIGNS_SECOND, SUBSET, RADEMACHER, UNIFORM = range(5)


def generator_name(generator: int) -> str:
    """Return the published name of a generator.

    Raises:
        FormatError: ``generator``: The id is unknown.
    """
    for name, number in NAMES.items():
        if number == generator:
            return name
    raise FormatError(mismatch("generator id", sorted(NAMES.values()), generator), code="generator")


def words(generator: int, *, seed: int, stream: int, purpose: int, start: int, count: int, xp: Arrays) -> Array:
    """Return words `start` to `start + count` of a stream.

    Args:
        generator: PHILOX.
        seed: The user's seed, 64 bits.
        stream: A number of 32 bits; equal streams give equal words.
        purpose: One of SIGNS, SIGNS_SECOND, SUBSET, RADEMACHER, UNIFORM.
        start: The index of the first word.
        count: The number of words.
        xp: The array library to compute with.

    Returns:
        int64 (count,), values in [0, 2^32).

    Raises:
        FormatError: ``generator``: The id of the generator is unknown.
    """
    generator_name(generator)
    lib = library_for(xp)
    if lib is not None:
        made = random_words(lib, seed=seed, stream=stream, purpose=purpose, start=start, count=count)
        return made.astype(np.int64)
    width = _WORDS_PER_COUNTER
    first, last = start // width, (start + count + width - 1) // width
    block = xp.arange(first, max(last, first + 1))
    low, high = block & MASK, (block >> 32) & MASK
    key = (seed & MASK, (seed >> 32) & MASK)
    zero = block * 0
    flat = xp.stack(philox4x32((low, high, zero + stream, zero + purpose), key), -1).reshape(-1)
    offset = start - first * width
    return flat[offset : offset + count]


def packed_signs(generator: int, *, seed: int, stream: int, purpose: int, count: int) -> Uint32Array:
    """Return the words whose bits are the first `count` signs of a stream, and at least one word more.

    Returns:
        uint32 (count // 32 + 2,). Bit j of word i, the least significant one first, is 1 if sign 32 * i + j is -1.
    """
    lib, size = library(), count // 32 + 2
    if lib is not None:
        return random_words(lib, seed=seed, stream=stream, purpose=purpose, start=0, count=size)
    made = words(generator, seed=seed, stream=stream, purpose=purpose, start=0, count=size, xp=NUMPY)
    return np.asarray(made, np.uint32)


def signs(generator: int, *, seed: int, stream: int, purpose: int, start: int, count: int, xp: Arrays) -> Array:
    """Return pseudo-random signs: 1 - 2 * bit, with the bits of each word taken least significant first.

    The arguments are those of `words`, but `start` and `count` count signs; `start` is a multiple of 32.

    Returns:
        int64 (count,).
    """
    first, size = start // 32, (count + 31) // 32
    lib = library_for(xp)
    if lib is not None:
        generator_name(generator)
        made = random_words(lib, seed=seed, stream=stream, purpose=purpose, start=first, count=size)
        return unpack_signs(lib, made, count).astype(np.int64)
    packed = words(generator, seed=seed, stream=stream, purpose=purpose, start=first, count=size, xp=xp)
    bits = (packed.reshape(-1, 1) >> xp.arange(0, 32).reshape(1, -1)) & 1
    return (1 - 2 * bits).reshape(-1)[:count]


def subset(generator: int, *, seed: int, stream: int, population: int, size: int, xp: Arrays) -> Array:
    """Return `size` of `population` positions, ascending: those with the smallest (word, position).

    Returns:
        int64 (size,).
    """
    generator_name(generator)
    lib = library_for(xp)
    if lib is not None:
        drawn = random_words(lib, seed=seed, stream=stream, purpose=SUBSET, start=0, count=population)
        return smallest_positions(lib, drawn, size)
    draws = words(generator, seed=seed, stream=stream, purpose=SUBSET, start=0, count=population, xp=xp)
    # word * 2^31 + position sorts by word, then by position; both fit in 63 bits since population < 2^31.
    order = xp.sort((draws << 31) + xp.arange(0, population))
    return xp.sort(order[:size] & 0x7FFFFFFF)
