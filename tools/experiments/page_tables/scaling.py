"""The tables of `tools/bench/scaling.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from results import Result, as_table

Figures = Mapping[str, Any]


def jobs(axis: str) -> tuple[str, str]:
    """Return what is measured at each point of an axis."""
    return ("add all", "switch") if axis == "tasks" else ("encode", "decode")


def clock(axis: str) -> str:
    """Return the time that counts on an axis: that of the processor, or that of a clock where threads vary."""
    return "seconds" if axis == "threads" else "cpu"


def exponents(points: Sequence[Figures], cost: Callable[[Figures], float]) -> list[float | None]:
    """Return the exponent of each step: log(cost ratio) / log(x ratio); None for the first point."""
    steps: list[float | None] = [None]
    for before, after in itertools.pairwise(points):
        ratio = cost(after) / max(cost(before), 1e-9)
        steps.append(math.log(max(ratio, 1e-9)) / math.log(after["x"] / before["x"]))
    return steps


def _cost(point: Figures, job: str, time: str) -> float:
    return float(point[job][time])


def axis_table(axis: str, points: Sequence[Figures]) -> str:
    """Return the table of an axis as Markdown."""
    time = clock(axis)
    steps = {job: exponents(points, partial(_cost, job=job, time=time)) for job in jobs(axis)}
    rows = []
    for number, point in enumerate(points):
        row = [f"{point['x']:,}", f"{point['parameters']:,}"]
        for job in jobs(axis):
            step = steps[job][number]
            row += [f"{1000 * point[job][time]:,.1f}", "" if step is None else f"{step:.2f}"]
            row += [f"{point[job]['memory'] / 1e6:,.1f}"]
        rows.append(row)
    titles = [title for job in jobs(axis) for title in (f"{job}, ms", "exponent", "MB")]
    return as_table([axis, "parameters", *titles], rows)


def largest(found: list[Result]) -> str:
    """The first and the last point of each axis, and the exponents of its last step."""
    rows = []
    for result in found:
        axis, points = result["settings"]["axis"], result["figures"]["points"]
        first, last, time = points[0], points[-1], clock(result["settings"]["axis"])
        for job in jobs(axis):
            step = exponents(points, partial(_cost, job=job, time=time))[-1]
            rows.append([
                axis, job, f"{first['x']:,}", f"{1000 * first[job][time]:,.1f} ms", f"{last['x']:,}",
                f"{1000 * last[job][time]:,.1f} ms", f"{last[job]['memory'] / 1e6:,.1f} MB", f"{step:.2f}",
            ])  # fmt: skip
    header = ["axis", "job", "from", "time", "to", "time", "memory", "exponent of the last step"]
    return as_table(header, rows)
