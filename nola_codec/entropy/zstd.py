"""Codec 1: symbols sorted by model, packed at a width that divides a byte, then one zstd frame.

Whole symbols a byte let zstd's Huffman stage see them; it reaches the entropy of pairs or quadruples, not of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.entropy.frames import compress, decompress
from nola_codec.entropy.raw import count_symbols
from nola_codec.entropy.streams import by_model, scatter_by_model, width_of
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Runs, SymbolModel
from nola_codec.quant.packing import pack, packed_size, padding_bits, unpack

id = 1
name = "zstd"
uses_frequencies = False
most_symbols = 1 << 16
"""rANS, with its frequencies, always wins over zstd on more."""


def pays(runs: Runs, models: Sequence[SymbolModel]) -> bool:
    """True: every section can be compressed."""
    return True


def least_size(runs: Runs, models: Sequence[SymbolModel]) -> int:
    """0: only compressing tells."""
    return 0


def _width(model: SymbolModel) -> int:
    width = width_of(model)
    return next(w for w in (1, 2, 4, 8, 16) if w >= width)


def encode(symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Compress symbols (runs.total,)."""
    return compress(b"".join(pack(part, _width(models[model])) for model, part in by_model(symbols, runs)))


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """`encode` several sections, one after the other."""
    return [encode(symbols, runs, models) for symbols, runs in zip(streams, all_runs, strict=True)]


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[np.uint16]:
    """Undo `encode`. Raises FormatError for a bad frame, a wrong size or a symbol out of range."""
    counts = count_symbols(runs)
    plain = memoryview(decompress(data, sum(packed_size(n, _width(models[m])) for m, n in counts), "symbols"))
    parts = []
    position = 0
    for model, count in counts:
        width = _width(models[model])
        stop = position + packed_size(count, width)
        if padding_bits(plain[position:stop], width, count):
            raise FormatError("packed symbols: padding bits are not zero", code="symbols")
        parts.append((model, unpack(plain[position:stop], width, count)))
        position = stop
    return scatter_by_model(parts, runs, models)


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[np.uint16]]:
    """`decode` several sections, one after the other."""
    return [decode(data, runs, models) for data, runs in zip(datas, all_runs, strict=True)]
