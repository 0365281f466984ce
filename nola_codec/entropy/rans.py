"""The entropy coder of codec 2: interleaved rANS with static tables (Duda, 2013; Giesen, 2014), in integers only.

L lanes, each with a state of 32 bits, share one stream of 16-bit words. Symbol i belongs to lane i mod L, and the lanes
that need a word in a step take the next words in lane order. The compiled kernel codes section by section. Without it,
all lanes of many sections step together, so that NumPy codes them as vectors. Layout: log2(L) in one byte, L states as
uint32, the words as uint16, all little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nola_codec.errors import FormatError, mismatch
from nola_codec.kernels import Library, library
from nola_codec.kernels.entropy import FINE, WORDS_RUN_OUT, count_symbols, decode_rans, encode_rans
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel

if TYPE_CHECKING:
    import numpy.typing as npt

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
_LOW = 1 << 16  # states lie in [2^16, 2^32)
MAX_LANE_BITS = 12
MAX_ALPHABET = 256
_ENCODE_SYMBOLS = 6 << 20
"""Number of symbols that are encoded side by side; each takes 7 bytes of memory."""
_TOGETHER = 128
"""Number of sections that step side by side.

Threads do not pay here: a step is a dozen short array operations, and the interpreter's lock changes hands between
them.
"""
_RUN_OUT = "rans section: the words run out before the symbols do"
_LEFT_OVER = "rans section: states or words left over after the last symbol"


def coded_bits(counts: npt.NDArray[Any], frequencies: Sequence[int]) -> float:
    """Return the bits that symbols with these counts take under these frequencies."""
    used = np.asarray(counts) > 0
    share = np.asarray(frequencies, np.float64)[used] / TOTAL
    return float(-(np.asarray(counts)[used] * np.log2(share)).sum())


def lane_bits(payload_bytes: float, symbols: int) -> int:
    """Return log2 of the number of lanes of a section.

    There are 8 lanes, or more as long as their states, three bytes a lane, take at most 0.5% of the payload. But there
    are never more lanes than symbols.
    """
    bits = 3
    while bits < MAX_LANE_BITS and 3 << (bits + 1) <= 0.005 * payload_bytes:
        bits += 1
    while bits > 0 and symbols < 1 << bits:
        bits -= 1
    return bits


def normalize(counts: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return frequencies of 2^12 in sum, at least 1 for each symbol, that are nearly optimal for the counts.

    Args:
        counts: At most MAX_ALPHABET non-negative numbers, (symbols,).
    """
    weights = np.maximum(np.asarray(counts, np.float64), 1e-9)
    share = weights / weights.sum() * TOTAL
    frequencies = np.maximum(1, np.floor(share)).astype(np.int64)
    while (gap := TOTAL - int(frequencies.sum())) != 0:
        step = 1 if gap > 0 else -1
        # The bits that each symbol gains if its frequency changes by one step.
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
    """Code the symbols (runs.total,) of one section; the model of every run needs frequencies."""
    return encode_many([symbols], [runs], models)[0]


def encode_many(
    streams: Sequence[npt.NDArray[Any]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[bytes]:
    """Code several sections."""
    starts, widths = _tables(models)
    cost = -np.log2(np.maximum(widths, 1) / TOTAL)
    lib = library()
    if lib is not None:
        tables = (widths << 16 | starts).astype(np.uint32)
        return [_encode_section(lib, streams[i], runs, tables, cost) for i, runs in enumerate(all_runs)]
    lanes = []
    for index, runs in enumerate(all_runs):
        counts = np.bincount(_flat_indexes(streams[index], runs), minlength=len(cost))
        lanes.append(lane_bits(float(counts @ cost) / 8, runs.total))
    groups: dict[int, list[int]] = {}
    for index, bits in enumerate(lanes):
        groups.setdefault(bits, []).append(index)
    results = [b""] * len(streams)
    for bits, members in _jobs(groups, all_runs):
        for part in _split_by_budget(_ENCODE_SYMBOLS, members, all_runs):
            coded = _encode_group([streams[i] for i in part], [all_runs[i] for i in part], bits, starts, widths)
            for index, data in zip(part, coded, strict=True):
                results[index] = data
    return results


def _encode_section(
    lib: Library,
    symbols: npt.NDArray[Any],
    runs: Runs,
    tables: npt.NDArray[np.uint32],
    cost: npt.NDArray[np.float64],
) -> bytes:
    counts = count_symbols(lib, symbols, runs.models, runs.lengths, len(cost) // MAX_ALPHABET).reshape(-1)
    bits = lane_bits(float(counts @ cost) / 8, runs.total)
    states, words = encode_rans(lib, symbols, runs.models, runs.lengths, tables, bits)
    return bytes([bits]) + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _split_by_budget(budget: int, members: Sequence[int], all_runs: Sequence[Runs]) -> list[list[int]]:
    """Split members into consecutive parts, each of one member or of at most `budget` symbols."""
    parts: list[list[int]] = []
    weight = budget
    for index in members:
        weight += all_runs[index].total
        if weight > budget or not parts:
            parts.append([])
            weight = all_runs[index].total
        parts[-1].append(index)
    return parts


def _jobs(groups: dict[int, list[int]], all_runs: Sequence[Runs]) -> list[tuple[int, list[int]]]:
    """Return pieces of work, (log2 of lanes, sections), with the sections of each in falling order of symbols.

    The sections that still run after some steps are then always the first ones.
    """
    jobs = []
    for bits, members in groups.items():
        members.sort(key=lambda i: -all_runs[i].total)
        jobs += [(bits, members[first : first + _TOGETHER]) for first in range(0, len(members), _TOGETHER)]
    return jobs


def _flat_indexes(symbols: npt.NDArray[Any], runs: Runs) -> npt.NDArray[np.int64]:
    """Return the index of each symbol in the joined tables of all models."""
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
    table = (widths << 16 | starts).astype(np.uint32)  # frequency and start of each symbol in one number
    coded = np.empty((most, sections, lanes), np.uint32)  # the table's entry for each symbol
    for s, (symbols, runs) in enumerate(zip(streams, all_runs, strict=True)):
        flat = _flat_indexes(symbols, runs)
        fill = int(steps[s]) * lanes - runs.total
        if fill:  # the last row is filled with the cheapest symbol of the last run's model
            base = int(runs.models[np.flatnonzero(runs.lengths)[-1]]) * MAX_ALPHABET
            cheapest = base + int(np.argmax(widths[base : base + MAX_ALPHABET]))
            flat = np.concatenate((flat, np.full(fill, cheapest)))
        coded[: steps[s], s] = table[flat].reshape(-1, lanes)  # (steps, lanes): symbol i is in lane i mod L
    state = np.full((sections, lanes), _LOW, np.uint32)
    words = np.empty((most, sections, lanes), np.uint16)
    emitted = np.zeros((most, sections, lanes), bool)
    active = 0
    for step in range(most - 1, -1, -1):
        while active < sections and steps[active] > step:
            active += 1
        row, current = coded[step, :active], state[:active]  # (active, lanes) both
        frequency = row >> 16
        # A state at or above frequency * 2^20 would leave 32 bits. At frequency 2^12 none is.
        full = (current >> 20) >= frequency  # (active, lanes)
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


def decode(data: bytes | memoryview, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[np.uint8]:
    """Undo `encode`. Raises FormatError unless all words are used and all states end as they began."""
    return decode_many([data], [runs], models)[0]


def decode_many(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[np.uint8]]:
    """Decode several sections. Without the kernel they go side by side, so that NumPy takes few steps of many lanes.

    Raises:
        FormatError: ``symbols``: The data are damaged.
    """
    results: list[npt.NDArray[np.uint8] | None] = [None] * len(datas)
    groups: dict[int, list[int]] = {}
    for index, data in enumerate(datas):
        if len(data) < 1 or data[0] > MAX_LANE_BITS:
            raise FormatError(mismatch("rans lanes (log2)", f"0 to {MAX_LANE_BITS}", data[0] if data else "no data"),
                              code="symbols")  # fmt: skip
        groups.setdefault(data[0], []).append(index)
    lookup = lookup_table(models)
    lib = library()
    if lib is not None:
        return [_decode_section(lib, data, runs, lookup) for data, runs in zip(datas, all_runs, strict=True)]
    for bits, part in _jobs(groups, all_runs):
        decoded = _decode_group([datas[i] for i in part], [all_runs[i] for i in part], bits, lookup)
        for index, symbols in zip(part, decoded, strict=True):
            results[index] = symbols
    return [r for r in results if r is not None]


def _decode_section(
    lib: Library, data: bytes | memoryview, runs: Runs, lookup: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint8]:
    _check_length(data, 1 << data[0])
    found, symbols = decode_rans(lib, data, runs.models, runs.lengths, lookup)
    if found != FINE:
        raise FormatError(_RUN_OUT if found == WORDS_RUN_OUT else _LEFT_OVER, code="symbols")
    return symbols


def _check_length(data: bytes | memoryview, lanes: int) -> None:
    """Raise FormatError ``symbols`` unless a section has its states, and whole words behind them."""
    heads = 1 + 4 * lanes
    if len(data) < heads or (len(data) - heads) % 2:
        raise FormatError(mismatch("rans section", f"{heads} bytes and whole words", len(data)), code="symbols")


def _decode_group(
    datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], bits: int, lookup: npt.NDArray[np.uint32]
) -> list[npt.NDArray[np.uint8]]:
    lanes, sections = 1 << bits, len(datas)
    heads = 1 + 4 * lanes
    for data in datas:
        _check_length(data, lanes)
    state = np.stack([np.frombuffer(d, "<u4", lanes, 1) for d in datas]).astype(np.uint32)  # (sections, lanes)
    bodies = [np.frombuffer(d, "<u2", offset=heads) for d in datas]
    # The words of all sections lie in one array, with room behind them: a read past the end is found after the step.
    words = np.concatenate([*bodies, np.zeros(sections * lanes + 1, "<u2")]).astype(np.uint32)
    sizes = np.array([len(b) for b in bodies], np.int64)
    ends = np.cumsum(sizes)
    pointer = ends - sizes  # (sections,): next word of each
    steps = np.array([-(-r.total // lanes) for r in all_runs], np.int64)
    most = int(steps.max(initial=0))
    which = np.zeros(
        (most, sections, lanes), np.uint8 if lookup.size <= TOTAL << 8 else np.uint16
    )  # each symbol's model
    for s, runs in enumerate(all_runs):
        if runs.total:
            flat = np.repeat(runs.models.astype(which.dtype), runs.lengths)
            fill = int(steps[s]) * lanes - len(flat)
            which[: steps[s], s] = np.concatenate((flat, np.repeat(flat[-1:], fill))).reshape(-1, lanes)
    out = np.empty((most, sections, lanes), np.uint8)
    active = sections
    bounds = np.arange(sections + 1) * lanes
    for step in range(most):
        while steps[active - 1] <= step:
            active -= 1
        current = state[:active]  # (active, lanes)
        slot = which[step, :active].astype(np.uint32)
        slot <<= PROBABILITY_BITS
        slot |= current & (TOTAL - 1)
        entry = lookup.take(slot)
        out[step, :active] = entry  # the low byte
        current = (((entry >> 8) & 0xFFF) + 1) * (current >> PROBABILITY_BITS)
        entry >>= 20
        current += entry
        flat = current.reshape(-1)
        (dry,) = (flat < _LOW).nonzero()  # lanes that need a word, those of the first section first
        if active == 1:
            taken = words[pointer[0] : pointer[0] + len(dry)]
            pointer[0] += len(dry)
        else:
            before = dry.searchsorted(bounds[: active + 1])
            need = before[1:] - before[:-1]  # (active,): words that each section takes
            taken = words.take(np.arange(len(dry)) + (pointer[:active] - before[:-1]).repeat(need))
            pointer[:active] += need
        if (pointer[:active] > ends[:active]).any():
            raise FormatError(_RUN_OUT, code="symbols")
        flat[dry] = (flat[dry] << 16) | taken
        state[:active] = current
    if (pointer != ends).any() or (state != _LOW).any():
        raise FormatError(_LEFT_OVER, code="symbols")
    return [out[: steps[s], s].reshape(-1)[: runs.total] for s, runs in enumerate(all_runs)]


def _tables(models: Sequence[SymbolModel]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    starts = np.zeros((len(models), MAX_ALPHABET), np.int64)
    widths = np.ones((len(models), MAX_ALPHABET), np.int64)
    for row, model in enumerate(models):
        if model.frequencies is not None:
            widths[row, : model.size] = model.frequencies
            starts[row, 1 : model.size] = np.cumsum(model.frequencies)[:-1]
            widths[row, model.size :] = 0
    return starts.reshape(-1), widths.reshape(-1)


def lookup_table(models: Sequence[SymbolModel]) -> npt.NDArray[np.uint32]:
    """Return symbol (8 bits), frequency - 1 (12 bits) and slot - start (12 bits) of each slot of each model, uint32."""
    return _lookup_table(tuple(models))


@lru_cache(maxsize=4)
def _lookup_table(models: tuple[SymbolModel, ...]) -> npt.NDArray[np.uint32]:
    table = np.zeros((len(models), TOTAL), np.uint32)
    for row, model in enumerate(models):
        if model.frequencies is None:
            continue
        frequencies = np.array(model.frequencies, np.int64)
        symbol = np.repeat(np.arange(model.size), frequencies)
        start = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        table[row] = symbol | (frequencies[symbol] - 1) << 8 | (np.arange(TOTAL) - start) << 20
    return table.reshape(-1)
