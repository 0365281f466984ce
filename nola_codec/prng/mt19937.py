"""MT19937, the Mersenne Twister (Matsumoto and Nishimura, 1998): the generator of PyTorch on a CPU.

It makes only the tensors that a library drew and that a file does not store; bases never use it. Its words come in
sequence, so a tensor that starts late costs all words before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nola_codec.array_types import Uint32Array

_SIZE, _MIDDLE = 624, 397
_STEP = _SIZE - _MIDDLE  # words that depend on none of each other
_UPPER, _LOWER, _MATRIX = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
_PIECE = 1 << 18


def mt19937(seed: int, start: int, count: int) -> Uint32Array:
    """Words `start` to `start + count` of the sequence that a seed begins.

    Args:
        seed: 0 to 2^32 - 1, as the authors' `init_genrand` takes it. PyTorch's `manual_seed` uses the low 32 bits of
            its 64.
        start: Words passed over.
        count: Words wanted.

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
    """Yield the words of `mt19937`, some _PIECE at a time, so that a large tensor's are never all in memory."""
    position = -start
    for piece in _pieces(seed):
        if position >= count:
            return
        stop = position + len(piece)
        if stop > 0:
            yield _temper(piece[max(-position, 0) : min(stop, count) - position])
        position = stop


def _pieces(seed: int) -> Iterator[Uint32Array]:
    """Untempered words, some _PIECE at a time.

    x[k + 624] = x[k + 397] ^ twist(x[k], x[k + 1]), so that 227 at once can be made of what is there.
    """
    buffer = np.empty(_SIZE + _PIECE // _STEP * _STEP, np.uint32)
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
    """Return the state of 624 words that comes before the first word that is given out."""
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
