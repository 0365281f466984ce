"""Interleaved rANS: one section of symbols at a time (c/rans.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

FINE, WORDS_RUN_OUT, LEFT_OVER, _BAD_ARGUMENT = range(4)
"""What `decode_rans` found: all is well; the words run out; words or states are left over."""
_BAD_SYMBOL = 1
_SLOTS, _ALPHABET, _MOST_LANE_BITS = 1 << 12, 256, 12


def decode_rans(
    lib: Library,
    data: bytes | memoryview,
    models: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    lookup: npt.NDArray[np.uint32],
) -> tuple[int, npt.NDArray[np.uint8]]:
    """Decode a section, whose length and number of lanes the caller has checked.

    Args:
        lib: The library.
        data: The stored bytes.
        models: The model of each run, int64 (runs,).
        lengths: The number of symbols of each run, int64 (runs,).
        lookup: uint32 (models * 4096,), as `entropy.rans` makes it: symbol, frequency - 1, slot - start of each slot.

    Returns:
        FINE, WORDS_RUN_OUT or LEFT_OVER; and the symbols, uint8 (sum of lengths,), which mean nothing unless FINE.

    Raises:
        ValueError: A run has an unknown model or a negative length, or the section is too short for its lanes.
    """
    stored = np.frombuffer(data, np.uint8)
    models, lengths = _as_int64(models, lengths)
    lookup = require_array(lookup, ("uint32",), (lookup.size // _SLOTS * _SLOTS,))
    out = np.empty(max(0, int(lengths.sum())), np.uint8)
    found = lib.call("nola_rans_decode", stored, stored.size, models, lengths, len(models), lookup,
                     lookup.size // _SLOTS, out, out.size)  # fmt: skip
    if found == _BAD_ARGUMENT:
        raise ValueError("a run has an unknown model or a negative length, or the section is too short for its lanes")
    return found, out


def count_symbols(
    lib: Library,
    symbols: npt.NDArray[Any],
    models: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    model_count: int,
) -> npt.NDArray[np.int64]:
    """Count the symbols of each model.

    Args:
        lib: The library.
        symbols: uint8 or uint16 (sum of lengths,), all below 256.
        models: The model of each run, int64 (runs,).
        lengths: The number of symbols of each run, int64 (runs,).
        model_count: The number of models.

    Returns:
        int64 (model_count, 256).

    Raises:
        ValueError: A symbol is above 255, or the runs do not fit the symbols.
    """
    symbols = _as_symbols(symbols)
    models, lengths = _as_int64(models, lengths)
    counts = np.zeros((model_count, _ALPHABET), np.int64)
    found = lib.call("nola_count_symbols", symbols, symbols.itemsize, models, lengths, len(models), model_count,
                     counts, symbols.size)  # fmt: skip
    if found != FINE:
        raise ValueError("a symbol is above 255, or the runs do not fit the symbols")
    return counts


def encode_rans(
    lib: Library,
    symbols: npt.NDArray[Any],
    models: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    tables: npt.NDArray[np.uint32],
    bits: int,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Code a section.

    Args:
        lib: The library.
        symbols: uint8 or uint16 (sum of lengths,), all below 256.
        models: The model of each run, int64 (runs,).
        lengths: The number of symbols of each run, int64 (runs,).
        tables: uint32 (models * 256,): frequency << 16 | start of each symbol.
        bits: log2 of the number of lanes, 0 to 12.

    Returns:
        The state of each lane, uint32 (lanes,), and the words, uint16 (words,).

    Raises:
        ValueError: A symbol has no frequency, the runs do not fit the symbols, or there are too many lanes.
    """
    require(0 <= bits <= _MOST_LANE_BITS, "at most 4096 lanes")
    tables = require_array(tables, ("uint32",), (tables.size // _ALPHABET * _ALPHABET,))
    symbols = _as_symbols(symbols)
    models, lengths = _as_int64(models, lengths)
    states = np.empty(1 << bits, np.uint32)
    words = np.empty(-(-symbols.size // len(states)) * len(states), np.uint16)
    count = lib.call("nola_rans_encode", symbols, symbols.itemsize, models, lengths, len(models), tables,
                     tables.size // _ALPHABET, symbols.size, bits, states, words, words.size)  # fmt: skip
    if count < 0:
        raise ValueError("a symbol has no frequency, or the runs do not fit the symbols")
    return states, words[words.size - count :]


def _as_int64(*arrays: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    return [np.ascontiguousarray(array, np.int64) for array in arrays]


def _as_symbols(symbols: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(symbols, None if symbols.dtype in (np.uint8, np.uint16) else np.uint16)


def pack_bits(lib: Library, symbols: npt.NDArray[np.uint16], width: int) -> npt.NDArray[np.uint8]:
    """Pack symbols, uint16 (count,) below 2^width, without gaps into bytes; `width` is 1 to 16."""
    symbols = require_array(symbols, ("uint16",), (symbols.size,))
    require(1 <= width <= 16, "1 to 16 bits a symbol")
    out = np.empty((symbols.size * width + 7) // 8, np.uint8)
    lib.call("nola_pack", symbols, symbols.size, width, out)
    return out


def unpack_runs(
    lib: Library,
    data: bytes | memoryview,
    models: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    others: npt.NDArray[np.uint8],
) -> npt.NDArray[Any] | None:
    """Put the symbols of a section together: packed bits, the bits of each model from a byte on, and other symbols.

    Args:
        lib: The library.
        data: The packed bits, those of the first model first.
        models: The model of each run, int64 (runs,).
        lengths: The number of symbols of each run, int64 (runs,).
        widths: For each model the bits of a symbol, 1 to 16; 0 if its symbols are among `others`. int64 (models,).
        sizes: The size of the alphabet of each model, int64 (models,).
        others: The symbols of runs without a width, in order, uint8 (symbols,).

    Returns:
        uint8 (sum of lengths,), or uint16 if an alphabet has more than 256 symbols; None if the symbols do not take as
        many bytes, a symbol is not in its alphabet, or padding bits are not zero.

    Raises:
        ValueError: A run has an unknown model or a negative length, or there are fewer or more other symbols.
    """
    models, lengths = _as_int64(models, lengths)
    widths, sizes = (require_array(each, ("int64",), (len(widths),)) for each in (widths, sizes))
    require(not len(models) or 0 <= int(models.min()) <= int(models.max()) < len(widths), "runs of known models")
    require(not len(lengths) or int(lengths.min()) >= 0, "runs of no negative length")
    counts = np.bincount(models, lengths, len(widths)).astype(np.int64)
    stored = counts * widths + 7 >> 3
    ends = stored.cumsum()
    if len(data) != (int(ends[-1]) if len(ends) else 0):
        return None
    packed = np.frombuffer(bytes(data) + bytes(4), np.uint8)
    bits = (ends - stored) * 8
    out = np.empty(int(lengths.sum()), np.uint8 if int(sizes.max(initial=0)) <= 256 else np.uint16)
    found = lib.call("nola_unpack_runs", packed, len(data), models, lengths, len(models), widths, sizes, bits,
                     len(widths), require_array(others, ("uint8",), (others.size,)), others.size, out, out.itemsize,
                     out.size)  # fmt: skip
    if found not in (FINE, _BAD_SYMBOL):
        raise ValueError("a run has an unknown model or a negative length, or the other symbols are not as many")
    padding = packed[bits >> 3] >> (bits & 7)  # the next bits of each model
    return None if found == _BAD_SYMBOL or padding[(bits & 7) > 0].any() else out
