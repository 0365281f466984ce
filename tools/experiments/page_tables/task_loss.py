"""The tables of `tools/bench/task_loss.py`: our files beside truncated and rounded SVDs, and beside rivals."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import as_table, show_share

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from task_peers import BASE, FULL, OURS, PEER, Result, ratios

ROWS = 96
_ORDER = (BASE, FULL, OURS, PEER)
_SVD = re.compile(r"SVD fp16, |SVD r=[1248], [24]-bit")
_SEED = re.compile(r" seed \d+$")
_HEADER = ["what", "bytes", "seeds", "loss", "of the gain", "bytes / ours at equal loss"]


def sizes(found: Sequence[dict[str, Any]]) -> str:
    """Return bytes and loss of our files, as means over seeds, and of truncated and rounded SVDs."""
    rows = [row for row in _rows(found) if row.kind != PEER or _SVD.match(row.name)]
    return _as_page(rows)


def rivals(found: Sequence[dict[str, Any]]) -> str:
    """Return bytes and loss of our files and of the rivals' files, and a rival's bytes over ours at equal loss."""
    return _as_page([row for row in _rows(found) if row.kind != PEER or not row.name.startswith(("SVD", "DARE"))])


def _rows(found: Sequence[dict[str, Any]]) -> list[Result]:
    """Return the newest result of each name, in the order of the table."""
    newest = {}
    for result in found:
        settings, figures = result["settings"], result["figures"]
        if settings["rows"] == ROWS:
            kind, name = settings["kind"], settings["what"]
            newest[name] = Result(kind, name, figures["bytes"], figures["loss"], settings["group"])
    return sorted(newest.values(), key=lambda row: (_ORDER.index(row.kind), row.name.split()[0], -row.bytes, row.name))


def _as_page(rows: Sequence[Result]) -> str:
    """Return the table; the seeds of one of our sizes make one row."""
    base, full = rows[0].loss, rows[1].loss
    groups: dict[str, list[tuple[Result, str]]] = {}
    for row, ratio in zip(rows, ratios(rows), strict=True):
        groups.setdefault(_SEED.sub("", row.name), []).append((row, ratio))
    shown = []
    for name, own in groups.items():
        losses = [row.loss for row, _ in own]
        loss = statistics.fmean(losses)
        spread = f", ± {statistics.stdev(losses):.4f}" if len(own) > 1 else ""
        seeds = f"{len(own)}{spread}" if own[0][0].kind == OURS else ""
        share = show_share(base, full, loss)
        shown.append([name, f"{max(row.bytes for row, _ in own):,}", seeds, f"{loss:.4f}", share, own[0][1]])
    return as_table(_HEADER, shown)
