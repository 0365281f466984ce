"""The tables of `tools/experiments/references.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results import as_table, select

_TARGETS = {"NMSE 0.1": "NMSE of 0.1", "NMSE 0.03": "NMSE of 0.03", "default": "default error"}


def pair(found: Sequence[dict[str, Any]]) -> str:
    """Return the bytes of the later of two checkpoints: alone, and against the earlier one."""
    rows = []
    for target, title in _TARGETS.items():
        sizes = {}
        for kind in ("none", "decoded", "exact"):
            (result,) = select(found, target=target, reference=kind)
            sizes[kind] = result["figures"]["bytes"]
        saved = [f"{1 - sizes[kind] / sizes['none']:.0%}" for kind in ("decoded", "exact")]
        rows.append([title, f"{sizes['none']:,}", f"{sizes['decoded']:,}", saved[0], f"{sizes['exact']:,}", saved[1]])
    header = ["target", "alone", "against the earlier file", "saved", "against the earlier adapter", "saved"]
    return as_table(header, rows)


def chain(found: Sequence[dict[str, Any]]) -> str:
    """Return the bytes of the checkpoints of a run, as files alone and as one chain."""
    rows = []
    for target, title in _TARGETS.items():
        totals = {}
        for is_chain in (False, True):
            (result,) = select(found, target=target, chain=is_chain)
            sizes = result["figures"]["bytes"]
            totals[is_chain] = sum(sizes)
            name = "one chain" if is_chain else "files alone"
            saved = f"{1 - totals[True] / totals[False]:.0%}" if is_chain else ""
            rows.append([f"{title}, {name}", *(f"{size:,}" for size in sizes), f"{totals[is_chain]:,}", saved])
    steps = [f"step {12 * (number + 1)}" for number in range(len(rows[0]) - 3)]
    return as_table(["target", *steps, "together", "saved"], rows)


def losses(found: Sequence[dict[str, Any]]) -> str:
    """Return the held-out losses of the last checkpoint and of its files."""
    titles = {
        "base": "base model", "adapter": "the checkpoint", "alone, NMSE 0.1": "NMSE of 0.1, alone",
        "chain, NMSE 0.1": "NMSE of 0.1, end of the chain", "alone, default": "default error, alone",
        "chain, default": "default error, end of the chain",
    }  # fmt: skip
    measured = {r["settings"]["loss of"]: r["figures"]["loss"] for r in found if "loss of" in r["settings"]}
    gain = measured["base"] - measured["adapter"]
    return as_table(
        ["of step 60", "loss", "of the gain"],
        [
            [title, f"{measured[key]:.4f}", f"{(measured['base'] - measured[key]) / gain:.1%}"]
            for key, title in titles.items()
        ],
    )
