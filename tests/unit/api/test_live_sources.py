"""Models and mappings of tensors as sources: they give the file that the saved adapter gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file

import nola_codec

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}
"""A form that is coded at once, whatever it loses."""
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 4, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "up_proj"],
               "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    "saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "bias": "lora_only"},
    "dora": {"r": 2, "target_modules": ["o_proj"], "use_dora": True, "lora_bias": False},
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "k_proj"]},
    "tokens": {"r": 2, "target_modules": ["k_proj"], "trainable_token_indices": [1, 5]},
}  # fmt: skip


def same_files(found: bytes, wanted: bytes) -> None:
    """Two files hold the same tensors, and configurations that differ in the order of sets alone."""
    with nola_codec.load(found) as one, nola_codec.load(wanted) as two:
        first, second = one.state_dict(), two.state_dict()
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.dtype == second[key].dtype
            assert torch.equal(tensor, second[key]), key
        assert _unordered(one.header.config) == _unordered(two.header.config)


def _unordered(config: Any) -> Any:
    return {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case(encode=RATE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_the_file_of_its_directory(
    kind: str, case: Any, save_adapter: Callable[..., tuple[Any, Path]]
) -> None:
    model, folder = save_adapter(case.fresh(), **KINDS[kind])
    found, report = nola_codec.encode_bytes(model, **RATE)
    wanted, saved = nola_codec.encode_bytes(folder, **RATE)
    same_files(found, wanted)
    assert report.bytes == len(found)
    assert report.source_bytes == sum(t.nbytes for t in load_file(folder / "adapter_model.safetensors").values())
    assert report.notes == saved.notes


def test_another_method_in_another_dtype(case: Any, tmp_path: Path) -> None:
    config = LoHaConfig(r=2, alpha=3, target_modules=["q_proj"], init_weights=False)
    model = get_peft_model(case.fresh().to(torch.bfloat16), config, autocast_adapter_dtype=False)
    model.save_pretrained(tmp_path / "saved")
    same_files(nola_codec.encode_bytes(model, **RATE)[0], nola_codec.encode_bytes(tmp_path / "saved", **RATE)[0])


def test_several_adapters(case: Any) -> None:
    from nola_codec.api.live_sources import open_model

    model = get_peft_model(case.fresh(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter("other", LoraConfig(r=3, target_modules=["v_proj"]))
    ranks = {"default": 2, "other": 3}
    assert open_model(model)[1]["r"] == 2
    model.set_adapter("other")
    assert open_model(model)[1]["r"] == 3
    for name, rank in ranks.items():
        store, config = open_model(model, name)
        assert (config["r"], config["inference_mode"]) == (rank, True)
        assert {min(info.shape) for info in store.tensors.values()} == {rank}
    assert not model.peft_config["other"].inference_mode
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(nola_codec.AdapterError, match=r"2 adapters .*, and 2 are active; name one") as caught:
        nola_codec.encode(model)
    assert caught.value.code == "which-adapter"
    with pytest.raises(nola_codec.AdapterError, match="no adapter named 'third'; it has default, other") as caught:
        open_model(model, "third")
    assert caught.value.code == "no-adapter"


def test_a_model_of_transformers_and_a_compiled_one(case: Any, tmp_path: Path) -> None:
    model = case.fresh()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "mine")
    model.save_pretrained(tmp_path / "saved")
    wanted, _ = nola_codec.encode_bytes(tmp_path / "saved", **RATE)
    same_files(nola_codec.encode_bytes(model, **RATE)[0], wanted)
    same_files(nola_codec.encode_bytes(torch.compile(model), **RATE)[0], wanted)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_mapping_gives_the_file_of_its_directory(library: str, case: Any) -> None:
    tensors: dict[str, Any] = load_file(case.adapter / "adapter_model.safetensors")
    if library == "numpy":
        tensors = {key: tensor.numpy().astype(">f4") for key, tensor in tensors.items()}
    saved = json.loads((case.adapter / "adapter_config.json").read_text())
    wanted, _ = nola_codec.encode_bytes(case.adapter, **RATE)
    for config in (saved, LoraConfig.from_pretrained(case.adapter)):
        found, report = nola_codec.encode_bytes(tensors, config=config, **RATE)
        same_files(found, wanted)
        assert report.scale_origin == "config"
    assert "scaling" in " ".join(nola_codec.encode(tensors, **RATE).notes)


def test_the_other_functions_take_them_too(case: Any, tmp_path: Path) -> None:
    model = get_peft_model(case.fresh(), LoraConfig.from_pretrained(case.adapter))
    model.load_adapter(case.adapter, "default")
    tensors = load_file(case.adapter / "adapter_model.safetensors")
    assert nola_codec.compare(model, case.adapter).nmse == 0
    assert 0 < nola_codec.compare(model, case.encoded).nmse < 1
    saved = json.loads((case.adapter / "adapter_config.json").read_text())
    modules = nola_codec.read_adapter(tensors, config=saved).modules
    assert {m.scaling for m in modules} == {2.0}
    joined = nola_codec.merge_adapters([(model, 0.5), case.adapter], tmp_path / "both")
    assert joined.rank == 2 * sum(m.rank for m in modules)
    assert nola_codec.sweep(model, nmse=[0.1]).points[0].nmse == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ({"a": torch.zeros(2), 3: torch.zeros(2)}, "source-type", "expected a text as key, found 3"),
        ({"a": [1.0]}, "source-type", "(tensors): a: expected a tensor, found builtins.list"),
        ({"a": torch.zeros(2, device="meta")}, "no-data", "load the weights of the model first"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "unknown-dtype", "found torch.complex64"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "unknown-dtype", "torch.sparse_coo"),
        ({"a": np.zeros(2, np.complex64)}, "unknown-dtype", "complex64"),
        ({"a": torch.zeros(2)}, "empty-adapter", "no LoRA factors in it"),
        (torch.nn.Linear(2, 2), "no-adapter", "the model has no adapter; put one in with peft.get_peft_model"),
    ],
)  # fmt: skip
def test_what_is_refused(tensors: Any, code: str, words: str) -> None:
    with pytest.raises(nola_codec.AdapterError) as caught:
        nola_codec.encode(tensors)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_a_model_in_nola_training_is_sent_to_its_own_function(case: Any) -> None:
    from nola_codec.training import parametrize

    model = get_peft_model(case.fresh(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(nola_codec.AdapterError, match="has a configuration of its own"):
        nola_codec.encode(model, config={"r": 3})
    parametrize(model, num_basis=8, bits=4)
    with pytest.raises(nola_codec.AdapterError, match=r"nola_codec\.training\.save") as caught:
        nola_codec.encode(model)
    assert caught.value.code == "parametrized"
