"""E2E NLG on SmolLM2-135M: the task of the experiments here, and runs of training whose results are kept.

A run is a dictionary of settings. It is done once, in a process of its own (so that its peak memory is its own), and
`results.py` keeps its figures under the name `e2e`; what it trained is kept in `$NOLA_CACHE/experiments`. The losses
are those of `tools/e2e_loss.py`: nats a target token over the first rows of the shuffled test set. Training and losses
are in float32. Times are processor time, on one thread, since the machine is shared. The last rows of the validation
set are never trained on: choices between settings are made on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import e2e_loss
import results as kept
import torch
from base_model import base_model
from real_data import cache_dir
from torch.nn import functional

__all__ = [
    "BATCH", "EVALUATED_ROWS", "STEPS", "Pair", "Run", "Task", "base_model", "cache_dir", "fit", "prepare", "results",
]  # fmt: skip

EVALUATED_ROWS = 192
CHOICE_ROWS = 96
BATCH = 8
STEPS = 100
Pair = tuple[str, str]
Run = dict[str, Any]


class Task:
    """The base model, its tokenizer, and the rows."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.base = base_model()
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval().requires_grad_(False)
        valid: list[Pair] = e2e_loss.rows("valid", 10**6)
        self.train_rows, self.choice_rows = valid[:-CHOICE_ROWS], valid[-CHOICE_ROWS:]
        self.test_rows: list[Pair] = e2e_loss.rows("test", 10**6)

    def batch(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels (rows, length)."""
        made: dict[str, torch.Tensor] = e2e_loss.batch(self.tokenizer, pairs)
        return made

    def batches(self, seed: int, steps: int, size: int = BATCH) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of training rows, every row once before any comes again."""
        draw = random.Random(seed)
        order: list[int] = []
        for _ in range(steps):
            if len(order) < size:
                order = list(range(len(self.train_rows)))
                draw.shuffle(order)
            yield self.batch([self.train_rows[order.pop()] for _ in range(size)])

    @staticmethod
    def logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the scored positions alone, (tokens, vocabulary), and their targets (tokens,)."""
        inner = getattr(getattr(model, "base_model", None), "model", model) if hasattr(model, "peft_config") else model
        hidden = inner.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state[:, :-1]
        targets = batch["labels"][:, 1:]
        scored = targets != -100
        return inner.lm_head(hidden[scored]), targets[scored]

    @torch.no_grad()
    def loss(self, model: Any, rows: int | Sequence[Pair] = EVALUATED_ROWS) -> float:
        """Nats a target token over some rows; a number means the first rows of the test set."""
        pairs = self.test_rows[:rows] if isinstance(rows, int) else rows
        was = model.training
        model.eval()
        total = tokens = 0.0
        for start in range(0, len(pairs), 16):
            logits, targets = self.logits(model, self.batch(pairs[start : start + 16]))
            total += functional.cross_entropy(logits, targets, reduction="sum").item()
            tokens += len(targets)
        model.train(was)
        return total / tokens


def prepare(task: Task, run: Run) -> tuple[Any, Callable[[Path], int]]:
    """Return the model to train, and a function that writes what was trained and returns its bytes.

    A `.nola` file is written; of LoRA a folder in float32, whose bytes are counted in fp16.
    """
    from peft import LoraConfig, RandLoraConfig, VeraConfig, get_peft_model

    from nola_codec.training import parametrize, parametrize_weights, save

    torch.manual_seed(run.get("seed", 0))
    if run.get("base_bits"):
        round_base(task.model, run["base_bits"])
    method, rank = run["method"], run.get("rank", 8)
    layers = len(task.model.model.layers)
    adapted = range(layers - run.get("layers", layers), layers)
    if method == "pranc":
        include = [rf"layers\.{layer}\..*proj\.weight$" for layer in adapted]
        parametrize_weights(task.model, num_basis=run["num_basis"], form="pranc", include=include, seed=run["seed"])
        return task.model, lambda out: save(task.model, out)
    names = {name.rpartition(".")[2] for name, m in task.model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    where: dict[str, Any] = {"target_modules": sorted(names)}
    if len(adapted) < layers:
        where["layers_to_transform"] = list(adapted)
    if method in ("vera", "randlora"):
        kind = VeraConfig if method == "vera" else RandLoraConfig
        options = {} if method == "vera" else {"randlora_alpha": 2 * rank}
        config = kind(r=rank, save_projection=False, projection_prng_key=7, **where, **options)
        drawn = get_peft_model(task.model, config)
        return drawn, lambda out: _encode_adapter(drawn, out)
    model = get_peft_model(task.model, LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **where))
    if method == "lora":
        return model, lambda out: _save_lora(model, out)
    counts = gradient_shares(task, model, run["total"], run["seed"]) if "total" in run else run["num_basis"]
    parametrize(
        model, num_basis=counts, basis=run.get("basis", "hadamard"), bits=run.get("bits"),
        shared_basis=run.get("shared", False), keep_basis=run.get("kept", False), seed=run["seed"],
    )  # fmt: skip
    return model, lambda out: save(model, out)


def gradient_shares(task: Task, model: Any, total: int, seed: int) -> dict[str, int]:
    """Share `total` coefficients out by the first gradient of the fresh adapter, on a batch of its own."""
    from gradient_shares import share_out_num_basis

    functional.cross_entropy(*task.logits(model, next(task.batches(seed + 1000, 1)))).backward()
    counts = share_out_num_basis(model, total)
    model.zero_grad(set_to_none=True)
    return counts


def round_base(model: Any, bits: int) -> None:
    """Round the weights of all linear layers but the head to integers of `bits` bits, with one scale for each row."""
    most = 2 ** (bits - 1) - 1
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.Linear):
            scale = layer.weight.data.abs().amax(1, keepdim=True) / most
            layer.weight.data = torch.round(layer.weight.data / scale) * scale


def _save_lora(model: Any, out: Path) -> int:
    model.save_pretrained(out.with_suffix(""))
    count: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 2 * count


def _encode_adapter(model: Any, out: Path) -> int:
    import nola_codec

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return nola_codec.encode(folder, out).bytes


def train(run: Run) -> Run:
    """Do a run in this process, and return its figures; keep what was trained."""
    torch.set_num_threads(run.get("threads", 1))
    task = Task()
    model, write = prepare(task, run)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if "lora_B" not in name], "lr": run["lr"]},
        {"params": [p for name, p in named if "lora_B" in name], "lr": run["lr"] * run.get("ratio", 1)},  # LoRA+
    ]
    state = trained_path(run).with_suffix(".state")
    times, losses = fit(task, model, run, torch.optim.AdamW(groups, weight_decay=0.0), state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found: Run = {
        "parameters": sum(p.numel() for _, p in named),
        "train_loss": sum(losses[-20:]) / len(losses[-20:]),
        "ms_per_step": 1000 * sorted(times)[len(times) // 2],
        "peak_mib": peak,
        "loss": task.loss(model),
        "bytes": write(trained_path(run)),
    }
    state.unlink(missing_ok=True)
    if run.get("ptq"):
        found["ptq"] = _losses_after_rounding(task, model, run["ptq"])
    return found


def fit(
    task: Task, model: Any, run: Run, optimizer: torch.optim.Optimizer, state: Path | None = None
) -> tuple[list[float], list[float]]:
    """Train for the steps of a run; return the seconds of processor time and the loss of each step.

    The rate of each group of the optimizer rises over six steps to that of the group, and falls to zero as a cosine. A
    training that was stopped goes on from the file `state`, which is written every ten steps.
    """
    steps, rates = run["steps"], [group["lr"] for group in optimizer.param_groups]
    times, losses = _restore(state, model, optimizer)
    model.train()
    for step, batch in enumerate(task.batches(run["seed"], steps)):
        if step < len(losses):
            continue
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 6) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        begin = time.process_time()
        loss = functional.cross_entropy(*task.logits(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - begin)
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"{run_name(run)}: step {step + 1} of {steps}, loss {sum(losses[-10:]) / 10:.4f}", file=sys.stderr)
            _keep(state, model, optimizer, times, losses)
    return times, losses


def _keep(
    state: Path | None, model: Any, optimizer: torch.optim.Optimizer, times: list[float], losses: list[float]
) -> None:
    """Write what a training needs to go on."""
    if state is not None:
        trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        temporary = state.with_suffix(".tmp")
        torch.save(
            {"trained": trained, "optimizer": optimizer.state_dict(), "times": times, "losses": losses}, temporary
        )
        temporary.replace(state)


def _restore(state: Path | None, model: Any, optimizer: torch.optim.Optimizer) -> tuple[list[float], list[float]]:
    """Return the times and losses of the steps that are done, after bringing back what they trained."""
    if state is None or not state.is_file():
        return [], []
    found = torch.load(state, weights_only=True)
    with torch.no_grad():
        own = (parameter for parameter in model.parameters() if parameter.requires_grad)
        for parameter, value in zip(own, found["trained"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(found["optimizer"])
    return found["times"], found["losses"]


def _losses_after_rounding(task: Task, model: Any, widths: Sequence[int]) -> dict[str, float]:
    """Held-out loss with the trained coefficients rounded to other widths, nothing trained on."""
    from nola_codec.training import CodedTensor

    group = next(module for module in model.modules() if isinstance(module, CodedTensor)).group
    losses = {}
    for bits in widths:
        group.set_bits(bits)
        losses[str(bits)] = task.loss(model)
    group.set_bits(None)
    return losses


def run_name(run: Run) -> str:
    """Return a short name of a run for people."""
    hidden = ("method", "threads", "ptq", "steps", "lr", "seed")
    shown = {key: value for key, value in run.items() if key not in hidden}
    return " ".join([run["method"], *(f"{key}={value}" for key, value in shown.items()), f"seed={run['seed']}"])


def trained_path(run: Run) -> Path:
    """Return the file that keeps what a run trained; of a LoRA the folder without the suffix."""
    trained = {key: value for key, value in run.items() if key not in ("threads", "ptq")}
    key = hashlib.sha256(json.dumps(trained, sort_keys=True).encode())
    return cache_dir() / "experiments" / f"{run['method']}-{key.hexdigest()[:12]}.nola"


def results(runs: Sequence[Run], *, made_before: bool = False, anew: bool = False) -> list[Run]:
    """Return the settings and figures of each run as one; missing runs are done one after the other, or left out."""
    there = [result["settings"] for result in kept.read("e2e")]
    made = []
    for run in runs:
        if run in there or not made_before:
            result = kept.measure("e2e", run, partial(_train_apart, run), anew=anew)
            made.append({**run, **result["figures"]})
    return made


def _train_apart(run: Run) -> Run:
    """Do a run in a process of its own, and return its figures."""
    done = subprocess.run([sys.executable, __file__, json.dumps(run)], check=True, stdout=subprocess.PIPE, text=True)
    found: Run = json.loads(done.stdout)
    return found


def main() -> None:
    """Do one run, and print its figures: `python e2e.py '{"method": "nola", ...}'`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=json.loads, metavar="JSON", help="the settings of the run")
    run = parser.parse_args().run
    trained_path(run).parent.mkdir(parents=True, exist_ok=True)
    print(json.dumps(train(run)))


if __name__ == "__main__":
    main()
