"""The table of `tools/bench/task_loss.py` with the rivals that round an adapter without data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import as_table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from task_peers import BASE, FULL, OURS, PEER, Result, ratios

ROWS = 96
_ORDER = (BASE, FULL, OURS, PEER)


def rivals(found: Sequence[dict[str, Any]]) -> str:
    """Return bytes and loss of our files and of the rivals' files, and a rival's bytes over ours at equal loss."""
    newest = {}  # a later result of one name replaces an earlier one
    for result in found:
        settings, figures = result["settings"], result["figures"]
        if settings["rows"] == ROWS and not settings["what"].startswith(("SVD", "DARE")):
            kind, name = settings["kind"], settings["what"]
            newest[name] = Result(kind, name, figures["bytes"], figures["loss"], settings["group"])
    rows = sorted(newest.values(), key=lambda row: (_ORDER.index(row.kind), row.name.split()[0], -row.bytes))
    base, full = rows[0].loss, rows[1].loss
    shown = [
        [row.name, f"{row.bytes:,}", f"{row.loss:.4f}", f"{(base - row.loss) / (base - full):.1%}", ratio]
        for row, ratio in zip(rows, ratios(rows), strict=True)
    ]
    return as_table(["what", "bytes", "loss", "of the gain", "bytes / ours at equal loss"], shown)
