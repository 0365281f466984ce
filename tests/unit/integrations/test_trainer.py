"""NOLA in Transformers' Trainer: files beside checkpoints, and a resumed run that ends in the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import tiny

import nola_codec
from nola_codec.integrations.transformers import NolaCallback
from nola_codec.training import load, parametrize

peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names


def trained(folder: Path, resume: Path | None = None) -> Any:
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 64, (12,), generator=generator) for _ in range(32)]
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    parametrize(model, num_basis=16, bits=3)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=4, save_steps=4, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[NolaCallback(folder / "end.nola")])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model


def test_files_of_checkpoints_and_a_resumed_run(tmp_path: Path) -> None:
    model = trained(tmp_path / "a")
    early, late = (tmp_path / "a" / f"checkpoint-{step}" / "task.nola" for step in (4, 8))
    for file in (early, late, tmp_path / "a" / "end.nola"):
        nola_codec.verify(file)
    assert early.read_bytes() != late.read_bytes()
    assert late.read_bytes() == (tmp_path / "a" / "end.nola").read_bytes()
    trained(tmp_path / "b", early.parent)
    assert (tmp_path / "b" / "end.nola").read_bytes() == late.read_bytes()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens).logits
        assert torch.equal(load(tiny(), late).eval()(input_ids=tokens).logits, logits)
