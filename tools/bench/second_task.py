"""A second task, far from the first: a Banking77 intent classifier, LoRA on all linear layers of MiniLM.

    python tools/bench/second_task.py --train [DIR]      # once, 10 to 30 minutes; DIR/adapter and DIR/head.safetensors
    python tools/bench/second_task.py [--adapter DIR] [--sizes 29KB 10KB ...] [--seeds 0 1] [--rows 256] [--json]

Loss (nats a row) and accuracy on rows of the test set. The base model of the table is MiniLM with the trained head, and
every other row has that same head: it is carried outside of all files, ours and the peers', and counted in none of
them. Peers as in task_loss.py: SVD in fp16 cut to the same size, SVD with group-64 rounding, DARE with rounding. The
last column is a peer's bytes over ours at equal loss, ours interpolated between the --sizes. 256 rows are few: 0.01
nats and 1% of accuracy are noise. Training is seeded, but float sums depend on the machine: figures compare only for
one and the same adapter. The rows of Banking77 are part of the further data (tools/real_data.py).
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table
from real_data import cache_dir, text_set
from safetensors.torch import load_file, save_file
from task_peers import Deltas, Result, added, as_json, base_directory, cases, ratios, render_error, task_options
from torch.nn.functional import cross_entropy

BASE = "all-minilm-l6-v2"
DEFAULT = cache_dir() / "banking77"
LENGTHS = {"train": 48, "test": 64}  # tokens a row is cut to
POOLED_SCALE = 4.0  # MiniLM's pooled vectors are short: this lets the head learn at an ordinary rate


def rows(split: str) -> tuple[list[str], list[str]]:
    """Texts and their intents."""
    with text_set(f"banking77/{split}.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [row["text"] for row in found], [row["category"] for row in found]


@functools.cache
def classes() -> list[str]:
    """Names of the intents; the head's outputs are in this order."""
    return sorted(set(rows("train")[1]))


class Classifier:
    """MiniLM, its last hidden states averaged over the tokens, and a linear head."""

    def __init__(self, base: Path) -> None:
        from transformers import AutoModel, AutoTokenizer, logging

        logging.set_verbosity_error()  # else it reports the pooler, which is not used
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self.encoder = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
        self.encoder.name_or_path = f"sentence-transformers/{BASE}"  # what PEFT writes down, not a cache directory
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, len(classes()))

    def logits(self, texts: list[str], length: int) -> Any:
        """(rows, classes)."""
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        return self.head((hidden * mask).sum(1) / mask.sum(1) * POOLED_SCALE)


def train(folder: Path, base: Path, steps: int) -> None:
    """LoRA r=8 on every linear layer, and the head, by AdamW on batches of 32."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = Classifier(base)
    layers = ["query", "key", "value", "dense"]
    model.encoder = get_peft_model(
        model.encoder, LoraConfig(r=8, lora_alpha=16, target_modules=layers, lora_dropout=0.0)
    )
    texts, intents = rows("train")
    labels = torch.tensor([classes().index(intent) for intent in intents])
    lora = [p for name, p in model.encoder.named_parameters() if "lora_" in name]
    groups: list[dict[str, Any]] = [{"params": lora, "lr": 2e-3}, {"params": model.head.parameters(), "lr": 5e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20) * (1 - i / steps))
    start = time.time()
    for step in range(steps):
        picked = np.random.default_rng(step).choice(len(texts), 32, replace=False)
        loss = cross_entropy(model.logits([texts[i] for i in picked], LENGTHS["train"]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    model.encoder.save_pretrained(folder / "adapter", save_embedding_layers=False)  # "auto" asks the network
    save_file(model.head.state_dict(), folder / "head.safetensors")


class Task:
    """Test rows, without the first `skip`, and the base model to which deltas are added for one evaluation."""

    def __init__(self, folder: Path, base: Path, count: int, skip: int = 0) -> None:
        self._model = Classifier(base)
        self._model.head.load_state_dict(load_file(folder / "head.safetensors"))
        self._weights = dict(self._model.encoder.named_parameters())
        texts, intents = rows("test")
        chosen = np.random.default_rng(0).permutation(len(texts))[skip : skip + count].tolist()
        chosen.sort(key=lambda i: len(texts[i]))  # alike lengths in a batch: less padding
        self._texts = [texts[i] for i in chosen]
        self._labels = torch.tensor([classes().index(intents[i]) for i in chosen])

    def measure(self, deltas: Deltas) -> tuple[float, float]:
        """Loss and accuracy with B A added to each named weight."""
        loss = right = 0.0
        with added(self._weights, deltas), torch.no_grad():
            for at in range(0, len(self._texts), 64):
                logits = self._model.logits(self._texts[at : at + 64], LENGTHS["test"])
                labels = self._labels[at : at + 64]
                loss += cross_entropy(logits, labels, reduction="sum").item()
                right += (logits.argmax(1) == labels).sum().item()
        return loss / len(self._texts), right / len(self._texts)


def main() -> None:
    """Train, or evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="?", const=DEFAULT, type=Path, metavar="DIR", help="train and save in DIR")
    parser.add_argument("--steps", type=int, default=450, help="of training")
    parser.add_argument("--adapter", type=Path, default=DEFAULT, metavar="DIR", help="what --train made")
    task_options(parser, sizes=["90KB", "50KB", "29KB", "20KB", "10KB", "5KB"], rows=256, ranks=[8, 4, 2, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = arguments.base or base_directory(BASE)
    if arguments.train:
        train(arguments.train, base, arguments.steps)
        return
    if not (arguments.adapter / "head.safetensors").is_file():
        sys.exit(f"no adapter in {arguments.adapter}: make one with --train {arguments.adapter}")
    task = Task(arguments.adapter, base, arguments.rows)
    grid, drops = (arguments.ranks, (8, 4, 3, 2)), (arguments.drops, (8, 4))
    found = []
    for case in cases(arguments.adapter / "adapter", arguments.sizes, arguments.seeds, {}, grid, drops):
        loss, accuracy = task.measure(case.deltas)
        found.append(Result(case.kind, case.name, case.bytes, loss, case.group, accuracy, case.effective_error))
        print(f"{case.name}: {case.bytes:,} bytes, {loss:.4f}, {accuracy:.1%}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(as_json(found), indent=2))
        return
    low, high = found[1].loss, found[0].loss
    lines = [
        [
            r.name,
            f"{r.bytes:,}",
            render_error(r),
            f"{r.loss:.4f}",
            f"{(high - r.loss) / (high - low):.1%}",
            f"{r.accuracy:.1%}",
            ratio,
        ]
        for r, ratio in zip(found, ratios(found), strict=True)
    ]
    print(
        table(
            lines,
            [
                "what, with the head",
                "bytes",
                "eff. error",
                "loss",
                "of the gain",
                "accuracy",
                "bytes / ours at equal loss",
            ],
        )
    )


if __name__ == "__main__":
    main()
