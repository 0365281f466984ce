"""Training from scratch on Fashion-MNIST (NOLA, sections 4.3 and 4.4): NOLA, PRANC, LoRA and full training.

    python tools/experiments/fashion_mnist.py [--part mlp resnet speed] [--rows 60000] [--json FILE]
    python tools/experiments/fashion_mnist.py --read FILE [FILE ...]        # tables and plot again; nothing is trained

mlp     784-256-10 without biases, 16 coefficients a factor (32 a layer) and 32; the paper has training losses of 0.71
        (NOLA r=4) and 0.87 (PRANC) with 32 coefficients a layer, on MNIST. "W0 +": on weights frozen as PyTorch draws
        them, in the seed of the run. Means over --mlp-seeds seeds, and their range
resnet  ResNet20 at about 13,000 trained numbers, norms and biases included
speed   milliseconds a step of the MLP, all ways in turn; the paper finds NOLA twice as fast as PRANC, on a dense basis

The images are Debian's: `apt install dataset-fashion-mnist`. Test losses and accuracies are of evaluation, that is of
what the `.nola` file decodes to; the training loss is the mean of the last 100 steps. Bytes are of the `.nola` file (16
bits a coefficient, or as the row says; norms and their statistics in 32), of the others of a safetensors file in fp16.
Everything is seeded; float sums depend on the machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import Images, Way, build, evaluate, mlp, resnet20, step, train
from report import Result, finish, options, say

PACKAGE = "dataset-fashion-mnist"
FOLDER = Path("/usr/share/datasets/fashion-mnist")
_COLD, _WARM = 2, 4
HEADER = ["way", "trained numbers", "bytes", "train loss", "test loss", "accuracy", "ms a step"]


def images(folder: Path, name: str, rows: int | None) -> Images:
    """Images of a set, ``train`` or ``t10k``, brought to mean 0 and variance 1 by fixed numbers."""
    if not (folder / f"{name}-images-idx3-ubyte.gz").is_file():
        sys.exit(f"no Fashion-MNIST in {folder}: apt install {PACKAGE}, or --data FOLDER with its .gz files")
    pixels = np.frombuffer(gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    x = (pixels.reshape(-1, 1, 28, 28)[:rows].astype(np.float32) / 255 - 0.286) / 0.353
    return Images(torch.from_numpy(x), torch.from_numpy(labels[:rows].astype(np.int64)))


def mlp_ways(seed: int) -> list[Way]:
    """The MLP's rows; basis `uniform`, kept, where they do not say another."""
    dense: dict[str, Any] = {"basis": "uniform", "keep_basis": True}
    nola = [(16, 4), (32, 4), (16, 32)]
    ways = [build(mlp, seed, f"NOLA r={r}, 2 x {k}", 2e-2, num_basis=k, rank=r, **dense) for k, r in nola]
    ways += [build(mlp, seed, f"PRANC, {k}", 2e-2, num_basis=k, form="pranc", **dense) for k in (32, 64)]
    ways += [
        build(mlp, seed, f"W0 + NOLA r={r}, 2 x {k}", 2e-2, start=True, num_basis=k, rank=r, **dense) for k, r in nola
    ]
    ways += [
        build(mlp, seed, f"W0 + PRANC, {k}", 2e-2, start=True, num_basis=k, form="pranc", **dense) for k in (32, 64)
    ]
    ways += [build(mlp, seed, f"NOLA r={r}, 2 x {k}, hadamard", 2e-2, num_basis=k, rank=r) for k, r in nola]
    ways += [build(mlp, seed, f"PRANC, {k}, hadamard", 2e-2, num_basis=k, form="pranc") for k in (32, 64)]
    return [*ways, build(mlp, seed, "LoRA r=1, the smallest", 2e-2, rank=1), build(mlp, seed, "full", 1e-3)]


def resnet_ways(seed: int) -> list[Way]:
    """The ResNet's rows: about as many trained numbers as LoRA of rank 3 has."""
    return [
        build(resnet20, seed, "NOLA r=8", 3e-2, num_basis=320, rank=8),
        build(resnet20, seed, "NOLA r=8, 4 bits", 3e-2, num_basis=320, rank=8, bits=4),
        build(resnet20, seed, "PRANC", 3e-2, num_basis=610, form="pranc"),
        build(resnet20, seed, "LoRA r=3", 3e-2, rank=3),
        build(resnet20, seed, "full", 3e-3),
    ]


def run(ways: list[Way], data: Images, test: Images, epochs: int, batch: int, seed: int) -> list[Result]:
    """Train and evaluate each."""
    found = []
    for way in ways:
        seconds = train(way, data, epochs, batch, seed)
        loss, accuracy = evaluate(way.network, test)
        found.append(
            {
                "way": way.name, "trained": way.trained, "bytes": way.bytes(), "accuracy": accuracy, "test_loss": loss,
                "train_loss": float(np.mean(way.losses[-100:])), "ms": 1000 * seconds, "losses": smooth(way.losses),
            }
        )  # fmt: skip
        say(f"{way.name}: {way.trained:,} numbers, train {found[-1]['train_loss']:.4f}, accuracy {accuracy:.2%}")
    return found


def averaged(runs: list[list[Result]]) -> list[Result]:
    """Results of several seeds as one: means, and the range of what has one."""
    found = []
    for same in zip(*runs, strict=True):
        row = dict(same[0])
        for key in ("train_loss", "test_loss", "accuracy", "ms"):
            row[key] = float(np.mean([r[key] for r in same]))
            row[key + "_range"] = [min(r[key] for r in same), max(r[key] for r in same)]
        found.append(row)
    return found


def smooth(losses: list[float], points: int = 60) -> list[float]:
    """Means of equal stretches."""
    return [round(float(np.mean(part)), 5) for part in np.array_split(losses, min(points, len(losses)))]


def speed(data: Images, turns: int, batch: int, seed: int) -> list[Result]:
    """Median milliseconds of an MLP step: the ways take turns, so that what else the machine does meets all alike.

    The first steps of a turn do not count: another way has filled the caches, and what is kept is made.
    """
    cases: list[tuple[str, dict[str, Any]]] = [
        ("uniform, kept", {"basis": "uniform", "keep_basis": True}),
        ("uniform, made anew", {"basis": "uniform"}),
        ("rademacher, kept", {"basis": "rademacher", "keep_basis": True}),
        ("rademacher, made anew", {"basis": "rademacher"}),
        ("hadamard", {}),
    ]
    ways = {}
    for name, coding in cases:
        ways[name, "nola"] = build(mlp, seed, name, 1e-3, num_basis=16, rank=4, **coding)
        ways[name, "pranc"] = build(mlp, seed, name, 1e-3, num_basis=32, form="pranc", **coding)
    ways["full", ""] = build(mlp, seed, "full", 1e-3)
    optimizers = {key: torch.optim.Adam(way.network.parameters(), way.lr) for key, way in ways.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    for turn in range(turns):
        for key, way in ways.items():
            for at in range(_COLD + _WARM):
                place = (turn * (_COLD + _WARM) + at) * batch % len(data.y)
                picked = slice(place, place + batch)
                start = time.perf_counter()
                step(way, optimizers[key], data.x[picked], data.y[picked])
                if at >= _COLD:
                    seconds[key].append(time.perf_counter() - start)
        say(f"speed: turn {turn + 1} of {turns}")
    median = {key: 1000 * float(np.median(own)) for key, own in seconds.items()}
    found = [
        {
            "basis": name, "nola_ms": median[name, "nola"], "pranc_ms": median[name, "pranc"],
            "ratio": median[name, "pranc"] / median[name, "nola"],
        }
        for name, _ in cases
    ]  # fmt: skip
    return [*found, {"basis": "none: full training", "nola_ms": median["full", ""]}]


def rows(found: list[Result]) -> list[list[str]]:
    """The rows of a table with `HEADER`."""

    def with_range(result: Result, key: str, form: str) -> str:
        shown = format(result[key], form)
        low, high = result.get(key + "_range", (0, 0))
        return f"{shown} ({format(low, form)} to {format(high, form)})" if high > low else shown

    return [
        [
            r["way"], f"{r['trained']:,}", f"{r['bytes']:,}", with_range(r, "train_loss", ".3f"),
            f"{r['test_loss']:.3f}", with_range(r, "accuracy", ".1%"), f"{r['ms']:.1f}",
        ]
        for r in found
    ]  # fmt: skip


def speed_rows(found: list[Result]) -> list[list[str]]:
    """The rows of the table of speeds."""
    return [
        [r["basis"], f"{r['nola_ms']:.2f}", f"{r['pranc_ms']:.2f}" if "ratio" in r else "",
         f"{r['ratio']:.2f}" if "ratio" in r else ""]
        for r in found
    ]  # fmt: skip


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the parts asked for."""
    torch.set_num_threads(arguments.threads)
    data, test = images(arguments.data, "train", arguments.rows), images(arguments.data, "t10k", None)
    say(f"{len(data.y):,} images to train on, {len(test.y):,} to test")
    trained: dict[str, list[Result]] = {}
    seed, batch = arguments.seed, arguments.batch
    found: dict[str, Any] = {"rows": len(data.y), "batch": batch, "trained": trained}
    if "mlp" in arguments.part:
        seeds = range(seed, seed + arguments.mlp_seeds)
        trained["MLP 784-256-10"] = averaged([run(mlp_ways(s), data, test, arguments.epochs, batch, s) for s in seeds])
    if "resnet" in arguments.part:
        trained["ResNet20"] = run(resnet_ways(seed), data, test, arguments.resnet_epochs, batch, seed)
    if "speed" in arguments.part:
        found["speed"] = speed(data, arguments.turns, batch, seed)
    return found


def read(files: list[Path]) -> dict[str, Any]:
    """Several runs as one; of a part that several have, the last."""
    found: dict[str, Any] = {"trained": {}}
    for file in files:
        own = json.loads(file.read_text(encoding="utf-8"))
        found = {**found, **own, "trained": {**found["trained"], **own["trained"]}}
    return found


def main() -> None:
    """Measure or read, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["mlp", "resnet", "speed"], default=["mlp", "resnet", "speed"])
    parser.add_argument("--data", type=Path, default=FOLDER, help=f"default: {FOLDER}, of the package {PACKAGE}")
    parser.add_argument("--rows", type=int, default=60_000, help="training images")
    parser.add_argument("--epochs", type=int, default=4, help="of the MLP")
    parser.add_argument("--resnet-epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8, help="of the speed test, of six steps for each way")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--mlp-seeds", type=int, default=1, help="seeds that the MLP's figures are the mean of")
    parser.add_argument("--read", nargs="+", type=Path, metavar="FILE", help="show what --json wrote; train nothing")
    options(parser, "fashion_mnist.svg")
    arguments = parser.parse_args()
    everything = read(arguments.read) if arguments.read else measure(arguments)
    trained = everything["trained"]
    tables: list[Any] = [(title, HEADER, rows(found)) for title, found in trained.items()]
    if "speed" in everything:
        header = ["basis", "NOLA, ms a step", "PRANC, ms a step", "PRANC / NOLA"]
        title = f"Speed of the MLP, batch of {everything['batch']}"
        tables.append((title, header, speed_rows(everything["speed"])))
    arguments.no_plot |= not trained

    def draw(pyplot: Any) -> Any:
        """Without the MLP's second basis, whose curves lie on those of the first."""
        figure, axes = pyplot.subplots(len(trained), 1, figsize=(6, 4 * len(trained)), squeeze=False)
        for axis, (title, found) in zip(axes[:, 0], trained.items(), strict=True):
            axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors[::2] + pyplot.get_cmap("tab20").colors[1::2])
            for result in (r for r in found if "hadamard" not in r["way"]):
                label = f"{result['way']} ({result['trained']:,}): {result['accuracy']:.1%}"
                style = "--" if result["way"].startswith("W0") else "-"
                axis.plot(np.linspace(0, 1, len(result["losses"])), result["losses"], style, lw=1, label=label)
            axis.set(title=title, xlabel="share of the training", ylabel="training loss", yscale="log")
            axis.legend(
                fontsize=8, title="way (trained numbers): test accuracy", loc="upper left", bbox_to_anchor=(1.02, 1)
            )
        figure.subplots_adjust(hspace=0.3)
        return figure

    finish(arguments, tables, everything, draw)


if __name__ == "__main__":
    main()
