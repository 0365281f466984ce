"""Codec 2: the runs without frequencies, packed as in codec 0, then the runs with frequencies, coded with rANS.

The bits of a trellis are as good as random, so frequencies would gain nothing, and packed bits need no lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.entropy import rans, raw
from nola_codec.errors import FormatError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel

if TYPE_CHECKING:
    import numpy.typing as npt

id = 2
name = "rans"


def pays(runs: Runs, models: Sequence[SymbolModel]) -> bool:
    """Return True if a run has a model with frequencies."""
    return any(models[m].frequencies is not None for m in np.unique(runs.models[runs.lengths > 0]))


def least_size(runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return 0: the size is not known before coding."""
    return 0


def encode(symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Code the symbols (runs.total,) of one section."""
    return encode_many([symbols], [runs], models)[0]


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """Code several sections side by side."""
    splits = [_Split(runs, models) for runs in all_runs]
    coded = rans.encode_many(_CodedSymbols(streams, splits), [s.coded for s in splits], models)
    return [
        raw.encode(stream[split.mark_plain()], split.plain, models) + data if split.plain.total else data
        for stream, split, data in zip(streams, splits, coded, strict=True)
    ]


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[Any]:
    """Undo `encode`. Raises FormatError for damaged data."""
    return decode_many([data], [runs], models)[0]


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[Any]]:
    """Decode several sections side by side. Raises FormatError for damaged data."""
    splits = [_Split(runs, models) for runs in all_runs]
    sizes = [raw.size(split.plain, models) for split in splits]
    for data, size in zip(datas, sizes, strict=True):
        if len(data) < size:
            raise FormatError(mismatch("bit-packed symbols", f"{size} bytes", len(data)), code="symbols")
    coded = rans.decode_many(
        [memoryview(data)[size:] for data, size in zip(datas, sizes, strict=True)], [s.coded for s in splits], models
    )
    results: list[npt.NDArray[Any]] = []
    for data, size, runs, split, symbols in zip(datas, sizes, all_runs, splits, coded, strict=True):
        if not split.plain.total:
            results.append(symbols)
            continue
        made = raw.decode_compiled(data[:size], runs, models, symbols)
        if made is not None:
            results.append(made)
            continue
        packed = raw.decode(data[:size], split.plain, models)
        merged = np.empty(len(packed) + len(symbols), np.uint16 if packed.max(initial=0) > 255 else np.uint8)
        merged[split.mark_plain()] = packed
        merged[~split.mark_plain()] = symbols
        results.append(merged)
    return results


def lane_steps(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return the steps that the lanes of a section take: each step gives a symbol of each lane.

    A section of one lane takes a step for each symbol, which costs thousands of times what a step of many lanes does.
    Nothing is checked: what is damaged is found when the section is decoded.
    """
    split = _Split(runs, models)
    place = raw.size(split.plain, models)
    return -(-split.coded.total >> data[place]) if place < len(data) and data[place] <= rans.MAX_LANE_BITS else 0


class _Split:
    """The runs of a section in two groups.

    Attributes:
        plain: The runs without frequencies, which are packed.
        coded: The runs with frequencies, which go through rANS.
    """

    def __init__(self, runs: Runs, models: Sequence[SymbolModel]) -> None:
        without = np.array([m.frequencies is None for m in models], bool)
        marks = without[runs.models]
        self.plain = Runs(runs.models[marks], runs.lengths[marks])
        self.coded = Runs(runs.models[~marks], runs.lengths[~marks])
        self._marks, self._lengths = marks, runs.lengths

    def mark_plain(self) -> npt.NDArray[np.bool_]:
        """Return True for each symbol of the section that is packed, bool (symbols,)."""
        return np.repeat(self._marks, self._lengths)


class _CodedSymbols(Sequence["npt.NDArray[Any]"]):
    """The symbols of each section that rANS codes, made at each access."""

    def __init__(self, streams: Sequence[npt.NDArray[Any]], splits: Sequence[_Split]) -> None:
        self._streams, self._splits = streams, splits

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, index: Any) -> Any:
        split = self._splits[index]
        stream = self._streams[index]
        return stream if not split.plain.total else stream[~split.mark_plain()]
