"""The table of `tools/bench/task_loss.py --trained`, beside our files of `self_taught.py` with the same training."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import as_table, read, select, show_share

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from task_peers import BASE, FULL, OURS, PEER, Result, ratios

ROWS, STEPS = 192, 100
_OURS = "nola-codec --fit task"
_KINDS = {"base model": BASE, "adapter, fp16": FULL, _OURS: OURS}
_SIZES = {"Uni-LoRA": "{:,} numbers", "LoRA-XS": "R of {0} x {0}"}


def losses(found: Sequence[dict[str, Any]]) -> str:
    """Return bytes and loss of the trained files, means over the seeds, and a rival's bytes over ours at equal loss.

    Of a rival that was trained at several learning rates, the best one is shown.
    """
    groups: dict[tuple[str, Any], dict[Any, list[dict[str, Any]]]] = {}
    for result in select(read("self_taught", with_cache=False), door="data", steps=STEPS):
        groups.setdefault((_OURS, result["settings"]["size"]), {}).setdefault(None, []).append(result)
    for result in select(found, test_rows=ROWS):
        settings = result["settings"]
        if settings.get("steps", STEPS) == STEPS:
            rates = groups.setdefault((settings["rival"], settings.get("size", "")), {})
            rates.setdefault(settings.get("rate"), []).append(result)
    made = []
    for (rival, size), rates in groups.items():
        results = min(rates.values(), key=lambda own: statistics.fmean(r["figures"]["loss"] for r in own))
        count, loss = (statistics.fmean(r["figures"][key] for r in results) for key in ("bytes", "loss"))
        seeds = f", {len(results)} seeds" if len(results) > 1 else ""
        name = (
            rival
            if not size
            else f"{rival} --size {size}"
            if rival in _KINDS
            else f"{rival}, {_SIZES[rival].format(size)}"
        )
        made.append(Result(_KINDS.get(rival, PEER), name + seeds, round(count), loss, str(size)))
    order = list(_KINDS.values())
    made.sort(
        key=lambda r: (
            order.index(r.kind) if r.kind in order else 9,
            r.name.split(",")[0] if r.kind == PEER else "",
            -r.bytes,
        )
    )
    base, full = made[0].loss, made[1].loss
    shown = [
        [r.name, f"{r.bytes:,}", f"{r.loss:.4f}", show_share(base, full, r.loss), ratio]
        for r, ratio in zip(made, ratios(made), strict=True)
    ]
    return as_table(["what", "bytes", "loss", "of the gain", "bytes / ours at equal loss"], shown)
