"""The tables of `rules.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results import as_table, mean_and_spread, select, show_share

Found = Sequence[dict[str, Any]]

RULE = "ratio=falling rows=0.01 boost=0.75"
"""The rule of the encoder."""
TASKS = {"e2e": ("E2E NLG, SmolLM2-135M", 96), "banking77": ("Banking77, MiniLM", 1024)}
"""The name of each task, and the rows of its test set that are measured."""


def losses(found: Found, task: str, split: str, rows: int) -> str:
    """Return the mean loss and share of the gain of each rule at each size, on some rows of a task."""
    own = select(found, task=task, split=split, rows=rows)
    base, full = (float(select(own, rule=rule)[0]["figures"]["loss"]) for rule in ("base", "adapter"))
    made = [result for result in own if result["settings"].get("size")]
    lines = []
    for size in sorted({result["settings"]["size"] for result in made}):
        alike = select(made, size=size)
        for rule, factor in dict.fromkeys((r["settings"]["rule"], r["settings"]["times"]) for r in alike):
            same = select(alike, rule=rule, times=factor)
            loss, spread = mean_and_spread(same, "loss")
            facts = same[0]["figures"]
            name = rule if factor == 1 else f"{rule}, times {factor:g}"
            lines.append(
                [f"{size / 1000:g} KB, {name}", "{:g}, {:g}".format(*facts["gamma"]), f"{facts['noise']:.2f}",
                 facts["kept"], f"{loss:.4f}", "" if spread is None else f"{spread:.4f}", len(same),
                 show_share(base, full, loss)]
            )  # fmt: skip
    header = ["size, rule", "gammas", "noise", "components", "loss", "spread", "seeds", "of the gain"]
    return as_table(header, lines)


def e2e_valid(found: Found) -> str:
    """Return the table of E2E that the rule was chosen by."""
    return losses(found, "e2e", "valid", 24)


def banking77_other(found: Found) -> str:
    """Return the table of Banking77 that the rule was chosen by."""
    return losses(found, "banking77", "other", 512)


def e2e_test(found: Found) -> str:
    """Return the table of E2E on the rows of the benchmarks."""
    return losses(found, "e2e", "test", 96)


def banking77_test(found: Found) -> str:
    """Return the table of Banking77 on the rows of the benchmarks."""
    return losses(found, "banking77", "test", 1024)


def evidence(found: Found) -> str:
    """Return the table of the effective error and the share of the gain of the encoder's files, mean of their seeds."""
    lines = []
    for task, (name, rows) in TASKS.items():
        own = select(found, task=task, split="test", rows=rows)
        base, full = (float(select(own, rule=rule)[0]["figures"]["loss"]) for rule in ("base", "adapter"))
        files = select(own, rule=RULE, times=1.0)
        for size in sorted({result["settings"]["size"] for result in files}, reverse=True):
            alike = select(files, size=size)
            loss, error = mean_and_spread(alike, "loss")[0], mean_and_spread(alike, "effective_error")[0]
            kept = (base - loss) / (base - full)
            lines.append([name, f"{size / 1000:g} KB", len(alike), f"{error:.4f}", f"{kept:.1%}"])
    return as_table(["task", "size", "seeds", "effective error", "of the gain"], lines)
