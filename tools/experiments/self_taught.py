"""Files of the E2E adapter that the adapter itself has taught, beside files from the weights and from the task's data.

    python tools/experiments/self_taught.py                                     # all doors, sizes and seeds
    python tools/experiments/self_taught.py --doors prompts --sizes 5KB --seeds 0

A door is what the encoder is given besides the base model and the adapter: `weights` nothing, and it does not train;
`none` nothing; `prompts` sixteen meanings of `valid.txt` without their texts; `prompts_in_use` sixteen meanings of
`test.txt` that are not among those of the measured rows; `data` all rows of `valid.txt`, on which the adapter was
trained, for their texts; `adapter_on_data` the same rows, for what the adapter predicts; `data_and_adapter` the same
rows, for both.

The loss is that of `tools/e2e_loss.py`, over 192 rows of `test.txt`, in float32. The seed is that of the basis, of the
samples and of the order of batches. What was measured before is not measured again, and a run that was killed goes on.
The tables of the pages come from the results (`results.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import results
import torch
from e2e import EVALUATED_ROWS, Pair, Task, base_model, cache_dir
from page_tables.self_taught import DOORS, curves, losses
from real_data import adapter
from tables import plot_curve

import nola_codec

ADAPTER = adapter("smollm2_e2e")
PROMPTS = 16
AGAINST: dict[str, Literal["labels", "adapter", "both"]] = {
    "data": "labels", "adapter_on_data": "adapter", "data_and_adapter": "both",
}  # fmt: skip
"""What the doors that have the task's data train against."""


def rows_file(folder: Path, pairs: Sequence[Pair]) -> Path:
    """Write rows as `encode --data` reads them."""
    path = folder / "rows.jsonl"
    rows = ({"prompt": f"data: {meaning}\ntext:", "completion": f" {text}\n"} for meaning, text in pairs)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def prompts_file(folder: Path, rows: Sequence[Pair], without: Sequence[Pair] = ()) -> Path:
    """Write the first distinct meanings of shuffled rows as prompts, but no meaning of the rows `without`."""
    left_out = {meaning for meaning, _ in without}
    meanings = list(dict.fromkeys(meaning for meaning, _ in rows if meaning not in left_out))[:PROMPTS]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"data: {meaning}\ntext:"}) + "\n" for meaning in meanings))
    return path


def make_tuner(door: str, settings: Mapping[str, Any], task: Task, checkpoint: Path) -> Any:
    """Return the tuner of a door."""
    from nola_codec.integrations.self_teaching import self_tuner
    from nola_codec.integrations.task_text import text_tuner
    from nola_codec.training import TaskSettings

    chosen = TaskSettings(
        steps=settings["steps"], seed=settings["seed"], checkpoint=checkpoint, against=AGAINST.get(door)
    )
    folder = checkpoint.parent
    if door in AGAINST:
        return text_tuner(base_model(), ADAPTER, rows_file(folder, task.train_rows), settings=chosen, progress=tell)
    prompts = None
    if door == "prompts":
        prompts = prompts_file(folder, task.train_rows)
    elif door == "prompts_in_use":
        prompts = prompts_file(folder, task.test_rows[EVALUATED_ROWS:], task.test_rows[:EVALUATED_ROWS])
    return self_tuner(base_model(), ADAPTER, prompts=prompts, settings=chosen, progress=tell)


def tell(stage: str, done: int, total: int) -> None:
    """Show progress on stderr, now and then."""
    if done % 20 == 0:
        print(f"{time.strftime('%H:%M:%S')} {stage}: {done} of {total}", file=sys.stderr, flush=True)


def measure(settings: Mapping[str, Any], task: Task, anew: bool = False) -> dict[str, Any]:
    """Return the figures of the file of these settings; see `make`."""
    file, found = make(settings, task, anew)
    return {**found, "loss": loss(task, file)}


def make(settings: Mapping[str, Any], task: Task, anew: bool = False) -> tuple[Path, dict[str, Any]]:
    """Make the file of these settings, unless the cache has it. Return its path, and the figures of its encode.

    Args:
        settings: The door, the size, the number of steps and the seed.
        task: The task.
        anew: True makes the file even if the cache has it, but on the texts that were drawn before.
    """
    kept = cache_dir() / "experiments" / "self"
    folder = kept / "-".join(str(value) for value in settings.values())
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    file, figures = folder / "file.nola", folder / "figures.json"
    if not figures.is_file():
        figures.write_text(json.dumps(encode(settings, task, file, kept)))
    return file, json.loads(figures.read_text())


def encode(settings: Mapping[str, Any], task: Task, file: Path, kept: Path) -> dict[str, Any]:
    """Encode, and return the figures of the report. Texts that were drawn once serve all sizes of a door and a seed."""
    door, begin = settings["door"], time.process_time()
    options: dict[str, Any] = {"size": settings["size"], "seed": settings["seed"], "overwrite": True}
    own, shared = file.parent / "training-samples", kept / f"samples-{door}-{settings['seed']}.json"
    if door != "weights":
        if shared.is_file():
            shutil.copy(shared, own)
        options |= {"fit": "task", "tuner": make_tuner(door, settings, task, file.parent / "training")}
        if own.is_file():
            shutil.copy(own, shared)
    report = nola_codec.encode(ADAPTER, file, **options)
    found: dict[str, Any] = {"bytes": report.bytes, "seconds": time.process_time() - begin}
    if report.task is not None:
        task_report = report.task
        found |= {"steps_kept": task_report.steps, "self_kept": task_report.kept, "self_base": task_report.base}
        found |= {"self_start": task_report.start, "self_file": task_report.file}
    return found


def loss(task: Task, file: Path | None, own: Path | None = None) -> float:
    """Return the held-out loss with a decoded file, with an adapter, or of the base model."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        if file is not None:
            own = Path(folder) / "adapter"
            nola_codec.decode(file, own)
        if own is None:
            return task.loss(task.model)
        model = PeftModel.from_pretrained(task.model, str(own))
        found = task.loss(model)
        task.model = model.unload()
        return found


def measure_plain(own: Path | None, task: Task) -> dict[str, Any]:
    """Return the loss of the adapter, or of the base model."""
    return {"loss": loss(task, None, own)}


def main() -> None:
    """Measure, print the table, and plot the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doors", default=",".join(DOORS))
    parser.add_argument("--sizes", default="50KB,20KB,10KB,5KB,3KB,2KB")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the losses over the bytes of the files")
    results.add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = Task()
    anew = arguments.anew
    for seed in arguments.seeds.split(","):
        for size in arguments.sizes.split(","):
            for door in arguments.doors.split(","):
                steps = 0 if door == "weights" else arguments.steps
                settings = {"door": door, "size": size, "steps": steps, "seed": int(seed)}
                results.measure("self_taught", settings, partial(measure, settings, task, anew), anew=anew)
    for name, own in (("base", None), ("adapter", ADAPTER)):
        results.measure("self_taught", {"door": name}, partial(measure_plain, own, task), anew=anew)
    found = results.read("self_taught")
    print(losses(found))
    if arguments.plot:
        plot_curve(
            arguments.plot, curves(found), results.losses_of_ends(found), f"{EVALUATED_ROWS} held-out rows of E2E"
        )


if __name__ == "__main__":
    main()
