"""Measure the loss on E2E NLG that the README's figures use, of SmolLM2-135M-Instruct with or without an adapter.

    python tools/e2e_loss.py [ADAPTER_DIR] [--base BASE_DIR] [--rows 192]
    python tools/e2e_loss.py --write-rows e2e.jsonl     # the same rows for `nola-codec eval --data`

It prints nats a target token over the first rows of the test set, which was shuffled with a fixed seed. The prompt is
not scored. `examples/e2e/test.txt` has 192 rows; more of them, and the validation rows, are in the further data
(see real_data.py). Without --base, tools/base_model.py makes the base model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from real_data import EXAMPLES, text_set

Pair = tuple[str, str]
CARRIED_ROWS = 192


def rows(split: str, count: int) -> list[Pair]:
    """The first `count` pairs (meaning, text) of a shuffled split, `test` or `valid`."""
    carried = EXAMPLES / "e2e" / "test.txt"
    if split == "test" and count <= CARRIED_ROWS:
        return _read_pairs(carried)[:count]
    pairs = _read_pairs(text_set(f"e2e/{split}.txt"))
    random.Random(1).shuffle(pairs)
    return pairs[:count]


def _read_pairs(path: Path) -> list[Pair]:
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        meaning, text = line.split("||", 1)
        pairs.append((meaning.strip(), text.strip()))
    return pairs


def batch(tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, all (rows, length); the prompt and the padding are labelled -100."""
    ids, labels = [], []
    for meaning, text in pairs:
        prompt = tokenizer("data: " + meaning + "\ntext:")["input_ids"]
        target = tokenizer(" " + text + "\n")["input_ids"] + [tokenizer.eos_token_id]
        ids.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
    shape = len(ids), max(map(len, ids))
    out = {
        "input_ids": torch.full(shape, tokenizer.eos_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    for i, (row, label) in enumerate(zip(ids, labels, strict=True)):
        out["input_ids"][i, : len(row)] = torch.tensor(row)
        out["attention_mask"][i, : len(row)] = 1
        out["labels"][i, : len(label)] = torch.tensor(label)
    return out


@torch.no_grad()
def loss(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> float:
    """Nats a target token, over all pairs."""
    model.eval()
    total = tokens = 0.0
    for start in range(0, len(pairs), 16):
        made = batch(tokenizer, pairs[start : start + 16])
        scored = (made["labels"][:, 1:] != -100).sum().item()
        total += model(**made).loss.item() * scored
        tokens += scored
    return total / tokens


def write_rows(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as rows that `nola-codec eval` scores with the same loss."""
    rows = [{"prompt": f"data: {meaning}\ntext:", "completion": f" {text}\n"} for meaning, text in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Measure and print, or write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", nargs="?", type=Path, help="PEFT adapter; the base model alone if left out")
    parser.add_argument("--base", type=Path, help="Transformers directory of the base model")
    parser.add_argument("--rows", type=int, default=CARRIED_ROWS)
    parser.add_argument("--write-rows", type=Path, metavar="FILE", help="write the rows there, and measure nothing")
    options = parser.parse_args()
    if options.write_rows is not None:
        write_rows(options.write_rows, rows("test", options.rows))
        return
    from base_model import base_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = options.base or base_model()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if options.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter)
    print(f"{loss(model, AutoTokenizer.from_pretrained(base), rows('test', options.rows)):.4f}")


if __name__ == "__main__":
    main()
