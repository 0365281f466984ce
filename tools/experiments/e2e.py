"""E2E NLG on SmolLM2-135M: the task of the experiments here, and runs of training whose results are kept.

A run is a dictionary of settings. It is done once, in a process of its own (so that its peak memory is its own), and
its figures are kept as JSON in `$NOLA_CACHE/experiments`; tables are made from what is there. The losses are those of
`tools/e2e_loss.py`: nats a target token over the first rows of the shuffled test set. Times are processor time,
on one thread, since the machine is shared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import e2e_loss
import torch
from base_model import base_model
from real_data import cache_dir
from torch.nn import functional

__all__ = ["BATCH", "EVALUATED_ROWS", "STEPS", "Run", "Task", "base_model", "cache_dir", "prepare", "results"]

EVALUATED_ROWS = 192
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
        self.train_rows: list[Pair] = e2e_loss.rows("valid", 10**6)
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
    def loss(self, model: Any, rows: int = EVALUATED_ROWS) -> float:
        """Held-out nats a target token."""
        was = model.training
        model.eval()
        total = tokens = 0.0
        for start in range(0, rows, 16):
            logits, targets = self.logits(model, self.batch(self.test_rows[start : min(start + 16, rows)]))
            total += functional.cross_entropy(logits, targets, reduction="sum").item()
            tokens += len(targets)
        model.train(was)
        return total / tokens

    @torch.no_grad()
    def bleu(self, model: Any, meanings: int = 48) -> float:
        """BLEU (sacrebleu) of greedy texts for the first distinct meanings of the test set, all references of each."""
        import sacrebleu

        references: dict[str, list[str]] = {}
        for meaning, text in self.test_rows:
            references.setdefault(meaning, []).append(text)
        chosen = list(dict.fromkeys(meaning for meaning, _ in self.test_rows))[:meanings]
        model.eval()
        self.tokenizer.padding_side = "left"
        texts = []
        for start in range(0, len(chosen), 24):
            prompts = [f"data: {meaning}\ntext:" for meaning in chosen[start : start + 24]]
            given = self.tokenizer(prompts, return_tensors="pt", padding=True)
            made = model.generate(**given, max_new_tokens=72, do_sample=False, num_beams=1,
                                  pad_token_id=self.tokenizer.eos_token_id)  # fmt: skip
            rows = made[:, given["input_ids"].shape[1] :]
            decoded = (str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows)
            texts += [text.split("\n")[0].strip() for text in decoded]
        self.tokenizer.padding_side = "right"
        most = max(len(references[m]) for m in chosen)
        columns = [[(references[m] + [""] * most)[i] for m in chosen] for i in range(most)]
        return float(sacrebleu.corpus_bleu(texts, columns).score)


def prepare(task: Task, run: Run) -> tuple[Any, Callable[[Path], int] | None]:
    """Return the model to train, and a function that writes it as a `.nola` file and returns its bytes."""
    from peft import LoraConfig, RandLoraConfig, VeraConfig, get_peft_model

    from nola_codec.training import parametrize, parametrize_weights, save

    torch.manual_seed(run.get("seed", 0))
    method, rank = run["method"], run.get("rank", 8)
    if method == "pranc":
        parametrize_weights(
            task.model, num_basis=run["num_basis"], form="pranc", include=[r"proj\.weight$"], seed=run["seed"]
        )
        return task.model, lambda out: save(task.model, out)
    if method in ("vera", "randlora"):
        kind = VeraConfig if method == "vera" else RandLoraConfig
        options = {} if method == "vera" else {"randlora_alpha": 2 * rank}
        config = kind(r=rank, target_modules="all-linear", save_projection=False, projection_prng_key=7, **options)
        drawn = get_peft_model(task.model, config)
        return drawn, lambda out: _encode_adapter(drawn, out)
    model = get_peft_model(
        task.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    if method == "lora":
        return model, None
    parametrize(
        model, num_basis=run["num_basis"], basis=run.get("basis", "hadamard"), bits=run.get("bits"),
        shared_basis=run.get("shared", False), keep_basis=run.get("kept", False), seed=run["seed"],
    )  # fmt: skip
    return model, lambda out: save(model, out)


def _encode_adapter(model: Any, out: Path) -> int:
    import nola_codec

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return nola_codec.encode(folder, out).bytes


def train(run: Run, keep: Path) -> Run:
    """Do a run in this process, and return its figures."""
    torch.set_num_threads(run.get("threads", 1))
    task = Task()
    model, write = prepare(task, run)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    steps, rates = run["steps"], (run["lr"], run["lr"] * run.get("ratio", 1))  # of all, and of lora_B (LoRA+)
    second = [p for name, p in named if "lora_B" in name]
    first = [p for name, p in named if "lora_B" not in name]
    optimizer = torch.optim.AdamW([{"params": first}, {"params": second}], weight_decay=0.0)
    model.train()
    times: list[float] = []
    losses: list[float] = []
    for step, batch in enumerate(task.batches(run["seed"], steps)):
        share = step / steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 6) * (0.5 + 0.5 * math.cos(math.pi * share))
        begin = time.process_time()
        logits, targets = task.logits(model, batch)
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - begin)
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"{run_name(run)}: step {step + 1} of {steps}, loss {sum(losses[-10:]) / 10:.4f}", file=sys.stderr)
    found: Run = {
        **run,
        "parameters": sum(p.numel() for p in parameters),
        "train_loss": sum(losses[-20:]) / len(losses[-20:]),
        "ms_per_step": 1000 * sorted(times)[len(times) // 2],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": task.loss(model),
    }
    if write is not None:
        found["bytes"] = write(keep.with_suffix(".nola"))
    else:
        found["bytes"] = 2 * found["parameters"]  # fp16
    if run.get("ptq"):
        found["ptq"] = _losses_after_rounding(task, model, run["ptq"])
    if run.get("bleu"):
        found["bleu"] = task.bleu(model)
    return found


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
    shown = {k: v for k, v in run.items() if k not in ("method", "threads", "ptq", "bleu", "steps", "lr", "seed")}
    return " ".join([run["method"], *(f"{key}={value}" for key, value in shown.items()), f"seed={run['seed']}"])


def result_path(run: Run) -> Path:
    """The file that keeps the figures of a run."""
    key = hashlib.sha256(json.dumps({k: v for k, v in run.items() if k != "threads"}, sort_keys=True).encode())
    return cache_dir() / "experiments" / f"{run['method']}-{key.hexdigest()[:12]}.json"


def results(runs: Sequence[Run], *, made_before: bool = False) -> list[Run]:
    """Return the figures of each run; missing ones are made one after the other, or left out."""
    made = []
    for run in runs:
        path = result_path(run)
        if not path.is_file() and made_before:
            continue
        if not path.is_file():
            subprocess.run([sys.executable, __file__, json.dumps(run)], check=True, env={**os.environ})
        made.append(json.loads(path.read_text()))
    return made


def main() -> None:
    """Do one run: `python e2e.py '{"method": "nola", ...}'`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=json.loads, metavar="JSON", help="the settings of the run")
    run = parser.parse_args().run
    path = result_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = train(run, path)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(path)


if __name__ == "__main__":
    main()
