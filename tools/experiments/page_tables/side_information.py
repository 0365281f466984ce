"""The tables of `tools/bench/side_information.py`."""

from __future__ import annotations

from results import Result, as_table, select

_SIZES = ("5KB", "10KB", "30KB", "90KB")


def sides(found: list[Result]) -> str:
    """Side information of each adapter and size in revisions 2 and 3, with its share and the effective error."""
    figures = {tuple(r["settings"][key] for key in ("adapter", "size", "label")): r["figures"] for r in found}
    rows = []
    for adapter in sorted({name for name, _, _ in figures}):
        for size in _SIZES:
            old, new = (figures.get((adapter, size, f"revision {number}")) for number in (2, 3))
            if old is None or new is None:
                continue
            sides = [f"{f['side']:,}" for f in (old, new)]
            shares = [f"{f['side'] / f['bytes']:.1%}" for f in (old, new)]
            errors = ["" if f["effective_error"] is None else f"{f['effective_error']:.4f}" for f in (old, new)]
            rows.append([adapter, size.replace("KB", " KB"), *sides, *shares, *errors])
    header = ["adapter", "size", "side bytes before", "now", "share before", "now", "effective error before", "now"]
    return as_table(header, rows)


def shares(found: list[Result]) -> str:
    """The mean share of each part of a file that is no coefficient, by size, in files of revision 3."""
    rows = []
    for size in _SIZES:
        own = [r["figures"] for r in select(found, label="revision 3", size=size)]
        parts = [sum(f[part] / f["bytes"] for f in own) / len(own) for part in ("prelude", "header", "units", "side")]
        rows.append([size.replace("KB", " KB"), len(own), *(f"{share:.1%}" for share in parts)])
    return as_table(["size", "files", "prelude", "header", "units", "together"], rows)
