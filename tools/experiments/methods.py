"""E2E NLG on SmolLM2-135M by several ways of fine-tuning, at equal steps.

    python tools/experiments/methods.py [all|small|quantized] [--seeds 0 1 2] [--made] [--anew] [--plot FILE]

all        LoRA of rank 8 and 1, NOLA and VeRA on all layers, 100 steps
small      the same but VeRA, and PRANC and RandLoRA, on the last four layers, 20 steps
quantized  LoRA and NOLA on a base whose weights were rounded to 8 bits, 40 steps

Held-out loss, numbers trained, and bytes of the `.nola` file (of LoRA: its fp16 tensors). Runs that were made before
are not made again; see `e2e.py`. BLEU is in `bleu.py`, and the time of a step in `tools/bench/training_speed.py`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import e2e
import results
from page_tables import e2e as tables
from runs import methods, quantized_base, small_methods
from tables import plot_curve

RUNS = {"all": methods, "small": small_methods, "quantized": quantized_base}


def base_loss(base_bits: int | None) -> dict[str, float]:
    """Return the held-out loss of the base model, its weights rounded or not."""
    task = e2e.Task()
    if base_bits is not None:
        e2e.round_base(task.model, base_bits)
    return {"loss": task.loss(task.model)}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=list(RUNS), default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--made", action="store_true", help="only runs that were made before; the others are left out")
    parser.add_argument("--plot", type=Path, help="write a plot of loss against numbers trained here: .svg or .png")
    results.add_options(parser)
    options = parser.parse_args()
    if not options.made:
        for bits in (None, 8) if options.what == "quantized" else (None,):
            run = {"method": "base"} if bits is None else {"method": "base", "base_bits": bits}
            results.measure("e2e", run, partial(base_loss, bits), anew=options.anew)
    found: list[e2e.Run] = []
    for seed in options.seeds:
        found += e2e.results(RUNS[options.what](seed), made_before=options.made, anew=options.anew)
    table = {"all": tables.methods, "small": tables.small, "quantized": tables.quantized_base}[options.what]
    print(table(results.read("e2e")))
    if options.plot:
        curves: dict[str, list[tuple[float, float]]] = {}
        for done in found:
            curves.setdefault(done["method"], []).append((done["parameters"], done["loss"]))
        plot_curve(options.plot, curves, {}, "E2E NLG, 192 held-out rows", x="numbers trained")


if __name__ == "__main__":
    main()
