"""The curve of loss against size of the E2E adapter: files made from the weights alone, and files trained on the task.

    python tools/experiments/task_curve.py [--sizes 50KB,20KB,10KB,5KB] [--steps 100] [--json FILE] [--plot FILE]

Trained on the rows that the adapter was trained on (`valid.txt`), measured on 192 others. Sizes are whole files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from e2e import EVALUATED_ROWS, Task, base_model, cache_dir
from real_data import adapter
from tables import gain, plot_curve, show

import nola_codec

ADAPTER = adapter("smollm2_e2e")


def rows_file(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Rows as `encode --data` reads them."""
    path = folder / "rows.jsonl"
    rows = ({"prompt": f"data: {meaning}\ntext:", "completion": f" {text}\n"} for meaning, text in pairs)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def encode_both(task: Task, size: str, steps: int, against: str, threads: int) -> dict[str, Any]:
    """Both files of a size; kept in the cache of experiments."""
    from nola_codec.integrations.task_text import text_tuner
    from nola_codec.training import TaskSettings

    folder = cache_dir() / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"task-{size}-{steps}-{against}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    torch.set_num_threads(threads)
    plain, trained = kept.with_suffix(".weights.nola"), kept.with_suffix(".nola")
    nola_codec.encode(ADAPTER, plain, size=size, overwrite=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        settings = TaskSettings(steps=steps, against=against, checkpoint=kept.with_suffix(".training"))  # type: ignore[arg-type]
        tuner = text_tuner(base_model(), ADAPTER, rows_file(Path(temporary), task.train_rows), settings=settings,
                           progress=make_progress(size))  # fmt: skip
        report = nola_codec.encode(ADAPTER, trained, size=size, fit="task", tuner=tuner, overwrite=True)
    found = {
        "size": size, "steps": report.task.steps if report.task else 0, "seconds": time.perf_counter() - begin,
        "weights": {"bytes": plain.stat().st_size, "loss": loss(task, plain)},
        "task": {"bytes": report.bytes, "loss": loss(task, trained), "nmse": report.nmse},
    }  # fmt: skip
    kept.write_text(json.dumps(found, indent=1))
    return found


def make_progress(size: str) -> Any:
    """Progress of training, on stderr, now and then."""

    def tell(stage: str, done: int, total: int) -> None:
        if stage == "training" and done % 20 == 0:
            print(f"{size}: step {done} of {total}", file=sys.stderr)

    return tell


def loss(task: Task, file: Path | None, adapter: Path | None = None) -> float:
    """Held-out loss with a decoded file, with an adapter, or of the base model."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        if file is not None:
            adapter = Path(folder) / "adapter"
            nola_codec.decode(file, adapter)
        if adapter is None:
            return task.loss(task.model)
        model = PeftModel.from_pretrained(task.model, str(adapter))
        found = task.loss(model)
        task.model = model.unload()
        return found


def main() -> None:
    """Table, JSON, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="50KB,20KB,10KB,5KB")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--against", default="labels", choices=["labels", "adapter", "both"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    task = Task()
    sizes = arguments.sizes.split(",")
    found = [encode_both(task, size, arguments.steps, arguments.against, arguments.threads) for size in sizes]
    base, full = loss(task, None), loss(task, None, ADAPTER)
    rows = [["base model", 0, f"{base:.4f}", ""], ["adapter, fp16", 4_884_480, f"{full:.4f}", "100.0%"]]
    for kind in ("task", "weights"):
        for result in found:
            own = result[kind]
            rows.append([f"--fit {kind} --size {result['size']}", own["bytes"], f"{own['loss']:.4f}",
                         gain(base, full, own["loss"])])  # fmt: skip
    show(
        ["what", "bytes", "loss", "of the gain"], rows, arguments.json, {"base": base, "adapter": full, "files": found}
    )
    if arguments.plot:
        curves = {f"--fit {kind}": [(r[kind]["bytes"], r[kind]["loss"]) for r in found] for kind in ("task", "weights")}
        plot_curve(arguments.plot, curves, {"base": base, "adapter": full}, f"{EVALUATED_ROWS} held-out rows of E2E")


if __name__ == "__main__":
    main()
