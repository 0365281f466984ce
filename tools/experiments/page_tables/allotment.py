"""The table of `tools/experiments/allotment.py`."""

from __future__ import annotations

from typing import Any

from results import Result, as_table


def name_way(settings: dict[str, Any]) -> str:
    """Return a name of a run for people."""
    if settings["method"] != "nola":
        return {"lora": "LoRA r=8", "unilora": "Uni-LoRA"}[settings["method"]]
    if settings.get("num_basis"):
        return "NOLA with as many coefficients as numbers"
    if settings.get("projected"):
        return "NOLA, moments of the factors"
    if settings.get("only_B"):
        return "NOLA, all for lora_B"
    return "NOLA, shared out by gradients" if settings.get("allotted") else "NOLA, the same for each factor"


def ways(found: list[Result]) -> str:
    """Losses on validation rows and in training, the best first."""
    rows = []
    for result in sorted(found, key=lambda result: float(result["figures"]["choice_loss"])):
        settings, figures = result["settings"], result["figures"]
        rate = f"{settings['lr']:g}" + (f", {settings['lr'] * settings['ratio']:g}" if settings.get("ratio") else "")
        rows.append([
            name_way(settings), f"{figures['parameters']:,}", rate, settings["steps"], settings["seed"],
            f"{figures['choice_loss']:.4f}", f"{figures['train_loss']:.4f}",
        ])  # fmt: skip
    header = ["way", "trained", "rate (lora_A, lora_B)", "steps", "seed", "loss, validation", "loss, last ten steps"]
    return as_table(header, rows)
