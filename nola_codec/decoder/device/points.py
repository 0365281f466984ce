"""Symbols -> integer coefficients on a device, in PyTorch (specification, "Quantizers").

They are the formulas of `quant.points` and `quant.trellis`. A coefficient of a trellis or of dependent codebooks
depends on a window of the symbols around it, so all coefficients are found at once.
"""

from __future__ import annotations

import torch

from nola_codec.model.quantizers import Book, Codebook, Dependent, Trellis
from nola_codec.quant.trellis import WINDOW, dependent_table, window_table

Tensor = torch.Tensor


def book_points(book: Book, symbols: Tensor, count: int) -> Tensor:
    """Return the coefficients of vectors that are coded with one quantizer.

    Args:
        book: The quantizer.
        symbols: Integers (vectors, book.run(count)) of any dtype.
        count: The number of coefficients of a vector.

    Returns:
        int32 (vectors, count), on the device of the symbols.
    """
    chosen = symbols.to(torch.int64)
    if isinstance(book, Codebook):
        # Symbols outside the alphabet are counted as faults of the file, and must not stop a device.
        return _table(book.points, symbols.device)[chosen.clamp(max=book.size - 1)]
    return _trellis_points(book, chosen, count) if isinstance(book, Trellis) else _dependent_points(book, chosen)


def _trellis_points(trellis: Trellis, symbols: Tensor, count: int) -> Tensor:
    vectors, steps = symbols.shape
    before = WINDOW // trellis.bits - 1
    ring = torch.cat([symbols] * (1 + -(-before // max(1, steps))), 1)[:, -steps - before :]
    window = torch.zeros_like(symbols)
    for back in range(before + 1):
        window = window | ring[:, before - back : before - back + steps] << back * trellis.bits
    window = window & ((1 << WINDOW) - 1)
    table = torch.from_numpy(window_table(trellis)).to(symbols.device)  # (256, stride)
    return table[window].reshape(vectors, -1)[:, :count].to(torch.int32)


def _dependent_points(book: Dependent, symbols: Tensor) -> Tensor:
    parity = (symbols ^ (len(book.even) & 1)) & 1  # of the levels
    chosen = torch.zeros_like(symbols)
    for back in range(1, WINDOW + 1):
        if book.mask >> (back - 1) & 1:
            chosen[:, back:] ^= parity[:, :-back]
    return _table(dependent_table(book), symbols.device)[chosen * book.size + symbols.clamp(max=book.size - 1)]


def _table(points: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(points, dtype=torch.int32, device=device)
