"""MT19937, the Mersenne Twister (Matsumoto and Nishimura, 1998): the generator of PyTorch on a CPU.

It makes drawn tensors only; bases never use it. Its words come in sequence, so a tensor that starts late costs the time
of all words before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nola_codec.array_types import Uint32Array

_SIZE, _MIDDLE = 624, 397
_STEP = _SIZE - _MIDDLE  # number of consecutive words that do not depend on one another
_UPPER, _LOWER, _MATRIX = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
_PIECE = 1 << 18


def mt19937(seed: int, start: int, count: int) -> Uint32Array:
    """Return words `start` to `start + count` of the sequence of a seed.

    Args:
        seed: The seed of the authors' function `init_genrand`, 0 to 2^32 - 1. PyTorch's `manual_seed` takes 64 bits
            and uses the low 32.
        start: The index of the first word.
        count: The number of words.

    Returns:
        uint32 (count,).
    """
    words = np.empty(count, np.uint32)
    position = 0
    for piece in mt19937_pieces(seed, start, count):
        words[position : position + len(piece)] = piece
        position += len(piece)
    return words


def mt19937_pieces(seed: int, start: int, count: int) -> Iterator[Uint32Array]:
    """Yield the words of `mt19937` in pieces of about _PIECE, so that memory never holds those of a large tensor."""
    position = -start
    for piece in _pieces(seed, start + count):
        if position >= count:
            return
        stop = position + len(piece)
        if stop > 0:
            yield _temper(piece[max(-position, 0) : min(stop, count) - position])
        position = stop


def _pieces(seed: int, most: int) -> Iterator[Uint32Array]:
    """Yield the untempered words in pieces of about _PIECE, or of `most` words if that is less.

    x[k + 624] = x[k + 397] ^ twist(x[k], x[k + 1]), so 227 new words can be made at once from the words before.
    """
    steps = -(-min(_PIECE, max(1, most)) // _STEP)
    buffer = np.empty(_SIZE + steps * _STEP, np.uint32)
    buffer[:_SIZE] = _initial_state(seed)
    while True:
        for k in range(0, len(buffer) - _SIZE, _STEP):
            mixed = buffer[k : k + _STEP] & _UPPER
            mixed |= buffer[k + 1 : k + 1 + _STEP] & _LOWER
            made = mixed & np.uint32(1)
            made *= _MATRIX
            mixed >>= np.uint32(1)
            made ^= mixed
            np.bitwise_xor(made, buffer[k + _MIDDLE : k + _SIZE], out=buffer[k + _SIZE : k + _SIZE + _STEP])
        yield buffer[_SIZE:]
        buffer[:_SIZE] = buffer[-_SIZE:].copy()


def _initial_state(seed: int) -> Uint32Array:
    """Return the state of 624 words that comes before the first word of the sequence."""
    state = [seed & 0xFFFFFFFF]
    for index in range(1, _SIZE):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + index) & 0xFFFFFFFF)
    return np.array(state, np.uint32)


def _temper(words: Uint32Array) -> Uint32Array:
    y = words ^ (words >> np.uint32(11))
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    return y
