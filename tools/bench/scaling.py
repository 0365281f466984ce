"""How time and memory grow: with tensors, rank, coefficients, width, tasks of a `TaskBank`, and threads.

    python tools/bench/scaling.py [--axes tensors,rank,...] [--short] [--json FILE] [--keep] [--plot FILE.svg]

Each axis is varied alone, on synthetic adapters with seeded weights, and each point is a process of its own: imports
are done before the clock starts, the best of several calls counts, and memory is what the peak resident set grew by.
The time is that of the processor with one thread, which a busy machine disturbs least; the axis `threads` has the time
of a clock. Between two points that are next to each other, cost grows as x to the power of an exponent, which the
tables give: 1 is in proportion. The exponent of an axis is that of its last step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, write_peft
from measuring import Figures, add_options, measure_call, run_child

sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import results
from page_tables.scaling import axis_table, jobs

THREADS = "NOLA_THREADS"
SWITCHES = 20
"""The number of switches whose mean counts."""


@dataclass(frozen=True)
class Point:
    """An adapter, and how it is encoded.

    Attributes:
        x: The value on the axis.
        modules: The number of modules, each with two factors.
        width: The length of both sides of a module.
        rank: The rank of each.
        options: Options of `nola_codec.encode`.
        threads: The number of threads.
    """

    x: int
    modules: int = 8
    width: int = 1024
    rank: int = 8
    options: dict[str, Any] = field(default_factory=dict)
    threads: int = 1

    @property
    def parameters(self) -> int:
        """The numbers in the factors."""
        return 2 * self.modules * self.width * self.rank


def _axes(short: bool) -> dict[str, list[Point]]:
    """Return the points of each axis; for `short`, fewer and smaller ones."""

    def values(*all_of_them: int) -> Sequence[int]:
        return all_of_them[: max(2, len(all_of_them) // 2)] if short else all_of_them

    return {
        "tensors": [Point(n, modules=n, width=64, rank=4) for n in values(10, 30, 100, 300, 1000, 3000, 10_000)],
        "rank": [Point(r, modules=4, width=2048, rank=r) for r in values(1, 4, 16, 64, 128, 256)],
        "coefficients": [
            Point(k, width=1024, rank=8, options={"num_basis": k, "bits": 4})
            for k in values(64, 256, 1024, 2048, 4096, 8192)
        ],
        "width": [Point(n, width=n) for n in values(256, 512, 1024, 2048, 4096, 8192, 16_384)],
        "tasks": [
            Point(n, modules=2, width=256, rank=4, options={"size": "2KB"})
            for n in values(1, 10, 100, 1000, 10_000)
        ],
        "threads": [Point(n, modules=16, width=4096, rank=16, threads=n) for n in (1, 2, 4)[: os.cpu_count() or 1]],
    }  # fmt: skip


AXES = tuple(_axes(short=False))


def write_adapter(point: Point, folder: Path) -> None:
    """Write an adapter for PEFT with float32 factors and singular values that fall by e squared."""
    rng = np.random.default_rng(point.x)
    root = np.exp(-np.arange(point.rank) / point.rank).astype(np.float32)
    state = {}
    for module in range(point.modules):
        key = f"base_model.model.model.layers.{module}.self_attn.q_proj"
        b, a = (rng.standard_normal((point.width, point.rank), np.float32) * root for _ in range(2))
        state[f"{key}.lora_B.weight"] = b * np.float32(0.1 / point.width)
        state[f"{key}.lora_A.weight"] = np.ascontiguousarray(a.T)
    write_peft(folder, state, point.rank, point.rank)


def child(task: str, source: str, file: str, options: Figures) -> Figures:
    """Do one task in this process, and measure it."""
    import nola_codec

    work: Callable[[], object]
    if task == "encode":
        work = lambda: nola_codec.encode(source, file, overwrite=True, **options)  # noqa: E731
    else:
        work = lambda: nola_codec.load(file, device="numpy").state_dict()  # noqa: E731
    return measure_call(work)


def child_tasks(file: str, point: Figures) -> Figures:
    """Put as many distinct files into a `TaskBank` as the point says, and switch between them."""
    import random

    import torch
    from task_bank import with_seed

    import nola_codec

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(point["width"], point["width"])})

    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.layers = torch.nn.ModuleList(Layer() for _ in range(point["modules"]))
    first = Path(file).read_bytes()
    files = [first, *(with_seed(first, seed) for seed in range(1, point["x"]))]
    bank = nola_codec.TaskBank(model, memory=0)
    rng = random.Random(0)

    def add_all() -> None:
        for number, data in enumerate(files):
            bank.add(str(number), data)

    def switch() -> None:
        for _ in range(SWITCHES):
            bank.switch(str(rng.randrange(len(files))))
            bank.switch(None)

    added, switched = measure_call(add_all, most_calls=1), measure_call(switch)
    for key in ("seconds", "cpu"):
        switched[key] /= SWITCHES
    return {"add all": added, "switch": switched}


def measure(axis: str, point: Point) -> Figures:
    """Measure one point: the encode of its adapter, and the decode of the file to float32 factors in memory."""
    environment = {THREADS: str(point.threads)}
    with tempfile.TemporaryDirectory(prefix="nola-scaling-") as folder:
        source, file = Path(folder) / "adapter", Path(folder) / "adapter.nola"
        write_adapter(point, source)
        figures: Figures = asdict(point) | {"parameters": point.parameters}
        for task in ("encode", "decode"):
            figures[task] = run_child(__file__, [task, str(source), str(file), point.options], environment)
        if axis == "tasks":
            figures |= run_child(__file__, ["tasks", str(file), figures], environment)
        figures["bytes"] = file.stat().st_size
    return figures


def plot(found: dict[str, list[Figures]], out: Path) -> None:
    """Draw the time of every axis, with a line in proportion for the eye."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "scaling"
    from matplotlib import pyplot

    names = [name for name in found if name != "threads"]
    figure, panels = pyplot.subplots(1, len(names), figsize=(3 * len(names), 3), layout="constrained", squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        points = found[name]
        xs = [point["x"] for point in points]
        for task, colour in zip(jobs(name), ("tab:orange", "tab:blue"), strict=True):
            costs = [point[task]["cpu"] for point in points]
            panel.loglog(xs, costs, "o-", color=colour, label=task, markersize=3)
            panel.loglog(xs, [costs[-1] * x / xs[-1] for x in xs], ":", color=colour, linewidth=0.8)
        panel.set_xlabel(name)
        panel.legend(frameon=False)
        panel.grid(visible=True, alpha=0.3)
    panels[0][0].set_ylabel("seconds of one processor")
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Measure, and print a table for each axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES), help=f"comma-separated [default: {','.join(AXES)}]")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw them there; it needs matplotlib")
    add_options(parser, short="fewer and smaller points, for a first look")
    arguments = parser.parse_args()
    if arguments.child:
        task, *rest = json.loads(arguments.child)
        print(json.dumps(child_tasks(*rest) if task == "tasks" else child(task, *rest)))
        return
    axes = _axes(arguments.short)
    wanted = arguments.axes.split(",")
    if unknown := set(wanted) - set(axes):
        parser.error(f"no such axis: {', '.join(sorted(unknown))}")
    found: dict[str, list[Figures]] = {}
    for name in wanted:
        found[name] = []
        for point in axes[name]:
            found[name].append(measure(name, point))
            print(f"{name} {point.x}", file=sys.stderr)
        print(axis_table(name, found[name]) + "\n", flush=True)
        if arguments.keep:
            results.keep("scaling", {"axis": name}, {"points": found[name]})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
