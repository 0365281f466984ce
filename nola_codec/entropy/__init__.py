"""Entropy codecs behind a registry. A codec codes a stream of symbols, made up of runs, each under a known model.

    CODECS[0].encode(symbols, runs, models) -> bytes
    CODECS[0].decode(data, runs, models) -> uint8 or uint16 symbols

`smallest` tries those that can code the models and keeps the shortest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.entropy import mixed, raw, zstd
from nola_codec.errors import FormatError, expected
from nola_codec.model.quantizers import Runs, SymbolModel


class Codec(Protocol):
    """A module of this package."""

    id: int
    name: str

    def encode(self, symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes: ...
    def decode(self, data: bytes, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[Any]: ...


CODECS: dict[int, Codec] = {c.id: c for c in (raw, zstd, mixed)}
NAMES = {c.name: c.id for c in CODECS.values()}
_ZSTD_LIMIT = 1 << 16


def smallest(
    streams: Sequence[npt.NDArray[Any]],
    all_runs: Sequence[Runs],
    models: Sequence[SymbolModel],
    allowed: Sequence[int] = (0, 1, 2),
) -> list[tuple[int, bytes]]:
    """(codec id, bytes) of the shortest code of each section among the allowed codecs; the lowest id wins a tie.

    Where rANS can code a section of more than _ZSTD_LIMIT symbols, zstd, which cannot win there, is not tried.
    """
    able = [i for i, runs in enumerate(all_runs) if mixed.id in allowed and mixed.pays(runs, models)]
    best: dict[int, tuple[int, bytes]] = {}
    coded = mixed.encode_many([streams[i] for i in able] if len(able) < len(streams) else streams,
                              [all_runs[i] for i in able], models)  # fmt: skip
    for index, data in zip(able, coded, strict=True):
        best[index] = (mixed.id, data)
    for index, runs in enumerate(all_runs):
        if raw.id in allowed and (index not in best or raw.size(runs, models) <= len(best[index][1])):
            best[index] = (raw.id, raw.encode(streams[index], runs, models))
        if zstd.id in allowed and not (index in able and runs.total > _ZSTD_LIMIT):
            data = zstd.encode(streams[index], runs, models)
            if index not in best or (len(data), zstd.id) < (len(best[index][1]), best[index][0]):
                best[index] = (zstd.id, data)
    if len(best) < len(all_runs):
        raise ValueError("no allowed codec can code these models")
    return [best[index] for index in range(len(all_runs))]


def decode_many(
    coded: Sequence[tuple[int, bytes | memoryview]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[Any]]:
    """Decode several sections, each (codec id, bytes). Raises FormatError for unknown ids and damaged data."""
    results: list[npt.NDArray[Any]] = [np.empty(0, np.uint16)] * len(coded)
    together = []
    for index, (number, data) in enumerate(coded):
        if number not in CODECS:
            raise FormatError(expected("entropy codec id", sorted(CODECS), number), code="codec")
        if number == mixed.id:
            together.append(index)
        else:
            results[index] = CODECS[number].decode(bytes(data), all_runs[index], models)
    decoded = mixed.decode_many([coded[i][1] for i in together], [all_runs[i] for i in together], models)
    for index, symbols in zip(together, decoded, strict=True):
        results[index] = symbols
    return results
