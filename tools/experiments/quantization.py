"""Coefficients of few bits, rounded after training and during it (NOLA, Table 4), on E2E NLG.

python tools/experiments/quantization.py [--made] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

from command import arguments
from e2e import results
from runs import METHODS, QUANTIZED
from tables import plot_curve, show


def main() -> None:
    """Table, JSON, plot."""
    options = arguments(__doc__)
    trained = results([run for run in METHODS if run["method"] == "nola"], made_before=options.made)
    aware = results(QUANTIZED, made_before=options.made)
    rows, curves = [], {}
    for run in trained:
        losses = {"16": run["loss"], **run["ptq"]}
        own = {str(r["bits"]): r["loss"] for r in aware if r["num_basis"] == run["num_basis"]}
        for bits, loss in losses.items():
            rows.append([
                f"k={run['num_basis']}, {bits} bits", f"{loss:.4f}", f"{loss - run['loss']:+.4f}",
                f"{own[bits]:.4f}" if bits in own else "", f"{own[bits] - run['loss']:+.4f}" if bits in own else "",
            ])  # fmt: skip
        curves[f"k={run['num_basis']}, rounded after"] = [(int(b), v) for b, v in losses.items()]
        if own:
            curves[f"k={run['num_basis']}, trained so"] = [(int(b), v) for b, v in own.items()]
    header = ["coefficients", "rounded after training", "against 16 bits", "trained so", "against 16 bits"]
    show(header, rows, options.json, {"after": trained, "during": aware})
    if options.plot:
        plot_curve(options.plot, curves, {}, "E2E NLG, 192 held-out rows", x="bits a coefficient")


if __name__ == "__main__":
    main()
