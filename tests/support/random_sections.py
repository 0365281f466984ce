"""Quantizers, block sections, carried tensors and drawn kinds for `random_files`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from nola_forge import frame
from random_units import CodedRecord

POINTS, INTEGERS, TRELLIS, DEPENDENT = range(4)
"""Types of quantizers."""
_DTYPE_BYTES = (4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 2, 4, 8, 1, 1)
_STRIDES = (24, 16, 12, 10, 8, 6, 5, 4, 3, 5, 2, 3, 1)
_TWO_BITS, _FOUR_LEVELS = (9, 11), (11, 12)


def quantizer(rng: np.random.Generator, trellis: int | None = None) -> dict[str, Any]:
    """Return a quantizer: `wire`, its array in the header; `size` of its alphabet, `table` of all symbols, `stride`,
    and `peak`, the largest magnitude of its points.

    Args:
        rng: Makes the choices.
        trellis: The number of a trellis that it is to be.
    """
    kind = int(rng.choice([POINTS, INTEGERS, TRELLIS, TRELLIS, DEPENDENT, DEPENDENT])) if trellis is None else TRELLIS
    if kind == TRELLIS:
        number = int(rng.integers(len(_STRIDES))) if trellis is None else trellis
        size, peak = 4 if number in _TWO_BITS else 2, 10 if number in _FOUR_LEVELS else 1
        return {"wire": [kind, number, None], "size": size, "table": None, "stride": _STRIDES[number], "peak": peak}
    largest = int(rng.choice([60, 400, 32768]))
    if kind == INTEGERS:
        bits = int(rng.choice([9, 10, 16]))
        data: Any = bits
        size, peak = 1 << bits, 1 << bits - 1
    elif kind == POINTS:
        count = int(rng.choice([1, 2, 5, 256]))
        data = np.sort(rng.choice(np.arange(-largest, largest + 1), min(count, 2 * largest), replace=False)).tolist()
        size, peak = len(data), max(map(abs, data))
    else:
        count = int(rng.choice([1, 2, 3, 9, 60, 127]))
        books = [
            np.sort(rng.choice(np.arange(1, largest + 1), min(count, largest), replace=False)).tolist() for _ in "01"
        ]
        books = [books[0], books[0]] if rng.random() < 0.3 else books
        data = [int(rng.choice([0, int(rng.integers(256))])), *books]
        size, peak = 2 * len(books[0]) + 1, max(map(max, books))
    table = stored = None
    if size <= 256 and rng.random() < 0.7:
        shares = rng.random(size) ** 8 + 1e-9
        if kind == DEPENDENT:
            half = size // 2
            folded = 1 + rng.multinomial((4096 - size) // 2, shares[half:] / shares[half:].sum())
            folded[0] = 4096 - 2 * folded[1:].sum()
            stored = folded.tolist()
            table = [*stored[:0:-1], *stored]
        else:
            stored = table = (1 + rng.multinomial(4096 - size, shares / shares.sum())).tolist()
    if kind == POINTS:
        data = _gaps(data)
    elif kind == DEPENDENT:
        data = [data[0], *map(_gaps, data[1:])]
    return {"wire": [kind, data, stored], "size": size, "table": table, "stride": 1, "peak": peak}


def _gaps(points: list[int]) -> list[int]:
    return points[:1] + [b - a for a, b in pairwise(points)]


def block_section(
    rng: np.random.Generator, quantizers: Sequence[dict[str, Any]], records: Sequence[CodedRecord]
) -> tuple[int, bytes]:
    """Return the codec and the bytes of a block section with random symbols."""
    models: list[int] = []
    symbols: list[int] = []
    for record in records:
        for side, _, number, _ in record.layers:
            book = quantizers[number]
            length = -(-record.kind.num_basis[side] // book["stride"])
            shares = None if book["table"] is None or rng.random() < 0.3 else np.array(book["table"]) / 4096
            models += [number] * length
            symbols += rng.choice(book["size"], length, p=shares).tolist()
    if rng.random() < 0.6:
        coded = [i for i, model in enumerate(models) if quantizers[model]["table"] is not None]
        packed = [i for i, model in enumerate(models) if quantizers[model]["table"] is None]
        data = _pack(quantizers, [models[i] for i in packed], [symbols[i] for i in packed])
        return 2, data + _rans(rng, quantizers, [models[i] for i in coded], [symbols[i] for i in coded])
    return 0, _pack(quantizers, models, symbols)


def _pack(quantizers: Sequence[dict[str, Any]], models: Sequence[int], symbols: Sequence[int]) -> bytes:
    """Return packed symbols, at their widths."""
    out = b""
    for model in sorted(set(models)):
        width = max(1, (quantizers[model]["size"] - 1).bit_length())
        own = [symbol for symbol, other in zip(symbols, models, strict=True) if other == model]
        bits = (np.array(own)[:, None] >> np.arange(width) & 1).reshape(-1).astype(np.uint8)
        out += np.packbits(bits, bitorder="little").tobytes()
    return out


def _rans(
    rng: np.random.Generator, quantizers: Sequence[dict[str, Any]], models: Sequence[int], symbols: Sequence[int]
) -> bytes:
    """Return interleaved rANS of any number of lanes, by the textbook encoder, which goes backwards."""
    log_lanes = int(rng.choice([0, 1, 2, 3, 3, 4, 6, 12], p=[0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02]))
    lanes = 1 << log_lanes
    filling = -len(models) % lanes
    last = models[-1] if models else 0
    models = [*models, *[last] * filling]
    symbols = [*symbols, *rng.integers(quantizers[last]["size"], size=filling).tolist()]
    starts = {m: np.cumsum([0, *quantizers[m]["table"]]).tolist() for m in set(models)}
    states, words = [1 << 16] * lanes, []
    for i in reversed(range(len(symbols))):
        lane, start = i % lanes, starts[models[i]][symbols[i]]
        frequency = quantizers[models[i]]["table"][symbols[i]]
        if states[lane] >> 20 >= frequency:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16
        states[lane] = (states[lane] // frequency << 12) + states[lane] % frequency + start
    return bytes([log_lanes]) + struct.pack(f"<{lanes}I{len(words)}H", *states, *reversed(words))


def frame_any(rng: np.random.Generator, plain: bytes) -> bytes:
    """Return a zstd frame, sometimes with a content checksum."""
    return frame(plain, write_checksum=bool(plain) and rng.random() < 0.3) if plain else b"\x20\0\1\0\0"


def carried(rng: np.random.Generator, template: str) -> tuple[list[Any], tuple[int, bytes]]:
    """Return a kind of a carried tensor, and the codec and bytes of its section."""
    dtype = int(rng.integers(len(_DTYPE_BYTES)))
    shape = [int(n) for n in rng.choice([0, 1, 2, 5, 30], int(rng.integers(0, 4)), p=[0.05, 0.2, 0.25, 0.25, 0.25])]
    width, count = _DTYPE_BYTES[dtype], int(np.prod(shape, dtype=int))
    data = bytes(rng.choice([0, 0, 1, 200], count * width).astype(np.uint8))
    codec = int(rng.choice([0, 1, 4]))
    if codec == 4 and width > 1:
        kept = int(rng.integers(0, width))
        planes = np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()
        stored = bytes([kept]) + planes[: kept * count] + frame_any(rng, planes[kept * count :])
        return [1, template, dtype, shape], (4, stored)
    return [1, template, dtype, shape], (1, frame_any(rng, data)) if codec == 1 else (0, data)


def drawn_kind(rng: np.random.Generator, template: str) -> list[Any]:
    """Return a kind of a drawn tensor."""
    shape = [int(n) for n in rng.choice([1, 2, 3, 7], int(rng.integers(1, 4)))]
    ends = sorted(float(np.float32(x)) for x in rng.normal(size=2) * float(rng.choice([1e-3, 1.0, 1e9])))
    divisor = None if rng.random() < 0.5 else float(np.float32(rng.uniform(0.01, 9)))
    axis = int(rng.integers(2)) if len(shape) > 1 else 0
    dtypes = [int(d) for d in rng.integers(0, 3, int(rng.integers(1, 5)))]
    start = int(rng.choice([0, 1, 623, 700]))
    method, digits = int(rng.integers(3)), int(rng.choice([8, 11, 24]))
    return [3, template, dtypes, shape, method, digits, int(rng.integers(2**32)), start, axis, *ends, divisor]
