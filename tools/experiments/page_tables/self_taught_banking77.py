"""The table of `self_taught_banking77.py`."""

from __future__ import annotations

from collections.abc import Sequence

from results import Result, as_table, mean_and_spread, select, shares_of_gain

NAME = "self_taught_banking77"
DOORS = {
    "base": "base model",
    "adapter": "adapter, fp16",
    "weights": "weights alone",
    "words": "self, random words",
    "texts": "self, texts without labels",
}


def losses(found: Sequence[Result]) -> str:
    """The loss and the accuracy of each way at each size, means over seeds."""
    sizes = sorted({r["settings"].get("size", "") for r in found}, key=lambda s: (bool(s), -float(s[:-2] or 0)))
    rows = []
    for size in sizes:
        for door, name in DOORS.items():
            own = select(found, door=door, size=size or None)
            if not own:
                continue
            loss, spread = mean_and_spread(own, "loss")
            accuracy, _ = mean_and_spread(own, "accuracy")
            rows.append(
                [name, size or f"{own[0]['figures']['bytes'] / 1000:.0f} KB", f"{loss:.3f}",
                 "" if spread is None else f"{spread:.3f}", f"{accuracy:.1%}", len(own)]
            )  # fmt: skip
    return as_table(["what", "size", "loss", "deviation", "accuracy", "seeds"], rows)


def gain(found: Sequence[Result]) -> str:
    """Return the line of `TAUGHT` in the package: the shares of the gain in 5 KB."""
    alone, taught = shares_of_gain(found, "5KB", ("weights", "texts"))
    return f'"Banking77, MiniLM, texts without labels": (5, {alone:.3f}, {taught:.3f}),'
