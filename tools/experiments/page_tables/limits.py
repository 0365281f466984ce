"""The table of `tools/bench/limits.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results import Result, as_table

ROWS = ("decode", "encode", "encode-small", "merge", "merge-3b", "startup")
"""The names by which the program knows its rows, in the order of the table."""
Line = Mapping[str, Any]


def lines(found: Sequence[Line]) -> str:
    """Return lines of the table as Markdown; each is what `Row.to_dict` of the program returns."""
    cells = []
    for line in found:
        if line["limit"] is None:
            value, goal, limit = f"{line['value']:.3g} {line['unit']}", f"{line['goal']:g} {line['unit']}", ""
        else:
            sign = "x faster" if line["faster"] else "x"
            value, goal = f"{line['value']:.2f}{sign}", f"{line['goal']:g}{sign}"
            limit = f"{line['limit']['name']}: {_cost(line['limit'])}"
        peers = "; ".join(f"{name}: {_cost(figures)}" for name, figures in line["peers"].items())
        cells.append([line["name"], _cost(line["ours"]), limit, value, goal, "yes" if line["met"] else "no", peers])
    return as_table(["", "nola-codec", "limit", "value", "goal", "met", "others"], cells)


def all_rows(found: list[Result]) -> str:
    """Ours, the limit and the peers of each row, with the goal."""
    kept = {result["settings"]["row"]: result["figures"]["lines"] for result in found}
    return lines([line for name in ROWS for line in kept.get(name, [])])


def _cost(figures: Mapping[str, Any]) -> str:
    """Return the time of a program, and the memory if it is known; or why it was not run."""
    if "failed" in figures:
        return f"not run: {figures['failed']}"
    memory = figures.get("memory", figures.get("peak", 0))
    return f"{figures['seconds']:.3f} s" + (f", {memory / 1e6:,.0f} MB" if memory else "")
