"""Coefficients of few bits, rounded after training and during it (NOLA, Table 4), on E2E NLG.

python tools/experiments/quantization.py [--made] [--anew]
"""

from __future__ import annotations

import argparse

import e2e
import results
from page_tables.e2e import rounding
from runs import QUANTIZED, methods


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made", action="store_true", help="only runs that were made before; the others are left out")
    results.add_options(parser)
    options = parser.parse_args()
    runs = [run for run in methods(0) if "ptq" in run] + QUANTIZED
    e2e.results(runs, made_before=options.made, anew=options.anew)
    print(rounding(results.read("e2e")))


if __name__ == "__main__":
    main()
