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
    "adapter_on_data": "the task's data, `--against adapter`",
    "data_and_adapter": "the task's data, `--against both`",
}
USUAL_STEPS = 100
"""The steps of the files that are compared with one another; files from the weights alone have none."""


def losses(found: Sequence[results.Result]) -> str:
    """Return one row for each size and door: the bytes, the loss and the share of the gain, means over seeds.

    Until base model and adapter have been measured, they have no rows, and there are no shares.
    """
    ends = results.losses_of_ends(found)
    base, full = ends.get("base"), ends.get("adapter")
    runs = [r for r in found if "size" in r["settings"]]
    rows: list[list[object]] = []
    if base is not None:
        rows.append(["base model", "", "", "", f"{base:.4f}", ""])
    if full is not None:
        rows.append(["adapter, fp16", "", "4,884,480", "", f"{full:.4f}", "100.0%"])
    keys = {(r["settings"]["size"], r["settings"]["door"], r["settings"]["steps"]) for r in runs}
    for size, door, steps in sorted(keys, key=lambda key: (-_bytes(key[0]), list(DOORS).index(key[1]), key[2])):
        own = results.select(runs, size=size, door=door, steps=steps)
        loss, spread = results.mean_and_spread(own, "loss")
        count = f"{len(own)}" if spread is None else f"{len(own)}, ± {spread:.4f}"
        most = max(r["figures"]["bytes"] for r in own)
        share = "" if base is None or full is None else results.show_share(base, full, loss)
        rows.append(
            [size, DOORS[door] + (f", {steps} steps" if steps else ""), f"{most:,}", count, f"{loss:.4f}", share]
        )
    return results.as_table(["file", "given besides base and adapter", "bytes", "seeds", "loss", "of the gain"], rows)


def curves(found: Sequence[results.Result]) -> dict[str, list[tuple[float, float]]]:
    """Return the points (bytes, loss) of each door, means over seeds."""
    return {
        DOORS[door]: [
            (results.mean_and_spread(own, "bytes")[0], results.mean_and_spread(own, "loss")[0])
            for own in sizes.values()
        ]
        for door, sizes in _usual_runs(found).items()
    }


def overview(found: Sequence[results.Result]) -> str:
    """Return one row for each size: the share of the gain that files of each door keep, and the number of seeds."""
    ends = results.losses_of_ends(found)
    doors = _usual_runs(found)

    def share(own: Sequence[results.Result] | None) -> str:
        if not own:
            return ""
        loss = results.mean_and_spread(own, "loss")[0]
        return f"{results.show_share(ends['base'], ends['adapter'], loss)} ({len(own)})"

    sizes = sorted({size for own in doors.values() for size in own}, key=_bytes, reverse=True)
    rows = [[size, *(share(own.get(size)) for own in doors.values())] for size in sizes]
    return results.as_table(["size", *(DOORS[door] for door in doors)], rows)


def _usual_runs(found: Sequence[results.Result]) -> dict[str, dict[str, list[results.Result]]]:
    """Return the runs by door and size, with the usual number of steps and usual prompts."""
    doors: dict[str, dict[str, list[results.Result]]] = {door: {} for door in DOORS if door != "prompts_in_use"}
    for run in found:
        settings = run["settings"]
        if settings["door"] in doors and "size" in settings and settings["steps"] in (0, USUAL_STEPS):
            doors[settings["door"]].setdefault(settings["size"], []).append(run)
    return {door: sizes for door, sizes in doors.items() if sizes}


def _bytes(size: str) -> int:
    return int(size.removesuffix("KB"))


def gain(found: Sequence[results.Result]) -> str:
    """Return the line of `TAUGHT` in the package: the shares of the gain in 5 KB."""
    alone, taught = results.shares_of_gain(found, "5KB", ("weights", "prompts"))
    return f'"E2E NLG, SmolLM2-135M, sixteen prompts": (5, {alone:.3f}, {taught:.3f}),'
