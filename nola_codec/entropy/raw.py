"""Codec 0: the symbols of each model, bit-packed at the width of the model (specification, "Entropy codecs").

Example: 5 symbols of an alphabet of 4 take 2 bits each, so 2 bytes in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.entropy.streams import scatter_by_model, symbol_width, symbols_by_model
from nola_codec.errors import FormatError, mismatch
from nola_codec.kernels import library
from nola_codec.kernels.entropy import unpack_runs
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel
from nola_codec.quant.packing import pack, packed_size, padding_bits, unpack

if TYPE_CHECKING:
    import numpy.typing as npt

id = 0
name = "raw"


def pays(runs: Runs, models: Sequence[SymbolModel]) -> bool:
    """Return True: every section can be packed."""
    return True


def least_size(runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return the size of the code in bytes, which is known before coding."""
    return size(runs, models)


def size(runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return the number of bytes that `encode` will make."""
    counts = np.bincount(runs.models, weights=runs.lengths, minlength=len(models)).astype(np.int64)
    return int((counts * np.array([symbol_width(m) for m in models], np.int64) + 7 >> 3).sum())


def encode(symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Pack the symbols (runs.total,) of one section."""
    return b"".join(pack(part, symbol_width(models[model])) for model, part in symbols_by_model(symbols, runs))


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """Encode several sections, one after the other."""
    return [encode(symbols, runs, models) for symbols, runs in zip(streams, all_runs, strict=True)]


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[Any]:
    """Undo `encode`: uint8 or uint16 (runs.total,). Raises FormatError when the length or the padding is wrong."""
    made = decode_compiled(data, runs, models)
    if made is not None:
        return made
    wanted = size(runs, models)
    if len(data) != wanted:
        raise FormatError(mismatch("bit-packed symbols", f"{wanted} bytes", len(data)), code="symbols")
    parts = []
    position = 0
    for model, count in count_symbols(runs):
        width = symbol_width(models[model])
        stop = position + packed_size(count, width)
        if padding_bits(data[position:stop], width, count):
            raise FormatError("bit-packed symbols: padding bits are not zero", code="symbols")
        parts.append((model, unpack(data[position:stop], width, count)))
        position = stop
    return scatter_by_model(parts, runs, models)


def decode_compiled(
    data: bytes | memoryview,
    runs: Runs,
    models: Sequence[SymbolModel],
    coded: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[Any] | None:
    """Decode a section with the compiled kernel, in one pass.

    Args:
        data: The packed symbols.
        runs: All runs of the section.
        models: The models that the runs refer to.
        coded: The symbols of the runs whose models have frequencies, in order, uint8; None if these are packed too.

    Returns:
        uint8 or uint16 (runs.total,); None without kernels, and for damaged data, for which `decode` finds the error.
    """
    lib = library()
    if lib is None:
        return None
    others = np.empty(0, np.uint8) if coded is None else coded
    widths = [0 if coded is not None and m.frequencies is not None else symbol_width(m) for m in models]
    sizes = np.array([m.size for m in models], np.int64)
    return unpack_runs(lib, data, runs.models, runs.lengths, np.array(widths, np.int64), sizes, others)


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[Any]]:
    """Decode several sections, one after the other."""
    return [decode(data, runs, models) for data, runs in zip(datas, all_runs, strict=True)]


def count_symbols(runs: Runs) -> list[tuple[int, int]]:
    """Return (model, number of symbols) of each model that occurs, in the order of the models."""
    counts = np.bincount(runs.models, weights=runs.lengths).astype(np.int64)
    return [(model, int(count)) for model, count in enumerate(counts) if count]
