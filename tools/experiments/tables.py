"""Tables, JSON and plots of the experiments."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from common import table


def show(header: Sequence[str], rows: Sequence[Sequence[object]], to: Path | None, figures: Any) -> None:
    """Print a table, and write the figures as JSON where that was asked for."""
    print(table(rows, header))
    if to is not None:
        to.write_text(json.dumps(figures, indent=1) + "\n")


def plot_curve(
    out: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, float],
    title: str,
    x: str = "bytes of the file",
    y: str = "held-out loss, nats a token",
) -> None:
    """Curves over a logarithmic axis, and horizontal lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "nola"  # equal figures make equal files
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    for name, value in lines.items():
        axes.axhline(value, linestyle=":", color="grey")
        axes.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.legend()
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)
