"""Directories as trainers leave them: shards, checkpoints, ungathered tensors, and files beside the adapter."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec import adapters
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}


def _factors(*layers: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    made = {}
    for layer in layers or (0, 1):
        key = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        made |= {f"{key}.lora_A.weight": torch.randn(2, 6), f"{key}.lora_B.weight": torch.randn(8, 2)}
    return made


def _save(directory: Path, name: str = "adapter_model.safetensors", **tensors: torch.Tensor) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors or _factors(), directory / name)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.mark.parametrize("has_index", [False, True])
def test_shards_are_joined(has_index: bool, tmp_path: Path) -> None:
    """Case 25: with or without an index, the shards are one adapter."""
    for number in (1, 2):
        _save(tmp_path, f"adapter_model-0000{number}-of-00002.safetensors", **_factors(number))
    if has_index:
        (tmp_path / "adapter_model.safetensors.index.json").write_text("{}")
    adapter = adapters.read(tmp_path)
    assert [m.scaling for m in adapter.modules] == [4.0, 4.0]
    report = nola_codec.encode(tmp_path)
    assert "2 shards were joined" in report.notes
    assert report.source_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """Case 25: half an adapter is none."""
    _save(tmp_path, "adapter_model-00001-of-00003.safetensors")
    _save(tmp_path, "adapter_model-00003-of-00003.safetensors", **_factors(2))
    with pytest.raises(AdapterError, match="shard 2 of 3 is missing") as caught:
        adapters.read(tmp_path)
    assert caught.value.code == "sharded"


def test_lone_checkpoint_is_taken(tmp_path: Path) -> None:
    """A trainer's output directory with one checkpoint in it."""
    _save(tmp_path / "checkpoint-30")
    (tmp_path / "README.md").write_text("a training")
    report = nola_codec.encode(tmp_path)
    assert any("the only folder with one, checkpoint-30, is read" in note for note in report.notes)


def test_several_checkpoints_are_named(tmp_path: Path) -> None:
    """Of several checkpoints the user has to give one; they are listed by their steps."""
    for step in (90, 100, 20):
        _save(tmp_path / f"checkpoint-{step}")
    with pytest.raises(AdapterError, match="checkpoint-20, checkpoint-90, checkpoint-100") as caught:
        adapters.read(tmp_path)
    assert caught.value.code == "several-checkpoints"
    assert str(tmp_path / "checkpoint-100") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tool"),
    [("pytorch_model_fsdp_0/__0_0.distcp", "merge-weights"), ("zero_to_fp32.py", "zero_to_fp32"),
     ("global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32")],
)  # fmt: skip
def test_sharded_training_state_is_refused(name: str, tool: str, tmp_path: Path) -> None:
    """Folders of FSDP and DeepSpeed: the message names the tool that gathers them."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"state")
    with pytest.raises(AdapterError, match=tool) as caught:
        adapters.read(tmp_path)
    assert caught.value.code == "ungathered"


@pytest.mark.parametrize("empty", [("A", "B"), ("B",)])
def test_ungathered_tensors_are_refused(empty: tuple[str, ...], tmp_path: Path) -> None:
    """Case 18: ZeRO-3 leaves tensors of the shape (0,)."""
    tensors = {k: torch.empty(0) if k[-8] in empty and "layers.1" in k else t for k, t in _factors().items()}
    with pytest.raises(AdapterError, match=f"{len(empty)} of 4 tensors are empty.*gather") as caught:
        adapters.read(_save(tmp_path, **tensors))
    assert caught.value.code == "ungathered"


@pytest.fixture
def with_files(tmp_path: Path) -> Path:
    """An adapter with LLaVA's projector, vLLM's embeddings and another adapter beside it."""
    path = _save(tmp_path / "adapter")
    torch.save({"base_model.model.mm_projector.weight": torch.ones(3, 3)}, path / "non_lora_trainables.bin")
    save_file({"input_embeddings": torch.ones(4, 6)}, path / "new_embeddings.safetensors")
    (path / "training_args.bin").write_bytes(b"no weights")
    _save(path / "second")
    _save(path / "checkpoint-10")
    return path


def test_files_beside_are_named(with_files: Path) -> None:
    """Case 23: what is not encoded is said."""
    (note,) = (note for note in adapters.read(with_files).notes if "not encoded" in note)
    assert "new_embeddings.safetensors, non_lora_trainables.bin, second/" in note
    assert "--carry-unknown" in note
    assert "training_args" not in note


def test_files_beside_are_carried(with_files: Path, tmp_path: Path) -> None:
    """Case 23: --carry-unknown carries their tensors, and a decoded directory has the files again."""
    nola_codec.encode(with_files, tmp_path / "a.nola", carry_unknown=True)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "new_embeddings.safetensors",
        "non_lora_trainables.bin",
    ]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    assert set(load_file(tmp_path / "again/adapter_model.safetensors")) == set(_factors())
    (projector,) = torch.load(tmp_path / "again/non_lora_trainables.bin", weights_only=True).items()
    assert projector[0] == "base_model.model.mm_projector.weight"
    assert torch.equal(projector[1], torch.ones(3, 3))
    assert torch.equal(load_file(tmp_path / "again/new_embeddings.safetensors")["input_embeddings"], torch.ones(4, 6))
    weights = {f"model.layers.{n}.self_attn.q_proj.weight": torch.zeros(8, 6) for n in (0, 1)}
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match="beside the adapter") as caught:
        nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base.safetensors", tmp_path / "merged.safetensors")
    assert caught.value.code == "merge-unknown"


@pytest.mark.parametrize("name", ["adapter_config.json", "..", "x.exe", "ADAPTER_MODEL.bin"])
def test_hostile_names_beside_are_refused(name: str, tmp_path: Path) -> None:
    """A `.nola` file of a stranger cannot choose any name."""
    adapter = adapters.read(_save(tmp_path / "adapter"))
    raw = {f"beside:{name}:x": RawTensor("F32", (1,), bytes(4))}
    with pytest.raises(AdapterError, match="not a name") as caught:
        adapters.write(nola_codec.model.adapter.Adapter("peft", adapter.modules, raw, CONFIG), tmp_path / "out")
    assert caught.value.code == "bad-name"
    assert not (tmp_path / "out").exists()


def test_pickled_views_are_read(tmp_path: Path) -> None:
    """Case 36: strided slices, transposed views and parameters in bfloat16 are read as PyTorch reads them."""
    big = torch.randn(40, 32).bfloat16()
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    state: Any = collections.OrderedDict()
    state[f"{key}.lora_A.weight"] = big[10:12, :6]
    state[f"{key}.lora_B.weight"] = torch.nn.Parameter(big[4:6, :8].T)
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (module,) = adapters.read(tmp_path).modules
    assert torch.equal(torch.from_numpy(module.lora_A), big[10:12, :6].float())
    assert torch.equal(torch.from_numpy(module.lora_B), big[4:6, :8].T.float())


def test_empty_pickle_is_refused(tmp_path: Path) -> None:
    """Case 36: an adapter_model.bin of an empty dict is no adapter."""
    torch.save({}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(AdapterError) as caught:
        adapters.read(tmp_path)
    assert caught.value.code == "empty-adapter"
