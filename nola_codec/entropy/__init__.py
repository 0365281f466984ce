"""Entropy codecs behind a registry. A codec codes a stream of symbols, made up of runs, each under a known model.

Example:
        >>> import numpy as np
        >>> models = [SymbolModel(size=4)]                            # symbols 0 to 3, no frequencies
        >>> runs = Runs(models=np.array([0]), lengths=np.array([5]))  # five of them
        >>> stored = CODECS[0].encode(np.array([3, 0, 1, 2, 1], np.uint16), runs, models)
        >>> CODECS[0].decode(stored, runs, models).tolist()
        [3, 0, 1, 2, 1]

`smallest` tries those that can code the models and keeps the shortest.

    raw.py, zstd.py, mixed.py   codecs 0, 1 and 2: packed bits; zstd; rANS, with packed bits where rANS gains nothing
    rans.py                     interleaved rANS, for codec 2
    streams.py                  sorts symbols by model, for codecs 0 and 1
    blobs.py, frames.py         plain bytes in a section; frames of zstd with a checked size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.entropy import mixed, raw, zstd
from nola_codec.errors import FormatError, mismatch
from nola_codec.model.quantizers import Runs, SymbolModel

Streams = Sequence[npt.NDArray[Any]]


class Codec(Protocol):
    """The operations of a codec; a codec is a module of this package.

    Attributes:
        id: Number in a file.
        name: Name in options.
        uses_frequencies: True where the codec codes runs by the frequencies of their model.
        most_symbols: Symbols of a section beyond which the codec is not tried where one with `uses_frequencies` pays;
            None is no limit.
    """

    id: int
    name: str
    uses_frequencies: bool
    most_symbols: int | None

    def pays(self, runs: Runs, models: Sequence[SymbolModel]) -> bool: ...
    def least_size(self, runs: Runs, models: Sequence[SymbolModel]) -> int: ...
    def encode(self, symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes: ...
    def encode_many(self, streams: Streams, all_runs: Sequence[Runs], models: Sequence[SymbolModel]) -> list[bytes]: ...
    def decode(self, data: bytes, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[Any]: ...
    def decode_many(
        self, datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
    ) -> list[npt.NDArray[Any]]: ...


CODECS: dict[int, Codec] = {c.id: c for c in (raw, zstd, mixed)}
NAMES = {c.name: c.id for c in CODECS.values()}


def smallest(
    streams: Streams,
    all_runs: Sequence[Runs],
    models: Sequence[SymbolModel],
    allowed: Sequence[int] = (0, 1, 2),
) -> list[tuple[int, bytes]]:
    """Find the shortest code of each section among the allowed codecs; the lowest id wins a tie.

    Args:
        streams: Symbols of each section.
        all_runs: Runs of each section.
        models: Models that the runs refer to.
        allowed: Ids of codecs.

    Returns:
        (codec id, bytes) of each section.
    """
    # The highest id first: where frequencies pay they nearly always win, which spares the others their work.
    codecs = [CODECS[number] for number in sorted(set(allowed), reverse=True)]
    best: list[tuple[int, int, bytes] | None] = [None] * len(all_runs)  # (length, codec id, bytes)
    informed = [any(c.uses_frequencies and c.pays(runs, models) for c in codecs) for runs in all_runs]
    for codec in codecs:
        wanted = []
        for index, (runs, found) in enumerate(zip(all_runs, best, strict=True)):
            too_many = codec.most_symbols is not None and informed[index] and runs.total > codec.most_symbols
            may_win = found is None or codec.least_size(runs, models) <= found[0]
            if codec.pays(runs, models) and may_win and not too_many:
                wanted.append(index)
        coded = codec.encode_many([streams[i] for i in wanted], [all_runs[i] for i in wanted], models)
        for index, data in zip(wanted, coded, strict=True):
            own, found = (len(data), codec.id, data), best[index]
            best[index] = own if found is None or own[:2] < found[:2] else found
    chosen = [(found[1], found[2]) for found in best if found is not None]
    if len(chosen) < len(all_runs):
        raise ValueError("no allowed codec can code these models")
    return chosen


def decode_many(
    coded: Sequence[tuple[int, bytes | memoryview]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[Any]]:
    """Decode several sections, each (codec id, bytes). Raises FormatError for unknown ids and damaged data."""
    results: list[npt.NDArray[Any]] = [np.empty(0, np.uint16)] * len(coded)
    for number in sorted({number for number, _ in coded}):
        if number not in CODECS:
            raise FormatError(mismatch("entropy codec id", sorted(CODECS), number), code="codec")
        own = [index for index, (other, _) in enumerate(coded) if other == number]
        decoded = CODECS[number].decode_many([coded[i][1] for i in own], [all_runs[i] for i in own], models)
        for index, symbols in zip(own, decoded, strict=True):
            results[index] = symbols
    return results
