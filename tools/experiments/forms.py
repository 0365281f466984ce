"""Variants of NOLA at equal coefficients: the rank (Table 3), a shared basis (Table 2), the kind of basis.

    python tools/experiments/forms.py ranks|shared|bases [--made] [--json FILE] [--plot FILE]

On E2E NLG, 40 steps; k = 128 for ranks and the shared basis, k = 32 and three seeds for kinds of basis. Times are in
`tools/bench/training_speed.py`.
"""

from __future__ import annotations

from statistics import mean, stdev

from command import arguments
from e2e import Run, results
from runs import BASES, RANKS, SHARED
from tables import plot_curve, show


def main() -> None:
    """Table, JSON, plot."""
    options = arguments(__doc__, what=("ranks", "shared", "bases"))
    curves: dict[str, list[tuple[float, float]]] = {}
    if options.what == "ranks":
        found = results(RANKS, made_before=options.made)
        rows = [[f"rank {r['rank']}", f"{r['parameters']:,}", f"{r['loss']:.4f}"] for r in found]
        header = ["rank", "trained", "loss"]
        curves["k = 128"] = [(r["rank"], r["loss"]) for r in found]
    elif options.what == "shared":
        found = results(SHARED, made_before=options.made)
        names = ["a basis each", "shared by shape"]
        rows = [[n, f"{r['loss']:.4f}"] for n, r in zip(names, found, strict=True)]
        header = ["basis", "loss"]
        curves["k = 128"] = [(index + 1, r["loss"]) for index, r in enumerate(found)]
    else:
        found = results(BASES, made_before=options.made)
        by: dict[str, list[Run]] = {}
        for run in found:
            by.setdefault(run["basis"], []).append(run)
        seeds = sorted({run["seed"] for run in found})
        rows = []
        for name, own in by.items():
            losses = {run["seed"]: run["loss"] for run in own}
            spread = f"{stdev(losses.values()):.4f}" if len(losses) > 1 else ""
            each = [f"{losses[seed]:.4f}" if seed in losses else "" for seed in seeds]
            rows.append([name, *each, f"{mean(losses.values()):.4f}", spread])
        header = ["basis", *(f"seed {seed}" for seed in seeds), "mean", "deviation"]
        curves = {name: [(r["seed"] + 1, r["loss"]) for r in own] for name, own in by.items()}
    show(header, rows, options.json, {"runs": found})
    if options.plot:
        axis = {"ranks": "rank", "shared": "1: a basis each, 2: shared", "bases": "seed"}[options.what]
        plot_curve(options.plot, curves, {}, "E2E NLG, 192 held-out rows", x=axis)


if __name__ == "__main__":
    main()
