"""rANS by lanes (specification, "Entropy codecs"): one program decodes one section; its lanes are a tile's elements."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def rans_kernel(
    data,
    states,
    stops,
    steps,
    firsts,
    first_runs,
    run_models,
    run_ends,
    lookup,
    decoded,
    faults,
    LANES: tl.constexpr,
):
    """Decode one section.

    Args:
        data: uint8: the packed bytes.
        states: int64 (sections,): the place of the first lane state.
        stops: int64 (sections,): the place behind the last word.
        steps: int64 (sections,): the number of steps.
        firsts: int64 (sections,): the place of the section's first symbol in `decoded`.
        first_runs: int64 (sections,): the number of the section's first run.
        run_models: int32 (runs,): the model of each run.
        run_ends: int64 (runs,): the place in `decoded` behind each run; the fillers belong to the last one.
        lookup: int32 (models * 4096,): symbol, frequency - 1 and slot - start, of 8, 12 and 12 bits.
        decoded: uint8: the symbols with their fillers, written.
        faults: int32 (1,): the number of faults is added.
        LANES: The number of lanes.
    """
    section = tl.program_id(0)
    lane = tl.arange(0, LANES)
    start = tl.load(states + section)
    stop = tl.load(stops + section)
    x = tl.load(data + start + 4 * lane).to(tl.uint32)
    for byte in tl.static_range(1, 4):
        x = x | (tl.load(data + start + 4 * lane + byte).to(tl.uint32) << (8 * byte))
    pointer = start + 4 * LANES
    place = tl.load(firsts + section) + lane
    run = tl.load(first_runs + section) + tl.zeros([LANES], tl.int64)
    count = tl.load(steps + section)
    for _ in range(count):
        behind = place >= tl.load(run_ends + run)
        while tl.sum(behind.to(tl.int32)) > 0:
            run = run + behind.to(tl.int64)
            behind = place >= tl.load(run_ends + run)
        model = tl.load(run_models + run)
        entry = tl.load(lookup + model * 4096 + (x & 0xFFF).to(tl.int32)).to(tl.uint32, bitcast=True)
        tl.store(decoded + place, (entry & 0xFF).to(tl.uint8))
        x = (((entry >> 8) & 0xFFF) + 1) * (x >> 12) + (entry >> 20)
        dry = x < 65536
        order = tl.cumsum(dry.to(tl.int32), 0)  # lanes that need a word take the next ones in lane order
        at = pointer + 2 * (order - 1)
        there = dry & (at < stop)
        low = tl.load(data + at, mask=there, other=0).to(tl.uint32)
        high = tl.load(data + at + 1, mask=there, other=0).to(tl.uint32)
        x = tl.where(dry, (x << 16) | low | (high << 8), x)
        pointer += 2 * tl.sum(dry.to(tl.int32))
        place += LANES
    wrong = tl.sum((x != 65536).to(tl.int32)) + (pointer != stop).to(tl.int32)
    tl.atomic_add(faults, wrong)


def decode_lanes(
    data: Any,
    sections: tuple[Any, Any, Any, Any, Any],
    runs: tuple[Any, Any],
    lookup: Any,
    decoded: Any,
    faults: Any,
    lane_bits: int,
) -> None:
    """Launch `rans_kernel` for all sections of one number of lanes.

    Args:
        data: uint8: the packed bytes.
        sections: (states, stops, steps, firsts, first_runs) as the kernel takes them.
        runs: (run_models, run_ends) as the kernel takes them.
        lookup: int32, as the kernel takes it.
        decoded: uint8: the symbols, written.
        faults: int32 (1,), added to.
        lane_bits: log2 of the number of lanes.
    """
    lanes = 1 << lane_bits
    count = sections[0].shape[0]
    if count:
        warps = min(8, max(1, lanes // 128))
        rans_kernel[(count,)](data, *sections, *runs, lookup, decoded, faults, LANES=lanes, num_warps=warps)
