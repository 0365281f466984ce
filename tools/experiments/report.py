"""Options of the experiments, their results as tables and JSON, and plots that come out the same each time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLOTS = ROOT / "docs" / "experiments"
sys.path.insert(0, str(ROOT / "tools" / "bench"))

from common import table  # noqa: E402 - of the benchmarks

__all__ = ["PLOTS", "Result", "finish", "options", "say"]

Result = dict[str, Any]


def options(parser: argparse.ArgumentParser, plot: str) -> None:
    """`--json`, `--plot`, `--threads`, `--seed`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--plot", type=Path, default=PLOTS / plot, metavar="FILE", help="default: docs/experiments")
    parser.add_argument("--no-plot", action="store_true", help="needs no matplotlib")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def finish(
    arguments: argparse.Namespace,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
    everything: object,
    draw: Callable[[Any], Any],
) -> None:
    """Print the tables, each with its title and header; write the JSON and the plot.

    Args:
        arguments: With those of `options`.
        tables: (title, header, rows).
        everything: For the JSON.
        draw: Given `matplotlib.pyplot`, makes a figure.
    """
    for title, header, rows in tables:
        print(f"{title}\n\n{table(rows, header)}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    if not arguments.no_plot:
        import matplotlib as mpl

        mpl.use("Agg")
        mpl.rcParams["svg.hashsalt"] = "nola-codec"  # ids in the SVG, which are else random
        from matplotlib import pyplot

        figure = draw(pyplot)
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if arguments.plot.suffix == ".svg" else {}
        figure.savefig(arguments.plot, bbox_inches="tight", metadata=metadata)
        say(f"wrote {arguments.plot}")
