"""Quantizers with memory: trellises for rates up to a bit, dependent codebooks above (specification, "Quantizers").

The meaning of a symbol depends on the symbols around it, through a window of eight bits. Decoding reads the windows of
all steps, not states one after the other, so it finds all coefficients at once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Dependent, Trellis

if TYPE_CHECKING:
    import numpy.typing as npt

WINDOW = 8


@lru_cache(maxsize=1)
def parities() -> npt.NDArray[np.uint8]:
    """Return the parity of the bits of each window, uint8 (256,)."""
    return np.array([i.bit_count() & 1 for i in range(1 << WINDOW)], np.uint8)


_SIGN = (-1, 1)
_FOUR = (-10, -3, 3, 10)  # the Lloyd-Max points of two bits, 1.51 and 0.4528, scaled to integers


def _trellis(number: int, bits: int, levels: tuple[int, ...], masks: str) -> Trellis:
    each = (len(levels) - 1).bit_length()
    flat = bytes.fromhex(masks)
    return Trellis(number, bits, tuple(tuple(flat[i : i + each]) for i in range(0, len(flat), each)), levels)


# The masks are the best of a random search for a Gaussian source (tools/design_trellis.py). With one bit a step, each
# mask has the newest and the oldest bit of the window, so that branches that meet or part always differ in sign.
TRELLISES: tuple[Trellis, ...] = (
    _trellis(0, 1, _SIGN, "d19d85f9c7b1d197a99fb5d39ddbc5d991aff7d5e1abd389"),
    _trellis(1, 1, _SIGN, "9fe39bc7c5bda3d7b9a1bbedd3afa781"),
    _trellis(2, 1, _SIGN, "c9e3e7f79beddbbfcf9bf389"),
    _trellis(3, 1, _SIGN, "eb8789c5bbb1e7c7ddb3"),
    _trellis(4, 1, _SIGN, "99a7dfe1dfb5818d"),
    _trellis(5, 1, _SIGN, "f7a9e5e3fbf9"),
    _trellis(6, 1, _SIGN, "8b999ddbbd"),
    _trellis(7, 1, _SIGN, "9f8dabb9"),
    _trellis(8, 1, _SIGN, "ddbf83"),
    _trellis(9, 2, _SIGN, "ea81bdce77"),
    _trellis(10, 1, _SIGN, "b9e3"),
    _trellis(11, 2, _FOUR, "75fb6795d192"),
    _trellis(12, 1, _FOUR, "9dfb"),
)


@lru_cache
def window_table(trellis: Trellis) -> npt.NDArray[np.int8]:
    """Return the coefficients that each window stands for, int8 (256, stride)."""
    windows = np.arange(1 << WINDOW)
    columns = []
    for masks in trellis.masks:
        index = np.zeros(1 << WINDOW, np.int64)
        for mask in masks:
            index = 2 * index + parities()[windows & mask]
        columns.append(np.array(trellis.levels, np.int8)[index])
    return np.stack(columns, axis=1)


def trellis_points(trellis: Trellis, symbols: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int8]:
    """Return the coefficients of vectors that a trellis codes.

    Args:
        trellis: The trellis.
        symbols: uint8 (vectors, trellis.run(count)): the bits of each step.
        count: The number of coefficients of a vector.

    Returns:
        int8 (vectors, count).
    """
    vectors, steps = symbols.shape
    before = WINDOW // trellis.bits - 1
    ring = np.concatenate([symbols] * (1 + -(-before // max(1, steps))), axis=1)[:, -steps - before :]
    window = np.zeros((vectors, steps), np.uint8)
    for back in range(before + 1):
        window |= ring[:, before - back : before - back + steps] << np.uint8(back * trellis.bits)
    return window_table(trellis)[window].reshape(len(symbols), -1)[:, :count]


def dependent_points(book: Dependent, symbols: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return the coefficients of vectors, int32 (vectors, count), from symbols of the same shape."""
    chosen = choose_books(book.mask, symbols ^ np.uint8(len(book.even) & 1))
    points = np.array(dependent_table(book), np.int32)
    return np.asarray(points[chosen * np.uint16(book.size) + symbols])


def dependent_table(book: Dependent) -> tuple[int, ...]:
    """Return the points of all symbols of the even codebook, and then those of the odd one."""
    return (*_mirror(book.even), *_mirror(book.odd))


def choose_books(mask: int, levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the codebook of each level or parity of a level, uint8 (vectors, count): 0 for even, 1 for odd."""
    parity = (levels & 1).astype(np.uint8)
    chosen = np.zeros(parity.shape, np.uint8)
    for back in range(1, WINDOW + 1):
        if mask >> (back - 1) & 1:
            chosen[:, back:] ^= parity[:, :-back]
    return chosen


def _mirror(positive: tuple[int, ...]) -> list[int]:
    return [*(-p for p in reversed(positive)), 0, *positive]
