"""Fine-tune all weights of SmolLM2-135M on E2E NLG, once: it makes a bfloat16 checkpoint and its bfloat16 base.

    python tools/bench/full_finetune.py [--base DIR] [--out DIR] [--steps 60] [--rows 8] [--rate 5e-5]

AdamW trains all weights in float32 on rows of the E2E validation split in a fixed order. Both models are stored in
bfloat16, as published checkpoints are, in `base/` and `tuned/` under --out. A second call finds what the first one
made. Sixty steps take about ten minutes on one core. The validation rows are part of the further data
(tools/real_data.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from task_peers import base_directory


def fine_tuned(base: Path, out: Path, *, steps: int = 60, rows: int = 8, rate: float = 5e-5) -> tuple[Path, Path]:
    """Make the two models if they are not there, and return their directories (base, tuned)."""
    made, tuned = out / "base", out / "tuned"
    if (tuned / "config.json").is_file():
        return made, tuned
    import e2e_loss
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = e2e_loss.rows("valid", steps * rows)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    _save(model, base, made)
    model = model.float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 6) * (1 - step / steps)
        batch = e2e_loss.batch(tokenizer, data[step * rows : (step + 1) * rows])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    _save(model.to(torch.bfloat16), base, tuned)
    return made, tuned


def _save(model: Any, base: Path, out: Path) -> None:
    """Save a model into a directory that appears only when it is complete."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    for file in base.iterdir():
        if file.is_file() and not (part / file.name).exists() and file.suffix != ".safetensors":
            shutil.copyfile(file, part / file.name)
    part.rename(out)


def main() -> None:
    """Make the models, and print their directories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-5)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(*fine_tuned(arguments.base or base_directory(), arguments.out, steps=arguments.steps, rows=arguments.rows,
                      rate=arguments.rate), sep="\n")  # fmt: skip


if __name__ == "__main__":
    main()
