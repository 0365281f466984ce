"""The table of `tools/bench/side_information.py`."""

from __future__ import annotations

from results import Result, as_table

_SIZES = ("5KB", "10KB", "30KB", "90KB")


def sides(found: list[Result]) -> str:
    """Side information of each adapter and size in both revisions, with its share and the effective error."""
    figures = {tuple(r["settings"][key] for key in ("adapter", "size", "label")): r["figures"] for r in found}
    rows = []
    for adapter in sorted({name for name, _, _ in figures}):
        for size in _SIZES:
            old, new = (figures.get((adapter, size, f"revision {number}")) for number in (1, 2))
            if old is None or new is None:
                continue
            sides = [f"{f['side']:,}" for f in (old, new)]
            shares = [f"{f['side'] / f['bytes']:.1%}" for f in (old, new)]
            errors = ["" if f["effective_error"] is None else f"{f['effective_error']:.4f}" for f in (old, new)]
            rows.append([adapter, size.replace("KB", " KB"), *sides, *shares, *errors])
    header = ["adapter", "size", "side bytes before", "now", "share before", "now", "effective error before", "now"]
    return as_table(header, rows)
