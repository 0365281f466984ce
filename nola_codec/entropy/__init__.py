"""Entropy codecs behind a registry. A codec codes a stream of symbols, made up of runs, each under a known model.

    CODECS[0].encode(symbols, runs, models) -> bytes
    CODECS[0].decode(data, runs, models) -> uint16 symbols

`smallest` tries those that can code the models and keeps the shortest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.entropy import rans, raw, zstd
from nola_codec.errors import FormatError, expected
from nola_codec.model import Runs, SymbolModel


class Codec(Protocol):
    """A module of this package."""

    id: int
    name: str

    def encode(self, symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes: ...
    def decode(self, data: bytes, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[np.uint16]: ...


CODECS: dict[int, Codec] = {c.id: c for c in (raw, zstd, rans)}
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
    candidates: list[list[tuple[int, bytes]]] = [[] for _ in streams]
    able = [
        i
        for i, runs in enumerate(all_runs)
        if rans.id in allowed
        and all(models[m].frequencies is not None for m in np.unique(runs.models[runs.lengths > 0]))
    ]
    for index, (symbols, runs) in enumerate(zip(streams, all_runs, strict=True)):
        if raw.id in allowed:
            candidates[index].append((raw.id, raw.encode(symbols, runs, models)))
        if zstd.id in allowed and not (index in able and len(symbols) > _ZSTD_LIMIT):
            candidates[index].append((zstd.id, zstd.encode(symbols, runs, models)))
    coded = rans.encode_many([streams[i] for i in able], [all_runs[i] for i in able], models)
    for index, data in zip(able, coded, strict=True):
        candidates[index].append((rans.id, data))
    if not all(candidates):
        raise ValueError("no allowed codec can code these models")
    return [min(options, key=lambda option: (len(option[1]), option[0])) for options in candidates]


def decode_many(
    coded: Sequence[tuple[int, bytes | memoryview]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[np.uint16]]:
    """Decode several sections, each (codec id, bytes). Raises FormatError for unknown ids and damaged data."""
    results: list[npt.NDArray[np.uint16]] = [np.empty(0, np.uint16)] * len(coded)
    together = []
    for index, (number, data) in enumerate(coded):
        if number not in CODECS:
            raise FormatError(expected("entropy codec id", sorted(CODECS), number), code="codec")
        if number == rans.id:
            _require_frequencies(all_runs[index], models)
            together.append(index)
        else:
            results[index] = CODECS[number].decode(bytes(data), all_runs[index], models)
    decoded = rans.decode_many([coded[i][1] for i in together], [all_runs[i] for i in together], models)
    for index, symbols in zip(together, decoded, strict=True):
        results[index] = symbols
    return results


def _require_frequencies(runs: Runs, models: Sequence[SymbolModel]) -> None:
    for model in np.unique(runs.models[runs.lengths > 0]):
        if models[model].frequencies is None:
            raise FormatError(f"rans section: model {model} has no frequencies", code="codec")
