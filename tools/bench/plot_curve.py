"""The README's figure: size of the file against held-out loss, from the JSON of task_loss.py or second_task.py.

    python tools/bench/task_loss.py --json > losses.json
    python tools/bench/plot_curve.py losses.json -o curve          # curve.svg and curve.png

Ours is the mean over seeds, with their range where there are several. Peers are lines over their ranks, sizes or drop
rates. What lies beyond the base model is left out, and said so on stderr. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Families = dict[str, list[tuple[float, float]]]
MARKS = (10, 30, 100, 200)
KINDS = ("base", "full", "ours", "peer")
# What differs within a line: a rank, a size, a seed, a drop rate.
_SETTING = re.compile(
    r"\br=\d+|\bseed \d+|\b[\d.,]+ ?[KMG]?i?B\b|--(size|ratio|nmse|error) \S+|(?<=DARE) [\d.]+", re.IGNORECASE
)


def rows_of(text: str, value: str) -> list[Row]:
    """Rows with a name, bytes and the value wanted; what else is in the document is passed over."""
    document = json.loads(text)
    if isinstance(document, dict):
        document = next((part for part in document.values() if isinstance(part, list)), [])
    rows: list[Row] = [
        row for row in document
        if isinstance(row, dict) and isinstance(row.get("name"), str)
        and all(isinstance(row.get(key), int | float) for key in ("bytes", value))
    ]  # fmt: skip
    if len(rows) < len(document):
        print(f"{len(document) - len(rows)} entries without name, bytes or {value} left out", file=sys.stderr)
    return rows


def kind_of(row: Row) -> str:
    """base, full, ours or peer: as the row says, else by its name."""
    if row.get("kind") in KINDS:
        return str(row["kind"])
    name = row["name"].lower()
    starts = {"base": "base", "adapter": "full", "nola": "ours"}
    return next((kind for start, kind in starts.items() if name.startswith(start)), "peer")


def families(rows: Sequence[Row], value: str) -> Families:
    """Peers' (bytes, value) by what they are without their setting, in order of bytes."""
    out: Families = {}
    for row in rows:
        name = re.sub(r"[\s,]+", " ", _SETTING.sub("", row["name"])).strip()
        out.setdefault(name, []).append((row["bytes"], row[value]))
    return {name: sorted(points) for name, points in out.items()}


def by_size(rows: Sequence[Row], value: str) -> list[tuple[float, float, float, float]]:
    """Ours as (bytes, mean, least, most) over the seeds of each size asked for."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(re.sub(r" seed \d+", "", row["name"]), []).append(row)
    out = []
    for members in groups.values():
        values = [row[value] for row in members]
        size = sum(row["bytes"] for row in members) / len(members)
        out.append((size, sum(values) / len(values), min(values), max(values)))
    return sorted(out)


def draw(rows: Sequence[Row], value: str, title: str, out: Path) -> list[Path]:
    """Write the figure as SVG and PNG.

    Raises:
        SystemExit: rows of the base model, of the adapter or of ours are missing.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    kinds: dict[str, list[Row]] = {kind: [row for row in rows if kind_of(row) == kind] for kind in KINDS}
    if missing := [kind for kind in ("base", "full", "ours") if not kinds[kind]]:
        sys.exit(f"no rows of: {', '.join(missing)}")
    base, full = kinds["base"][0][value], kinds["full"][0][value]
    fp16 = kinds["full"][0]["bytes"]
    low, high = sorted((base, full))
    gap = (high - low) or 1.0
    limits = low - 0.08 * gap, high + 0.08 * gap
    with matplotlib.rc_context({"svg.hashsalt": "nola-codec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        axes = figure.add_subplot()
        hidden = 0
        for index, (name, points) in enumerate(families(kinds["peer"], value).items()):
            shown = [point for point in points if limits[0] <= point[1] <= limits[1]]
            hidden += len(points) - len(shown)
            if shown:
                line = axes.plot(*zip(*shown, strict=True), marker=".", linewidth=1, label=name)[0]
                line.set(color=f"C{index % 10}", linestyle="-" if index < 10 else ":")
        mine = by_size(kinds["ours"], value)
        sizes, means, least, most = zip(*mine, strict=True)
        axes.fill_between(sizes, least, most, color="black", alpha=0.15, linewidth=0)
        axes.plot(sizes, means, marker="o", linewidth=2.5, color="black", label="nola-codec")
        for level, text in ((base, "base model"), (full, f"whole adapter, fp16, {_size(fp16, None)}")):
            axes.axhline(level, color="grey", linestyle="--", linewidth=1)
            up = level == high  # the words stand outside, where no curve is
            axes.annotate(text, (0.995, level), xycoords=("axes fraction", "data"), ha="right",
                          va="bottom" if up else "top", xytext=(0, 2 if up else -2), textcoords="offset points",
                          color="dimgrey", fontsize=9)  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(*limits)
        axes.set_xlim(*_widened(axes.get_xlim(), [fp16 / times for times in MARKS]))
        for times in MARKS:
            axes.axvline(fp16 / times, color="grey", linestyle=":", linewidth=1)
            axes.annotate(f"{times}x", (fp16 / times, 1), xycoords=("data", "axes fraction"), ha="center",
                          va="bottom", xytext=(0, 2), textcoords="offset points", color="dimgrey")  # fmt: skip
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_size))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("size of the file")
        axes.set_ylabel("held-out loss, nats a token" if value == "loss" else f"held-out {value}")
        axes.grid(alpha=0.25, linewidth=0.5)
        if title:
            axes.set_title(title, pad=18)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=9)
        if hidden:
            print(f"{hidden} peer points beyond the base model or the adapter left out", file=sys.stderr)
        written = [out.with_name(f"{out.name}.{ending}") for ending in ("svg", "png")]
        figure.savefig(written[0], metadata={"Date": None})
        figure.savefig(written[1], dpi=160)
    return written


def _widened(limits: tuple[float, float], marks: Sequence[float]) -> tuple[float, float]:
    return min(limits[0], 0.9 * min(marks)), max(limits[1], 1.1 * max(marks))


def _size(count: float, _: object) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1000:.3g} KB"


def main() -> None:
    """Read, draw, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="output of task_loss.py --json; - is stdin")
    parser.add_argument("-o", "--output", type=Path, required=True, help="path without an ending")
    parser.add_argument("--value", default="loss", help="field on the y axis: loss, or accuracy of second_task.py")
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    text = sys.stdin.read() if str(options.json) == "-" else options.json.read_text()
    for path in draw(rows_of(text, options.value), options.value, options.title, options.output):
        print(path)


if __name__ == "__main__":
    main()
