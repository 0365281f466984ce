"""What a reference saves: two published checkpoints of an adapter, and the checkpoints of a run made here.

    python tools/experiments/references.py [--loss] [--anew]

The pair is `mlx_qwen05b` (steps 100 and 200 of a training by somebody else). The run trains a LoRA of rank 4 on the
query and value projections of SmolLM2-135M for 5 x 12 steps of 4 rows of E2E, under bfloat16 autocast, and keeps its
checkpoints in the cache. Each checkpoint is coded alone, and against the file before it. --loss also measures the loss
of the last checkpoint and of its files on 96 held-out rows. Results are kept (`results.py`), and the tables of
docs/versions.md are made from them.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import results
from real_data import adapter, cache_dir

import nola_codec

NAME = "references"
TARGETS: dict[str, dict[str, Any]] = {"NMSE 0.1": {"nmse": 0.1}, "NMSE 0.03": {"nmse": 0.03}, "default": {}}
CHECKPOINTS, STEPS, BATCH, RANK, RATE, ROWS = 5, 12, 4, 4, 1e-3, 96


def encode(source: Path, target: str, reference: Any = None) -> dict[str, Any]:
    """Encode an adapter; return the figures of its report, and the file as `data`."""
    stream = io.BytesIO()
    report = nola_codec.encode(source, stream, reference=reference, **TARGETS[target])
    figures = {"bytes": report.bytes, "nmse": report.nmse, "effective_error": report.effective_error}
    return {**figures, "data": stream.getvalue()}


def measure_pair(*, anew: bool) -> None:
    """Code the later of two checkpoints alone, against the earlier one's file, and against the earlier one itself."""
    old, new = adapter("mlx_qwen05b/0000100"), adapter("mlx_qwen05b/0000200")
    for target in TARGETS:
        for kind in ("none", "decoded", "exact"):

            def code(target: str = target, kind: str = kind) -> dict[str, Any]:
                reference: Any = None
                if kind == "decoded":
                    reference = encode(old, target)["data"]
                elif kind == "exact":
                    reference = old
                made = encode(new, target, reference)
                return {key: value for key, value in made.items() if key != "data"}

            settings = {"adapter": "mlx_qwen05b 100 -> 200", "target": target, "reference": kind}
            found = results.measure(NAME, settings, code, anew=anew)
            print(f"{settings['adapter']}, {target}, reference {kind}: {found['figures']['bytes']:,} bytes")


def train_checkpoints() -> list[Path]:
    """Train the run, unless its checkpoints are there, and return their directories."""
    home = cache_dir() / "experiments" / "references"
    folders = [home / f"checkpoint-{STEPS * (number + 1)}" for number in range(CHECKPOINTS)]
    if all((folder / "adapter_config.json").is_file() for folder in folders):
        return folders
    import torch
    from e2e import Task
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    task = Task()
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(task.model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    for step, batch in enumerate(task.batches(0, STEPS * CHECKPOINTS, BATCH), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits, wanted = task.logits(model, batch)
            loss = cross_entropy(logits.float(), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % STEPS == 0:
            model.save_pretrained(str(folders[step // STEPS - 1]))
            print(f"step {step}: loss of the batch {loss.item():.3f}", flush=True)
    return folders


def code_chain(folders: list[Path], target: str, *, is_chain: bool) -> tuple[dict[str, Any], bytes]:
    """Code checkpoints alone or as one chain; return the figures of all files, and the last file with its chain."""
    home = cache_dir() / "experiments" / "references" / f"{'chain' if is_chain else 'alone'} {target}"
    home.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"bytes": [], "nmse": [], "effective_error": []}
    before: Path | None = None
    made: dict[str, Any] = {"data": b""}
    for folder in folders:
        made = encode(folder, target, before)
        for key, values in figures.items():
            values.append(made[key])
        path = home / f"{folder.name}.nola"
        path.write_bytes(made["data"])
        before = path if is_chain else None
    return figures, made["data"]


def measure_run(*, with_loss: bool, anew: bool) -> None:
    """Code the checkpoints of the run, alone and as chains; measure the losses of the last one."""
    run = f"SmolLM2-135M on E2E, rank {RANK} on q and v, {CHECKPOINTS} x {STEPS} steps of {BATCH} rows"
    for target in TARGETS:
        for is_chain in (False, True):

            def code(target: str = target, is_chain: bool = is_chain) -> dict[str, Any]:
                return code_chain(train_checkpoints(), target, is_chain=is_chain)[0]

            settings = {"adapter": run, "target": target, "chain": is_chain}
            found = results.measure(NAME, settings, code, anew=anew)["figures"]
            print(f"{target}, {'chain' if is_chain else 'alone'}: {found['bytes']}, {sum(found['bytes']):,} bytes")
    if with_loss:
        measure_losses(run, anew=anew)


def measure_losses(run: str, *, anew: bool) -> None:
    """Measure the loss of the base model, of the last checkpoint, and of its files."""
    from peft import PeftModel

    folders = train_checkpoints()
    subjects: dict[str, tuple[str, bool] | None] = {"base": None, "adapter": None}
    subjects |= {
        f"{'chain' if chain else 'alone'}, {target}": (target, chain)
        for target in ("NMSE 0.1", "default")
        for chain in (False, True)
    }
    for subject, file in subjects.items():

        def loss(subject: str = subject, file: tuple[str, bool] | None = file) -> dict[str, Any]:
            from e2e import Task

            task = Task()
            if subject == "base":
                return {"loss": task.loss(task.model, ROWS)}
            place = folders[-1]
            if file is not None:
                code_chain(folders, file[0], is_chain=file[1])
                home = cache_dir() / "experiments" / "references"
                source = home / f"{'chain' if file[1] else 'alone'} {file[0]}" / f"{folders[-1].name}.nola"
                place = Path(nola_codec.decode(source, home / "decoded", overwrite=True))
            return {"loss": task.loss(PeftModel.from_pretrained(task.model, place), ROWS)}

        settings = {"adapter": run, "loss of": subject, "rows": ROWS}
        print(f"{subject}: {results.measure(NAME, settings, loss, anew=anew)['figures']['loss']:.4f}", flush=True)


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", action="store_true", help="measure the losses of the run's last checkpoint too")
    results.add_options(parser)
    chosen = parser.parse_args()
    measure_pair(anew=chosen.anew)
    measure_run(with_loss=chosen.loss, anew=chosen.anew)


if __name__ == "__main__":
    main()
