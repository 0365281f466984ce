"""The table of `tools/bench/constructs.py`."""

from __future__ import annotations

from collections.abc import Sequence

from results import Result, as_table

_SIZES = ("5KB", "10KB", "30KB", "90KB", "500KB")
_PAPER = ("paper", "paper-1")
_DECISIONS = {
    "rANS": "kept",
    "header dictionary": "kept",
    "adaptive integers": "kept",
    "offsets of rows": "dropped",
    "amplitude slope": "kept",
    "amplitudes of kinds": "kept",
    "shifts of sides": "kept",
    "zstd for symbols": "dropped",
    "symmetric codebooks": "dropped",
    "midrise codebooks": "dropped",
    "midtread codebooks up to 8 bits": "dropped",
    "precisions of earlier rungs": "dropped",
    "threefry2x32-20": "dropped",
}
"""What was decided for revision 3 of the draft."""


def constructs(found: list[Result]) -> str:
    """What each construct saves: a share of all bytes at each size, of the component form and of the factor form."""
    rows = []
    for name, decision in _DECISIONS.items():
        own = [r for r in found if r["settings"]["form"] not in _PAPER]
        paper = [r for r in found if r["settings"]["form"] in _PAPER]
        shares = [_share([r for r in own if r["settings"]["size"] == size], name) for size in _SIZES]
        files = sum(name in r["figures"]["used"] for r in found)
        largest = max((_saved(r, name) / r["figures"]["bytes"] for r in found), default=0.0)
        rows.append([name, decision, f"{files} of {len(found)}", *shares, _share(paper, name), f"{largest:.2%}"])
    sizes = [size.replace("KB", " KB") for size in _SIZES]
    return as_table(["construct", "", "files that have it", *sizes, "factor form", "most of one file"], rows)


def _saved(result: Result, name: str) -> int:
    saved: int = result["figures"]["saved"].get(name, 0)
    return saved


def _share(found: Sequence[Result], name: str) -> str:
    """Return the bytes that a construct saves as a share of the bytes of all these files."""
    total = sum(r["figures"]["bytes"] for r in found)
    return f"{sum(_saved(r, name) for r in found) / total:.2%}" if total else ""
