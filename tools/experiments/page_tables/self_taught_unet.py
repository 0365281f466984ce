"""The table of `self_taught_unet.py`."""

from __future__ import annotations

from collections.abc import Sequence

from results import Result, as_table, mean_and_spread, select

NAME = "self_taught_unet"


def errors(found: Sequence[Result]) -> str:
    """The error of the output at each size, before and after the training; means over seeds."""
    rows = []
    for size, steps in sorted({(r["settings"]["size"], r["settings"]["steps"]) for r in found}, reverse=True):
        own = select(found, size=size, steps=steps)
        base, start, file = (mean_and_spread(own, name)[0] for name in ("base", "start", "file"))
        rows.append([size, steps, f"{base:.3f}", f"{start:.3f}", f"{file:.3f}", f"{file / start:.2f}", len(own)])
    header = ["size", "steps", "no adapter", "weights alone", "trained", "trained / weights alone", "seeds"]
    return as_table(header, rows)
