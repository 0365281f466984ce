"""The table of `tools/bench/revision_sizes.py`."""

from __future__ import annotations

import math
from typing import Any

from results import Result, as_table, select

OLDER, NEWER = "revision 2", "revision 3"
SAVINGS = ("differences of points", "quantizers of amplitudes", "offsets of rows")
"""Constructs of `tools/bench/constructs.py`. Revision 3 does not have the last one."""
_ERRORS = ("effective_error", "nmse")
Curve = dict[int, dict[str, Any]]
"""The figures of an adapter by nominal size in kilobytes."""


def revision_sizes(found: list[Result]) -> str:
    """Bytes of both revisions at each size, summed over all adapters, at equal effective error and at equal NMSE."""
    rows = []
    for size, each in compare(found).items():
        shares = [f"{each[error] / each['bytes'] - 1:+.2%}" for error in _ERRORS]
        rows.append([size, each["files"], f"{each['bytes']:,}", f"{each['effective_error']:,.0f}", *shares])
    head = ["size", "adapters", OLDER, NEWER, "at equal effective error", "at equal NMSE"]
    return as_table(head, rows)


def savings(found: list[Result]) -> str:
    """The share of all bytes of files of revision 3 that each construct saves, or would save, at each size."""
    sizes = sorted({r["settings"]["size"] for r in found}, key=lambda size: int(size.removesuffix("KB")))
    by_size = [[r["figures"] for r in select(found, label=NEWER, size=size)] for size in sizes]
    rows = []
    for name in SAVINGS:
        shares = [sum(f["saved"][name] for f in own) / sum(f["bytes"] for f in own) for own in by_size]
        rows.append([name, *(f"{share:.2%}" for share in shares)])
    return as_table(["construct", *(size.replace("KB", " KB") for size in sizes)], rows)


def compare(found: list[Result]) -> dict[str, dict[str, Any]]:
    """Return, for each size, how many adapters both labels have; the bytes of the older label's files, summed; and
    for each kind of error the bytes that files of the newer label would have at the older one's errors, summed.
    """
    older, newer = _curves(found, OLDER), _curves(found, NEWER)
    made: dict[str, dict[str, Any]] = {}
    for name in sorted(older.keys() & newer.keys()):
        for size in sorted(older[name].keys() & newer[name].keys()):
            own = made.setdefault(f"{size} KB", {"files": 0, "bytes": 0, **dict.fromkeys(_ERRORS, 0.0)})
            own["files"] += 1
            own["bytes"] += older[name][size]["bytes"]
            for error in _ERRORS:
                own[error] += _bytes_at(newer[name], size, error, older[name][size][error])
    return made


def _curves(found: list[Result], label: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for result in select(found, label=label):
        size = int(result["settings"]["size"].removesuffix("KB"))
        curves.setdefault(result["settings"]["adapter"], {})[size] = result["figures"]
    return curves


def _bytes_at(curve: Curve, size: int, error: str, wanted: float) -> float:
    """Return the bytes of a file with the error `wanted`, near the file of a nominal size."""
    own = curve[size]
    others = [at for at in sorted(curve, key=lambda at: abs(math.log(at / size))) if at != size]
    for at in others:
        gap = math.log(curve[at][error] / own[error])
        if gap:
            return float(
                own["bytes"]
                * math.exp(math.log(curve[at]["bytes"] / own["bytes"]) / gap * math.log(wanted / own[error]))
            )
    return float(own["bytes"])
