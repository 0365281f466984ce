"""The table of `tools/experiments/vit.py`."""

from __future__ import annotations

from typing import Any

from results import Result, as_table, mean_and_spread, select

_NAMES = {"linear": "linear probe", "lora": "LoRA", "nola": "NOLA", "unilora": "Uni-LoRA", "full": "full training"}


def methods(found: list[Result]) -> str:
    """Mean and range of the accuracy of each way, at the rate that was the best for the choice."""
    by: dict[tuple[Any, ...], list[Result]] = {}
    for result in found:
        key = tuple(result["settings"].get(name) for name in ("way", "rank", "num_basis", "total"))
        by.setdefault(key, []).append(result)
    rows = []
    for (way, rank, num_basis, total), own in by.items():
        chosen = select(own, measured_on="choice")
        if not chosen:
            continue  # the base model
        rate = max(chosen, key=lambda result: float(result["figures"]["accuracy"]))["settings"]["lr"]
        tested = select(own, measured_on="test", lr=rate)
        if not tested:
            continue
        name = _NAMES[way] + (f" r={rank}" if rank else "") + (f" k={num_basis}" if num_basis else "")
        name += f", {total:,} in all" + (", shared out" if way == "nola" else "") if total else ""
        accuracies = [result["figures"]["accuracy"] for result in tested]
        figures = tested[0]["figures"]
        rows.append([
            name, f"{figures['trained']:,}", f"{figures['bytes']:,}", rate,
            f"{mean_and_spread(tested, 'accuracy')[0]:.1%}", f"{min(accuracies):.1%} to {max(accuracies):.1%}",
            len(tested),
        ])  # fmt: skip
    return as_table(["way", "trained", "bytes", "rate", "accuracy", "range", "seeds"], rows)
