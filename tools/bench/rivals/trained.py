"""Rivals trained from nothing with the budget of `--fit task`: LoRA-XS and Uni-LoRA.

Our files with that budget are those of `tools/experiments/self_taught.py --doors data`. Everything is kept as it is
measured (tools/experiments/results.py), so a second call goes on where the first one stopped. The learning rate of each
rival and size is the best of a ladder by the training loss of short runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, load
from real_data import adapter, cache_dir
from task_peers import added

from rivals.lora_xs import LoraXs
from rivals.text import TextTask
from rivals.training import Budget, Form, arrays, train
from rivals.uni_lora import UniLora

sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import results
from rates import choose_rate

NAME = "trained_rivals"
LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates that may be tried."""
START = 0.03
"""The learning rate that is tried first, with its neighbours."""
SIZES = {"Uni-LoRA": (20_000, 100_000, 10_000, 40_000), "LoRA-XS": (7, 21, 10, 14)}
"""About 5, 10, 20 and 50 KB at 4 bits a number; the most telling ones first."""
BITS = 4
"""Bits of a number in a file, in groups of 64."""
BASE, ADAPTER = "base model", "adapter, fp16"
SOURCE = adapter("smollm2_e2e")
TRIAL = {"steps": 16, "rows": 4}
WHOLE = {"steps": 100, "rows": 8}


def make(rival: str, size: int, seed: int, task: TextTask) -> Form:
    """Return the untrained numbers of a rival."""
    return LoraXs(task.model, size) if rival == "LoRA-XS" else UniLora(task.model, size, seed)


def best_rate(rival: str, size: int, task: TextTask) -> float:
    """Return the learning rate of the ladder with the lowest training loss at the end of a short run."""

    def trial(rate: float) -> Mapping[str, float]:
        budget = Budget(rate, TRIAL["steps"], TRIAL["rows"])
        losses = train(task, make(rival, size, 0, task), task.training_rows(), budget)
        return {"loss": float(np.mean(losses[-TRIAL["steps"] // 2 :]))}

    def figure(rate: float) -> float:
        settings = {"rival": rival, "size": size, "rate": rate, "seed": 0, **TRIAL}
        loss: float = results.measure(NAME, settings, lambda: trial(rate))["figures"]["loss"]
        return -loss

    return choose_rate(LADDER, START, figure)[0]


def trained(rival: str, size: int, seed: int, task: TextTask) -> Form:
    """Return the trained numbers of a rival; they are kept in the cache."""
    rate = best_rate(rival, size, task)
    path = Path(cache_dir()) / "experiments" / "rivals" / f"{rival}-{size}-{rate:g}-{seed}.pt"
    form = make(rival, size, seed, task)
    parameters = [parameter for parameter, _ in form.parameters()]
    if path.is_file():
        for parameter, kept in zip(parameters, torch.load(path), strict=True):
            parameter.data.copy_(kept)
        return form
    print(f"{rival} {size} seed {seed}: rate {rate:g}", file=sys.stderr, flush=True)
    train(task, form, task.training_rows(), Budget(rate, WHOLE["steps"], WHOLE["rows"], seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([parameter.detach() for parameter in parameters], path)
    return form


def measured(rival: str, size: int, bits: int, seed: int, rows: int, task: TextTask) -> dict[str, Any]:
    """Return the result of a training, rounded to some bits: bytes and held-out loss."""

    def program() -> Mapping[str, Any]:
        count, factors = trained(rival, size, seed, task).write(bits)
        with added(dict(task.model.named_parameters()), arrays(factors)):
            return {"bytes": count, "loss": task.loss(task.rows("test", 0, rows))}

    settings = {"rival": rival, "size": size, "rate": best_rate(rival, size, task), "bits": bits, "seed": seed,
                "test_rows": rows, **WHOLE}  # fmt: skip
    return results.measure(NAME, settings, program)


def reference(what: str, rows: int, task: TextTask) -> dict[str, Any]:
    """Return the held-out loss of the base model or of the adapter."""

    def program() -> Mapping[str, Any]:
        pairs = load(SOURCE) if what == ADAPTER else []
        with added(dict(task.model.named_parameters()), {p.name: (p.B * p.scaling, p.A) for p in pairs}):
            count = 2 * sum(p.A.size + p.B.size for p in pairs)
            return {"bytes": count, "loss": task.loss(task.rows("test", 0, rows))}

    return results.measure(NAME, {"rival": what, "test_rows": rows}, program)


def measure_all(task: TextTask, rows: int, seeds: Sequence[int], sizes: Mapping[str, Sequence[int]] = SIZES) -> None:
    """Measure all that is missing, one seed after the other, and say what was found."""

    def say(what: str, result: Mapping[str, Any]) -> None:
        figures = result["figures"]
        print(f"{what}: {figures['bytes']:,} bytes, {figures['loss']:.4f}", file=sys.stderr, flush=True)

    for seed in seeds:
        for position in range(max(len(own) for own in sizes.values())):
            for rival, own in sizes.items():
                if position < len(own) and not (rival == "LoRA-XS" and seed):  # nothing in it is drawn
                    found = measured(rival, own[position], BITS, seed, rows, task)
                    say(f"{rival} {own[position]}, seed {seed}", found)
    for what in (BASE, ADAPTER):
        say(what, reference(what, rows, task))
