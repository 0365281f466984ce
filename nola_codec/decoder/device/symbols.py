"""Packed bytes -> symbols on a device, in PyTorch (specification, "Entropy codecs").

Everything is int64 arithmetic and indexing, which every device has and no setting of PyTorch changes. Nothing is read
back: faults of a file are counted in a tensor, which the caller reads when it likes.
"""

from __future__ import annotations

import numpy as np
import torch

from nola_codec.decoder.device.plan import Integers, LaneGroup, PackedRuns, RungPlan
from nola_codec.entropy.rans import PROBABILITY_BITS, TOTAL
from nola_codec.kernels.triton.availability import uses_triton

Tensor = torch.Tensor

_LOW = 1 << 16  # states lie in [2^16, 2^32)
_PIECE = 1 << 22
"""Symbols that are unpacked at once, at about 60 bytes each."""


def decode_symbols(data: Tensor, plan: RungPlan, lookup: Tensor, *, wide: bool) -> tuple[Tensor, Tensor]:
    """Decode the symbols of a rung.

    Args:
        data: uint8 (bytes,): `PackedBlocks.data`.
        plan: The plan of the rung.
        lookup: int64 (models * 4096,): the table of `entropy.rans.lookup_table`.
        wide: True if an alphabet has more than 256 symbols.

    Returns:
        The symbols, uint8 (plan.total,), or int32 if `wide`, and the number of faults, an int64 scalar: it is 0 if the
        sections are what an encoder may write.
    """
    symbols = torch.zeros(plan.total, dtype=torch.int32 if wide else torch.uint8, device=data.device)
    faults = _unpack(data, plan.packed, symbols)
    decode = _decode_lanes_in_triton if uses_triton(data.device.type) else _decode_lanes
    for group in plan.groups:
        decoded, wrong = decode(data, group, lookup)
        _move(decoded, group, symbols)
        faults = faults + wrong
    return symbols, faults


def put_on(device: torch.device, values: Integers) -> Tensor:
    """Return integers of a plan as a tensor on a device, int64."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _unpack(data: Tensor, runs: PackedRuns, symbols: Tensor) -> Tensor:
    """Unpack runs of bits into their places, and return the number of faults."""
    device = data.device
    faults = torch.zeros((), dtype=torch.int64, device=device)
    if len(runs.last_bytes):
        last = data[put_on(device, runs.last_bytes)].to(torch.int64)
        faults = faults + ((last >> put_on(device, runs.used_bits)) != 0).sum()
    ends = np.cumsum(runs.lengths)
    total = int(ends[-1]) if len(ends) else 0
    bits, widths, targets = (put_on(device, each) for each in (runs.bits, runs.widths, runs.targets))
    sizes, all_ends, all_starts = (put_on(device, each) for each in (runs.sizes, ends, ends - runs.lengths))
    for start in range(0, total, _PIECE):
        index = torch.arange(start, min(start + _PIECE, total), dtype=torch.int64, device=device)
        run = torch.searchsorted(all_ends, index, right=True)
        index = index - all_starts[run]  # the number of each symbol in its run
        width = widths[run]
        bit = bits[run] + index * width
        place = bit >> 3
        value = data[place].to(torch.int64) | data[place + 1].to(torch.int64) << 8
        value = value | data[place + 2].to(torch.int64) << 16
        value = (value >> (bit & 7)) & ((1 << width) - 1)
        faults = faults + (value >= sizes[run]).sum()
        symbols[targets[run] + index] = value.to(symbols.dtype)
    return faults


def _decode_lanes(data: Tensor, group: LaneGroup, lookup: Tensor) -> tuple[Tensor, Tensor]:
    """Let all lanes of all sections of a group step together.

    Returns:
        The symbols of the sections with their fillers, one section after the other, uint8, and the number of faults.
    """
    device, lanes, sections = data.device, 1 << group.lane_bits, len(group.steps)
    total = int(group.steps.sum()) << group.lane_bits
    models = torch.repeat_interleave(
        put_on(device, group.run_models << PROBABILITY_BITS), put_on(device, group.run_lengths), output_size=total
    )  # the part of the table that each symbol uses
    decoded = torch.zeros(total, dtype=torch.uint8, device=device)
    lane = torch.arange(lanes, dtype=torch.int64, device=device)
    state = _read_states(data, put_on(device, group.states), lane)  # (sections, lanes)
    words, first = _read_words(data, group)
    pointer = put_on(device, first[:-1]).clone()  # (sections,): the next word of each; the tensor may share `first`
    firsts = np.cumsum(group.steps << group.lane_bits) - (group.steps << group.lane_bits)
    place = put_on(device, firsts)[:, None] + lane  # (sections, lanes): where the symbols of the step go
    active = sections
    for step in range(int(group.steps[0]) if sections else 0):
        while group.steps[active - 1] <= step:
            active -= 1
        at = place[:active] + step * lanes
        x = state[:active]
        entry = lookup[models[at] + (x & (TOTAL - 1))]
        decoded[at] = entry.to(torch.uint8)  # the low byte
        x = (((entry >> 8) & (TOTAL - 1)) + 1) * (x >> PROBABILITY_BITS) + (entry >> 20)
        dry = x < _LOW
        order = torch.cumsum(dry, 1, dtype=torch.int64)  # lanes that need a word take the next ones in lane order
        word = words[(pointer[:active, None] + order - 1).clamp(0, len(words) - 1)]
        state[:active] = torch.where(dry, x << 16 | word, x)
        pointer[:active] += order[:, -1]
    return decoded, (state != _LOW).sum() + (pointer != put_on(device, first[1:])).sum()


def _decode_lanes_in_triton(data: Tensor, group: LaneGroup, lookup: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same as `_decode_lanes` with the Triton kernel, one program a section."""
    from nola_codec.kernels.triton import rans

    device = data.device
    counts = group.steps << group.lane_bits
    firsts = np.cumsum(counts) - counts
    first_runs = np.searchsorted(group.sources, firsts)
    sections = (group.states, group.stops, group.steps, firsts, first_runs)
    decoded = torch.zeros(int(counts.sum()), dtype=torch.uint8, device=device)
    faults = torch.zeros(1, dtype=torch.int32, device=device)
    states, stops, steps, places, runs = (put_on(device, each) for each in sections)
    models, ends = put_on(device, group.run_models).to(torch.int32), put_on(device, group.sources + group.run_lengths)
    rans.decode_lanes(
        data, (states, stops, steps, places, runs), (models, ends), lookup.to(torch.int32), decoded, faults,
        group.lane_bits,
    )  # fmt: skip
    return decoded, faults[0].to(torch.int64)


def _read_states(data: Tensor, starts: Tensor, lane: Tensor) -> Tensor:
    """Read the little-endian lane states, int64 (sections, lanes)."""
    places = starts[:, None] + 4 * lane
    state = data[places].to(torch.int64)
    for byte in (1, 2, 3):
        state = state | data[places + byte].to(torch.int64) << 8 * byte
    return state


def _read_words(data: Tensor, group: LaneGroup) -> tuple[Tensor, Integers]:
    """Return the words of all sections, int32 (words + 1,) with a zero at the end, and where each section's begin.

    The places are int64 (sections + 1,); the last one is the number of words.
    """
    starts = group.states + (4 << group.lane_bits)
    parts = [data[start:stop] for start, stop in zip(starts.tolist(), group.stops.tolist(), strict=True)]
    parts.append(torch.zeros(2, dtype=torch.uint8, device=data.device))
    pairs = torch.cat(parts).reshape(-1, 2).to(torch.int32)
    counts = (group.stops - starts) // 2
    return pairs[:, 0] | pairs[:, 1] << 8, np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))


def _move(decoded: Tensor, group: LaneGroup, symbols: Tensor) -> None:
    """Copy the symbols of a group's runs to their places in the rung, without the fillers."""
    device = symbols.device
    ends = np.cumsum(group.lengths)
    total = int(ends[-1]) if len(ends) else 0
    all_ends, starts = put_on(device, ends), put_on(device, ends - group.lengths)
    sources, targets = put_on(device, group.sources), put_on(device, group.targets)
    for start in range(0, total, _PIECE):
        index = torch.arange(start, min(start + _PIECE, total), dtype=torch.int64, device=device)
        run = torch.searchsorted(all_ends, index, right=True)
        index = index - starts[run]
        symbols[targets[run] + index] = decoded[sources[run] + index].to(symbols.dtype)
