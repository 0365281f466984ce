"""The table of `tools/experiments/allotment.py`."""

from __future__ import annotations

from typing import Any

from results import Result, as_table, mean_and_spread

_MANY = 1_000_000


def name_way(settings: dict[str, Any]) -> str:
    """Return a name of a run for people."""
    if settings["method"] != "nola":
        return {"lora": "LoRA r=8", "unilora": "Uni-LoRA"}[settings["method"]]
    if settings.get("num_basis") == _MANY:
        return "NOLA with as many coefficients as numbers"
    if settings.get("num_basis"):
        return f"NOLA, k={settings['num_basis']}"
    if settings.get("projected"):
        return "NOLA, moments of the factors"
    if settings.get("only_B"):
        return "NOLA, all for lora_B"
    return "NOLA, shared out by gradients" if settings.get("allotted") else "NOLA, the same for each factor"


def ways(found: list[Result]) -> str:
    """Losses on validation rows and in training, means over seeds, the best first."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in found:
        settings = result["settings"]
        rate = f"{settings['lr']:g}" + (f", {settings['lr'] * settings['ratio']:g}" if settings.get("ratio") else "")
        groups.setdefault((name_way(settings), rate, settings["steps"]), []).append(result)
    rows = []
    for (name, rate, steps), own in groups.items():
        loss, spread = mean_and_spread(own, "choice_loss")
        rows.append((loss, [
            name, f"{own[0]['figures']['parameters']:,}", rate, steps, len(own), f"{loss:.4f}",
            "" if spread is None else f"{spread:.4f}", f"{mean_and_spread(own, 'train_loss')[0]:.4f}",
        ]))  # fmt: skip
    header = ["way", "trained", "rate (lora_A, lora_B)", "steps", "seeds", "loss, validation", "deviation",
              "loss, last ten steps"]  # fmt: skip
    return as_table(header, [row for _, row in sorted(rows, key=lambda item: item[0])])
