"""The table of `self_taught.py`."""

from __future__ import annotations

from collections.abc import Sequence

import results

DOORS = {
    "weights": "nothing, and no training",
    "none": "nothing",
    "prompts": "16 prompts",
    "prompts_in_use": "16 prompts of `test.txt`",
    "data": "the task's data",
}


def losses(found: Sequence[results.Result]) -> str:
    """Return one row for each size and door: the bytes, the loss and the share of the gain, means over seeds.

    Until base model and adapter have been measured, they have no rows, and there are no shares.
    """
    ends = {r["settings"]["door"]: r["figures"]["loss"] for r in found if "size" not in r["settings"]}
    base, full = ends.get("base"), ends.get("adapter")
    runs = [r for r in found if "size" in r["settings"]]
    rows: list[list[object]] = []
    if base is not None:
        rows.append(["base model", "", "", "", f"{base:.4f}", ""])
    if full is not None:
        rows.append(["adapter, fp16", "", "4,884,480", "", f"{full:.4f}", "100.0%"])
    keys = {(r["settings"]["size"], r["settings"]["door"], r["settings"]["steps"]) for r in runs}
    for size, door, steps in sorted(keys, key=lambda key: (-int(key[0][:-2]), list(DOORS).index(key[1]), key[2])):
        own = results.select(runs, size=size, door=door, steps=steps)
        loss, spread = results.mean_and_spread(own, "loss")
        count = f"{len(own)}" if spread is None else f"{len(own)}, ± {spread:.4f}"
        most = max(r["figures"]["bytes"] for r in own)
        share = "" if base is None or full is None else f"{(base - loss) / (base - full):.1%}"
        rows.append(
            [size, DOORS[door] + (f", {steps} steps" if steps else ""), f"{most:,}", count, f"{loss:.4f}", share]
        )
    return results.as_table(["file", "given besides base and adapter", "bytes", "seeds", "loss", "of the gain"], rows)


def gain(found: Sequence[results.Result]) -> str:
    """Return the line of `TAUGHT` in the package: the shares of the gain in 5 KB."""
    alone, taught = results.shares_of_gain(found, "5KB", ("weights", "prompts"))
    return f'"E2E NLG, SmolLM2-135M, sixteen prompts": (5, {alone:.3f}, {taught:.3f}),'
