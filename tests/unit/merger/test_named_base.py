"""A file names the base model that it was encoded with, and a merge refuses another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nola_codec
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.container.reader import open_container
from nola_codec.errors import AdapterError

WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def write_model(folder: Path, **changed: Any) -> Path:
    """A model directory of one weight and a bias."""
    rng = np.random.default_rng(0)
    tensors = {WEIGHT: rng.standard_normal((16, 12)).astype(np.float32), "model.norm.weight": np.ones(12, np.float32)}
    folder.mkdir()
    save_file({**tensors, **changed}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    """A file of an adapter, encoded with its base model."""
    rng = np.random.default_rng(1)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": rng.standard_normal((2, 12)).astype(np.float32),
               f"{name}.lora_B.weight": rng.standard_normal((16, 2)).astype(np.float32)}  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"],
              "base_model_name_or_path": "some/model", "revision": "main"}  # fmt: skip
    nola_codec.encode(tensors, tmp_path / "a.nola", config=config, base=base, nmse=0.1)
    return tmp_path / "a.nola"


def test_the_file_names_its_base(file: Path, base: Path) -> None:
    with open_container(file) as container:
        entry = container.header.base
    assert entry is not None
    assert (entry.name, entry.revision) == ("some/model", "main")
    assert entry.sha256 == Checkpoint(base).fingerprint()
    nola_codec.merge([file], base, file.parent / "merged")


@pytest.mark.parametrize(
    "changed",
    [{WEIGHT: np.zeros((16, 12), np.float32)}, {"model.norm.weight": np.ones(12, np.float16)},
     {"model.extra": np.zeros(1, np.float32)}],
    ids=["bytes", "dtype", "tensors"],
)  # fmt: skip
def test_a_merge_refuses_another_base(file: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    other = write_model(tmp_path / "other", **changed)
    with pytest.raises(AdapterError, match="made for some/model main, whose weights are others") as refusal:
        nola_codec.merge([file], other, tmp_path / "merged")
    assert refusal.value.code == "other-base"
    assert not (tmp_path / "merged").exists()
    nola_codec.merge([file], other, tmp_path / "merged", any_base=True)
    assert (tmp_path / "merged").is_dir()
