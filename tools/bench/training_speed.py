"""A step of training with NOLA against the same step with plain LoRA: time and memory.

    python tools/bench/training_speed.py [--rounds 8] [--only EXPRESSION] [--json FILE]

SmolLM2-135M, rank 8 on all linear layers, batches of 8 rows of E2E. All methods take their steps in turns on the same
batches in one process; what is compared is processor time on one thread, by the median of the ratios. Peak memory is
that of a process of its own for each method, three steps on one batch. `rademacher` makes its dense basis anew in every
pass, as the paper does, or keeps it.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import torch
from common import table
from e2e import Task, prepare
from torch.nn import functional

LORA = {"method": "lora", "rank": 8, "seed": 0}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": LORA,
    **{
        f"NOLA hadamard k={k}": {"method": "nola", "rank": 8, "num_basis": k, "seed": 0} for k in (32, 128, 1024, 10**6)
    },
    "NOLA hadamard k=128, shared": {"method": "nola", "rank": 8, "num_basis": 128, "shared": True, "seed": 0},
    "NOLA hadamard k=128, 4 bits": {"method": "nola", "rank": 8, "num_basis": 128, "bits": 4, "seed": 0},
    "NOLA rademacher k=32, kept": {
        "method": "nola", "rank": 8, "num_basis": 32, "basis": "rademacher", "kept": True, "seed": 0
    },
    "NOLA rademacher k=32": {"method": "nola", "rank": 8, "num_basis": 32, "basis": "rademacher", "seed": 0},
}  # fmt: skip


class Trainee:
    """A model and its optimizer."""

    def __init__(self, method: dict[str, Any]) -> None:
        self.task = Task()
        self.model, _ = prepare(self.task, method)
        self.model.train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-4)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Processor seconds of a step."""
        begin = time.process_time()
        logits, targets = self.task.logits(self.model, batch)
        self.optimizer.zero_grad()
        functional.cross_entropy(logits, targets).backward()
        self.optimizer.step()
        return time.process_time() - begin


def high_water() -> float:
    """Peak memory of this process since it began, in MiB; `ru_maxrss` would count the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(name: str) -> float:
    """Peak memory of three steps in a process of its own, in MiB."""
    done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
    return float(done.stdout.strip())


def main() -> None:
    """Table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="", help="methods whose names match this expression, and LoRA")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        trainee = Trainee(METHODS[options.peak])
        (batch,) = trainee.task.batches(0, 1)
        for _ in range(3):
            trainee.step(batch)
        print(high_water())
        return
    chosen = [name for name in METHODS if name == "LoRA" or re.search(options.only, name)]
    trainees = {name: Trainee(METHODS[name]) for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for number, batch in enumerate(trainees["LoRA"].task.batches(0, options.rounds + 1)):
        for name, trainee in trainees.items():
            seconds = trainee.step(batch)
            if number:  # the first step makes what later ones reuse
                times[name].append(seconds)
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    del trainees
    peaks = {name: peak(name) for name in chosen}
    figures = {
        name: {
            "ms": 1000 * median(times[name]),
            "time": median(a / b for a, b in zip(times[name], times["LoRA"], strict=True)),
            "peak_mib": peaks[name],
            "memory": peaks[name] / peaks["LoRA"],
        }
        for name in chosen
    }
    rows = [
        [name, f"{f['ms']:,.0f}", f"{f['time']:.3f}", f"{f['peak_mib']:,.0f}", f"{f['memory']:.3f}"]
        for name, f in figures.items()
    ]
    print(table(rows, ["method", "ms a step", "against LoRA", "peak MiB", "against LoRA"]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
