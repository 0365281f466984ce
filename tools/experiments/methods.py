"""E2E NLG on SmolLM2-135M by seven ways of fine-tuning, at equal steps.

    python tools/experiments/methods.py [--made] [--json FILE] [--plot FILE]

LoRA of rank 8 and 1, NOLA, PRANC, VeRA, RandLoRA: held-out loss and BLEU, numbers trained, bytes of the `.nola` file
(of LoRA: its fp16 tensors), time a step, memory. Runs that were made before are not made again; see `e2e.py`.
"""

from __future__ import annotations

from command import arguments, base_loss
from e2e import results
from runs import METHODS
from tables import plot_curve, show

NAMES = {"lora": "LoRA", "nola": "NOLA", "pranc": "PRANC", "vera": "VeRA", "randlora": "RandLoRA"}


def main() -> None:
    """Table, JSON, plot."""
    options = arguments(__doc__)
    found = results(METHODS, made_before=options.made)
    base, plain = base_loss(), next(run["ms_per_step"] for run in found if run["method"] == "lora")
    rows = [["base model", "", "", f"{base:.4f}", "", "", ""]]
    for run in found:
        name = f"{NAMES[run['method']]}" + (f" r={run['rank']}" if "rank" in run else "")
        name += f" k={run['num_basis']}" if "num_basis" in run else ""
        rows.append([
            name, f"{run['parameters']:,}", f"{run['bytes']:,}", f"{run['loss']:.4f}", f"{run['bleu']:.1f}",
            f"{run['ms_per_step'] / plain:.2f}", f"{run['peak_mib']:,.0f}",
        ])  # fmt: skip
    header = ["method", "trained", "bytes", "loss", "BLEU", "time a step, LoRA r=8 = 1", "peak MiB"]
    show(header, rows, options.json, {"base": base, "runs": found})
    if options.plot:
        curves = {NAMES[m]: [(r["parameters"], r["loss"]) for r in found if r["method"] == m] for m in NAMES}
        plot_curve(options.plot, curves, {}, "E2E NLG, 192 held-out rows", x="numbers trained")


if __name__ == "__main__":
    main()
