"""The table of `tools/bench/dense_delta.py`: the change of a whole model, at shares of its 16-bit size."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from results import as_table, show_share

ROWS = 96
_OWN_TO_A_SEED = re.compile(r", [\d.]+% kept|, seed \d+")
_NAMES = {"base": "base model", "tuned": "tuned model", "tuned, embeddings too": "tuned model, with its embeddings"}


def losses(found: Sequence[dict[str, Any]]) -> str:
    """Return bytes and loss of each file, by the share that was asked for; random rivals as means over their seeds."""
    groups: dict[tuple[Any, str], list[dict[str, Any]]] = {}
    for result in found:
        settings = result["settings"]
        if settings["rows"] == ROWS:
            name = _OWN_TO_A_SEED.sub("", settings["what"])
            groups.setdefault((settings["ratio"], name), []).append(result["figures"])
    means = {
        key: (max(f.get("bytes", 0) for f in own), statistics.fmean(f["loss"] for f in own), len(own))
        for key, own in groups.items()
    }
    base, tuned = (means[None, what][1] for what in ("base", "tuned"))

    def place(key: tuple[Any, str]) -> tuple[bool, float, float]:
        ratio, name = key
        return not name.startswith(("base", "tuned")), ratio or 0, means[key][1] if ratio else 0

    rows = []
    for ratio, name in sorted(means, key=place):
        count, loss, seeds = means[ratio, name]
        shown = "nola-codec" if name.startswith("ours") else _NAMES.get(name, name)
        rows.append(
            [
                shown + (f", {seeds} seeds" if seeds > 1 else ""), f"1/{ratio:g}" if ratio else "",
                f"{count:,}" if count else "", f"{loss:.4f}", show_share(base, tuned, loss),
            ]
        )  # fmt: skip
    return as_table(["what", "at most", "bytes", "loss", "of the gain"], rows)
