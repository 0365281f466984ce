"""An adapter of a sentence encoder teaches its own code: Banking77 on MiniLM, on texts without their labels.

    python tools/bench/second_task.py --train            # once: makes the adapter in .cache/banking77
    python tools/experiments/self_taught_banking77.py [--sizes 10KB 5KB] [--seeds 0 1 2] [--doors weights texts words]

Doors: `weights` codes the weights alone; `texts` is `encode --fit task --data self --prompts FILE` with the training
texts of Banking77, one a line, without labels; `words` is the same without the file, on texts of random words. The loss
(nats a row) and the accuracy are those of the classifier, whose head lies outside of all files, on test rows; nothing
was chosen on them. Results are kept as they come (`results.py`), and a program that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import results
from page_tables.self_taught_banking77 import NAME, losses
from real_data import ROOT

sys.path.insert(0, str(ROOT / "tools" / "bench"))
from second_task import BASE, DEFAULT, Task, rows
from task_peers import base_directory, ours

LIMIT = 1024
"""Test rows."""


def texts_file(folder: Path) -> Path:
    """The training texts, one a line."""
    path = folder / "texts.txt"
    path.write_text("\n".join(" ".join(text.split()) for text in rows("train")[0]) + "\n", encoding="utf-8")
    return path


def encode_and_measure(
    task: Task, base: Path, folder: Path, door: str, size: str, seed: int, steps: int
) -> dict[str, Any]:
    """Bytes of a file, the loss and accuracy of what it decodes to, and the distance that was trained."""
    from nola_codec.integrations.self_teaching import self_tuner
    from nola_codec.training import TaskSettings

    options: dict[str, Any] = {"seed": seed}
    tuner = None
    checkpoint = results.working_file(f"{NAME}-{door}-{size}-{seed}-{steps}").with_suffix(".training")
    if door != "weights":
        with tempfile.TemporaryDirectory() as made:
            tuner = self_tuner(
                base, folder / "adapter", prompts=texts_file(Path(made)) if door == "texts" else None,
                settings=TaskSettings(steps=steps, seed=seed, checkpoint=checkpoint),
                progress=lambda stage, done, total: print(f"{stage} {done}/{total}", end="\r", file=sys.stderr),
            )  # fmt: skip
        options |= {"fit": "task", "tuner": tuner}
    count, deltas, _ = ours(folder / "adapter", size, options)
    loss, accuracy = task.measure(deltas)
    checkpoint.unlink(missing_ok=True)
    found: dict[str, Any] = {"bytes": count, "loss": loss, "accuracy": accuracy}
    if tuner is not None:
        report = tuner.report()
        found |= {"distance": {name: getattr(report, name) for name in ("base", "start", "file")}, "best": report.steps}
    return found


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["10KB", "5KB"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--doors", nargs="+", default=["weights", "texts", "words"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--adapter", type=Path, default=DEFAULT, metavar="DIR", help="what second_task.py --train made")
    results.add_options(parser)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    folder, base = arguments.adapter, base_directory(BASE)
    weights = folder / "adapter" / "adapter_model.safetensors"
    if not weights.is_file():
        sys.exit(f"no adapter in {folder}: make one with python tools/bench/second_task.py --train {folder}")
    common = {"adapter": hashlib.sha256(weights.read_bytes()).hexdigest()[:16], "rows": LIMIT}
    task = Task(folder, base, LIMIT)

    def measure_whole(door: str) -> dict[str, Any]:
        from nola_codec.adapters import read

        modules = read(folder / "adapter").modules if door == "adapter" else ()
        loss, accuracy = task.measure({m.name: (m.lora_B * m.scaling, m.lora_A) for m in modules})
        count = sum(2 * (m.lora_A.size + m.lora_B.size) for m in modules)
        return {"bytes": count, "loss": loss, "accuracy": accuracy}

    for door in ("base", "adapter"):
        results.measure(NAME, {**common, "door": door}, partial(measure_whole, door), anew=arguments.anew)
    for seed in arguments.seeds:
        for size in arguments.sizes:
            for door in arguments.doors:
                steps = {} if door == "weights" else {"steps": arguments.steps}
                found = results.measure(
                    NAME, {**common, "door": door, "size": size, "seed": seed, **steps},
                    partial(encode_and_measure, task, base, folder, door, size, seed, arguments.steps),
                    anew=arguments.anew,
                )  # fmt: skip
                print(f"{door} {size} seed {seed}: {found['figures']}", file=sys.stderr, flush=True)
    print(losses(results.read(NAME)))


if __name__ == "__main__":
    main()
