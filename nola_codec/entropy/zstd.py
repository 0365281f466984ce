"""Codec 1: the symbols of each model, packed at 1, 2, 4, 8 or 16 bits, and then compressed into one zstd frame.

A byte holds whole symbols, so that the Huffman stage of zstd can use their frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.entropy.frames import compress, decompress
from nola_codec.entropy.raw import count_symbols
from nola_codec.entropy.streams import scatter_by_model, symbol_width, symbols_by_model
from nola_codec.errors import FormatError
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel
from nola_codec.quant.packing import pack, packed_size, padding_bits, unpack

if TYPE_CHECKING:
    import numpy.typing as npt

id = 1
name = "zstd"
uses_frequencies = False
most_symbols = 1 << 16
"""With more symbols than this, rANS is always shorter than zstd."""


def pays(runs: Runs, models: Sequence[SymbolModel]) -> bool:
    """Return True: every section can be compressed."""
    return True


def least_size(runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return 0: the size is not known before coding."""
    return 0


def stored_width(model: SymbolModel) -> int:
    """Return the number of bits that a symbol of a model takes before compression."""
    width = symbol_width(model)
    return next(w for w in (1, 2, 4, 8, 16) if w >= width)


def encode(symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Pack and compress the symbols (runs.total,) of one section."""
    return compress(
        b"".join(pack(part, stored_width(models[model])) for model, part in symbols_by_model(symbols, runs))
    )


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """Encode several sections, one after the other."""
    return [encode(symbols, runs, models) for symbols, runs in zip(streams, all_runs, strict=True)]


def decompress_packed(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Return the packed symbols of a section: the content of its frame.

    Raises:
        FormatError: ``zstd``: The frame is damaged, or its size is not that of the symbols.
    """
    size = sum(packed_size(count, stored_width(models[model])) for model, count in count_symbols(runs))
    return decompress(data, size, "symbols")


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[np.uint16]:
    """Undo `encode`. Raises FormatError for a bad frame, a wrong size or a symbol out of range."""
    counts = count_symbols(runs)
    plain = memoryview(decompress_packed(data, runs, models))
    parts = []
    position = 0
    for model, count in counts:
        width = stored_width(models[model])
        stop = position + packed_size(count, width)
        if padding_bits(plain[position:stop], width, count):
            raise FormatError("packed symbols: padding bits are not zero", code="symbols")
        parts.append((model, unpack(plain[position:stop], width, count)))
        position = stop
    return scatter_by_model(parts, runs, models)


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[np.uint16]]:
    """Decode several sections, one after the other."""
    return [decode(data, runs, models) for data, runs in zip(datas, all_runs, strict=True)]
