"""Codec 2: interleaved rANS with static tables (Duda, 2013; Giesen, 2014), integers only.

L lanes of 32-bit state share one stream of 16-bit words: symbol i belongs to lane i mod L, and in a step the lanes that
run dry take their words in lane order. All lanes of all sections of a file step together, so NumPy decodes them as
vectors, and a GPU could. Layout: one byte log2(L), L states as uint32, the words as uint16, all little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.errors import FormatError, expected
from nola_codec.model import Runs, SymbolModel
from nola_codec.parallel import parallel_map, workers

id = 2
name = "rans"

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
_LOW = 1 << 16  # states live in [2^16, 2^32)
MAX_LANE_BITS = 12
MAX_ALPHABET = 256
_TOGETHER, _LEAST = 128, 8
"""Sections that step side by side: few enough for the caches, enough lanes to outweigh a step's overhead."""


def coded_bits(counts: npt.NDArray[Any], frequencies: Sequence[int]) -> float:
    """Bits that symbols with these counts take under these frequencies."""
    used = np.asarray(counts) > 0
    share = np.asarray(frequencies, np.float64)[used] / TOTAL
    return float(-(np.asarray(counts)[used] * np.log2(share)).sum())


def lane_bits(payload_bytes: float, symbols: int) -> int:
    """log2 of the number of lanes: the start-up of a lane wastes two bytes, and 0.4% in all is allowed."""
    bits = 4
    while bits < MAX_LANE_BITS and 2 << (bits + 1) <= 0.004 * payload_bytes:
        bits += 1
    while bits > 0 and symbols < 1 << bits:
        bits -= 1
    return bits


def normalize(counts: npt.NDArray[Any]) -> tuple[int, ...]:
    """Frequencies of 2^12 in total, at least 1 for each symbol, near-optimal for the counts.

    Args:
        counts: (symbols,) of at most MAX_ALPHABET non-negative numbers.
    """
    weights = np.maximum(np.asarray(counts, np.float64), 1e-9)
    share = weights / weights.sum() * TOTAL
    frequencies = np.maximum(1, np.floor(share)).astype(np.int64)
    while (gap := TOTAL - int(frequencies.sum())) != 0:
        step = 1 if gap > 0 else -1
        # Bits won (or lost least) by moving one unit to (from) a symbol.
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = weights * (np.log2(frequencies + step) - np.log2(frequencies))
        if step < 0:
            gain[frequencies <= 1] = -np.inf
        order = np.argsort(-gain, kind="stable")[: max(1, abs(gap) // 4)]
        frequencies[order] += step
        if step < 0:
            frequencies = np.maximum(frequencies, 1)
    return tuple(int(f) for f in frequencies)


def encode(symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes:
    """Code symbols (runs.total,); every model that occurs needs frequencies."""
    return encode_many([symbols], [runs], models)[0]


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """Code several sections side by side."""
    starts, widths = _tables(models)
    results = [b""] * len(streams)
    groups: dict[int, list[int]] = {}
    for index, (symbols, runs) in enumerate(zip(streams, all_runs, strict=True)):
        flat = _flat(symbols, runs)
        ideal = -np.log2(widths[flat] / TOTAL).sum() / 8 if runs.total else 0.0
        groups.setdefault(lane_bits(float(ideal), runs.total), []).append(index)
    jobs = _jobs(groups, all_runs)
    coded = parallel_map(
        lambda job: _encode_group([streams[i] for i in job[1]], [all_runs[i] for i in job[1]], job[0], starts, widths),
        jobs,
    )
    for (_, part), datas in zip(jobs, coded, strict=True):
        for index, data in zip(part, datas, strict=True):
            results[index] = data
    return results


def _jobs(groups: dict[int, list[int]], all_runs: Sequence[Runs]) -> list[tuple[int, list[int]]]:
    """(log2 of lanes, sections) for each piece of work, the sections with the most symbols first in each.

    Those still running after some steps are then always the first ones.
    """
    jobs = []
    for bits, members in groups.items():
        members.sort(key=lambda i: -all_runs[i].total)
        pieces = max(1, -(-len(members) // _TOGETHER), min(workers(), len(members) // _LEAST))
        jobs += [(bits, members[piece::pieces]) for piece in range(pieces)]
    return jobs


def _flat(symbols: npt.NDArray[Any], runs: Runs) -> npt.NDArray[np.int64]:
    """Index of each symbol in the tables of all models."""
    return np.asarray(np.repeat(runs.models * MAX_ALPHABET, runs.lengths) + symbols, np.int64)


def _encode_group(
    streams: Sequence[npt.NDArray[Any]],
    all_runs: Sequence[Runs],
    bits: int,
    starts: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
) -> list[bytes]:
    lanes, sections = 1 << bits, len(streams)
    steps = np.array([-(-r.total // lanes) for r in all_runs], np.int64)
    most = int(steps.max(initial=0))
    table = (widths << 16 | starts).astype(np.uint32)  # frequency and start of each symbol in one gather
    coded = np.empty((most, sections, lanes), np.uint32)
    for s, (symbols, runs) in enumerate(zip(streams, all_runs, strict=True)):
        flat = _flat(symbols, runs)
        fill = int(steps[s]) * lanes - runs.total
        if fill:  # the last row is filled with the cheapest symbol of the last run's model
            base = int(runs.models[np.flatnonzero(runs.lengths)[-1]]) * MAX_ALPHABET
            cheapest = base + int(np.argmax(widths[base : base + MAX_ALPHABET]))
            flat = np.concatenate((flat, np.full(fill, cheapest)))
        coded[: steps[s], s] = table[flat].reshape(-1, lanes)
    state = np.full((sections, lanes), _LOW, np.uint32)
    words = np.empty((most, sections, lanes), np.uint16)
    emitted = np.zeros((most, sections, lanes), bool)
    active = 0
    for step in range(most - 1, -1, -1):
        while active < sections and steps[active] > step:
            active += 1
        row, current = coded[step, :active], state[:active]
        frequency = row >> 16
        # A state at or above frequency * 2^20 would leave 32 bits. At frequency 2^12 none is.
        full = (current >> 20) >= frequency
        emitted[step, :active] = full
        words[step, :active] = current
        current = np.where(full, current >> 16, current)
        quotient = current // frequency
        state[:active] = quotient * (TOTAL - frequency) + current + (row & 0xFFFF)
    head = bytes([bits])
    return [
        head + state[s].astype("<u4").tobytes() + words[: steps[s], s][emitted[: steps[s], s]].astype("<u2").tobytes()
        for s in range(sections)
    ]


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[np.uint16]:
    """Undo `encode`. Raises FormatError unless words and states come out even."""
    return decode_many([data], [runs], models)[0]


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[np.uint16]]:
    """Decode several sections side by side: more lanes, fewer steps."""
    results: list[npt.NDArray[np.uint16] | None] = [None] * len(datas)
    groups: dict[int, list[int]] = {}
    for index, data in enumerate(datas):
        if len(data) < 1 or data[0] > MAX_LANE_BITS:
            raise FormatError(expected("rans lanes (log2)", f"0 to {MAX_LANE_BITS}", data[0] if data else "no data"),
                              code="symbols")  # fmt: skip
        groups.setdefault(data[0], []).append(index)
    lookup = _lookup(models)
    jobs = _jobs(groups, all_runs)
    decoded = parallel_map(
        lambda job: _decode_group([datas[i] for i in job[1]], [all_runs[i] for i in job[1]], job[0], lookup), jobs
    )
    for (_, part), streams in zip(jobs, decoded, strict=True):
        for index, symbols in zip(part, streams, strict=True):
            results[index] = symbols
    return [r for r in results if r is not None]


def _decode_group(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], bits: int, lookup: npt.NDArray[np.uint32]
) -> list[npt.NDArray[np.uint16]]:
    lanes, sections = 1 << bits, len(datas)
    heads = 1 + 4 * lanes
    for data in datas:
        if len(data) < heads or (len(data) - heads) % 2:
            raise FormatError(expected("rans section", f"{heads} bytes and whole words", len(data)), code="symbols")
    state = np.stack([np.frombuffer(d, "<u4", lanes, 1) for d in datas]).astype(np.uint32)
    bodies = [np.frombuffer(d, "<u2", offset=heads) for d in datas]
    words = np.concatenate([*bodies, np.zeros(sections * lanes + 1, "<u2")]).astype(np.uint32)
    sizes = np.array([len(b) for b in bodies], np.int64)
    ends = np.cumsum(sizes)
    pointer = ends - sizes
    steps = np.array([-(-r.total // lanes) for r in all_runs], np.int64)
    most = int(steps.max(initial=0))
    bases = np.zeros((most, sections, lanes), np.uint32)  # where each symbol's model begins in the lookup table
    for s, runs in enumerate(all_runs):
        if runs.total:
            which = np.repeat(runs.models.astype(np.uint32) << PROBABILITY_BITS, runs.lengths)
            fill = int(steps[s]) * lanes - len(which)
            bases[: steps[s], s] = np.concatenate((which, np.repeat(which[-1:], fill))).reshape(-1, lanes)
    out = np.empty((most, sections, lanes), np.uint8)
    active = sections
    for step in range(most):
        while steps[active - 1] <= step:
            active -= 1
        current = state[:active]
        slot = (current & (TOTAL - 1)) + bases[step, :active]
        entry = lookup.take(slot)
        out[step, :active] = entry & 0xFF
        current = (((entry >> 8) & 0xFFF) + 1) * (current >> PROBABILITY_BITS) + (entry >> 20)
        dry = current < _LOW
        need = np.count_nonzero(dry, axis=1) if active > 1 else np.array([np.count_nonzero(dry)])
        where = np.flatnonzero(dry)
        if active > 1:
            before = np.cumsum(need) - need
            taken = words.take(np.arange(len(where)) + np.repeat(pointer[:active] - before, need))
        else:
            taken = words[pointer[0] : pointer[0] + len(where)]
        pointer[:active] += need
        if (pointer[:active] > ends[:active]).any():
            raise FormatError("rans section: the words run out before the symbols do", code="symbols")
        flat = current.reshape(-1)
        flat[where] = (flat[where] << 16) | taken
        state[:active] = current
    if (pointer != ends).any() or (state != _LOW).any():
        raise FormatError("rans section: states or words left over after the last symbol", code="symbols")
    return [out[: steps[s], s].reshape(-1)[: runs.total].astype(np.uint16) for s, runs in enumerate(all_runs)]


def _tables(models: Sequence[SymbolModel]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    starts = np.zeros((len(models), MAX_ALPHABET), np.int64)
    widths = np.ones((len(models), MAX_ALPHABET), np.int64)
    for row, model in enumerate(models):
        if model.frequencies is not None:
            widths[row, : model.size] = model.frequencies
            starts[row, 1 : model.size] = np.cumsum(model.frequencies)[:-1]
            widths[row, model.size :] = 0
    return starts.reshape(-1), widths.reshape(-1)


def _lookup(models: Sequence[SymbolModel]) -> npt.NDArray[np.uint32]:
    """Symbol (8 bits), frequency - 1 (12) and slot - start (12) for each slot of each model."""
    table = np.zeros((len(models), TOTAL), np.uint32)
    for row, model in enumerate(models):
        if model.frequencies is None:
            continue
        frequencies = np.array(model.frequencies, np.int64)
        symbol = np.repeat(np.arange(model.size), frequencies)
        start = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        table[row] = symbol | (frequencies[symbol] - 1) << 8 | (np.arange(TOTAL) - start) << 20
    return table.reshape(-1)
