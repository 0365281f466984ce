"""MLX: its scale with and without a configuration, its embeddings, and its fused layers.

PEFT is the oracle of the embeddings: the adapter that it trained goes to MLX and back, and is merged by PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

import nola_codec
from nola_codec import adapters
from nola_codec.adapters.conversion import convert
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT, of the base model's name

PATH = "model.layers.0.self_attn.q_proj"


def write(directory: Path, config: dict[str, Any] | None, name: str = PATH) -> Path:
    """An adapter of MLX with one module."""
    numbers = np.random.default_rng(1)
    tensors = {
        f"{name}.lora_a": numbers.normal(size=(12, 4)).astype(np.float32),
        f"{name}.lora_b": numbers.normal(size=(4, 8)).astype(np.float32),
    }
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapters.safetensors", {"format": "mlx"})
    if config is not None:
        (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def lora(**parameters: float) -> dict[str, Any]:
    return {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}


SCALES: dict[str, tuple[dict[str, Any] | None, float, str]] = {
    "none": (None, 20.0, "assumed"),
    "a scale": (lora(rank=4, scale=10.0, dropout=0.0), 10.0, "config"),
    "a scale and an alpha": (lora(rank=4, alpha=16, scale=10.0, dropout=0.0), 10.0, "config"),
    "an alpha alone": (lora(rank=4, alpha=16), 20.0, "assumed"),
    "flat": ({"rank": 4, "scale": 5.0, "lora_layers": 2}, 5.0, "config"),
}


@pytest.mark.parametrize("case", SCALES)
def test_the_scale_of_a_configuration_or_the_default_of_mlx(case: str, tmp_path: Path) -> None:
    """Case 39: a directory and a lone file. What is written again is complete, as mlx-lm's `load_adapters` wants it."""
    config, scale, origin = SCALES[case]
    source = write(tmp_path / "in", config)
    for place in (source, source / "adapters.safetensors"):
        adapter = adapters.read(place)
        assert (adapter.modules[0].scaling, adapter.scale_origin) == (scale, origin)
        assert any("20 is assumed" in note for note in adapter.notes) == (origin == "assumed")
    again = adapters.write(adapter, tmp_path / "out")
    written = json.loads((again / "adapter_config.json").read_text())
    assert isinstance(written["num_layers"], int)
    parameters = written["lora_parameters"]
    assert (parameters["rank"], parameters["scale"], parameters["dropout"]) == (4, scale, 0.0)
    assert adapters.read(again).modules[0].scaling == scale


def test_the_npz_of_mlx_examples_had_the_scale_20(tmp_path: Path) -> None:
    """Case 39."""
    np.savez(tmp_path / "adapters.npz", **load_file(write(tmp_path / "a", None) / "adapters.safetensors"))
    adapter = adapters.read(tmp_path / "adapters.npz")
    assert (adapter.modules[0].scaling, adapter.scale_origin) == (20.0, "assumed")
    adapter = adapters.read(tmp_path / "adapters.npz", scale=2)
    assert (adapter.modules[0].scaling, adapter.scale_origin) == (2.0, "option")
    written = json.loads((adapters.write(adapter, tmp_path / "out") / "adapter_config.json").read_text())
    assert written["lora_parameters"]["scale"] == 2.0


def test_an_alpha_of_the_spring_of_2024_is_named(tmp_path: Path) -> None:
    """Then mlx-lm multiplied by scale * alpha / rank, and called the number of layers ``lora_layers``."""
    config = {"lora_layers": 1, "lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0, "dropout": 0.0}}
    (note,) = adapters.read(write(tmp_path / "a", config)).notes
    assert "scale * alpha / rank = 40" in note


def test_a_lone_file_keeps_the_scale_for_a_later_encode(tmp_path: Path) -> None:
    adapter = adapters.read(write(tmp_path / "in", lora(rank=4, scale=10.0, dropout=0.0)))
    alone = adapters.write(adapter, tmp_path / "alone.safetensors")
    assert (adapters.read(alone).modules[0].scaling, adapters.read(alone).scale_origin) == (10.0, "metadata")


def test_fused_factors_and_the_configuration_of_peft_are_refused(tmp_path: Path) -> None:
    """Case 19c; MLX's keys beside PEFT's configuration have two meanings."""
    tensors = load_file(write(tmp_path / "a", None) / "adapters.safetensors")
    fused = {
        f"model.layers.0.attn.qkv.lora_{side}.{i}": tensors[f"{PATH}.lora_{side}"] for side in "ab" for i in (0, 1)
    }
    save_file(tensors | fused, tmp_path / "fused.safetensors")
    with pytest.raises(AdapterError, match="encode-delta") as e:
        adapters.read(tmp_path / "fused.safetensors")
    assert e.value.code == "fused-linear"
    peft = write(tmp_path / "b", {"peft_type": "LORA", "r": 4, "lora_alpha": 8})
    with pytest.raises(AdapterError, match="--scale") as e:
        adapters.read(peft)
    assert e.value.code == "foreign-dialect"
    assert adapters.read(peft, scale=2).modules[0].scaling == 2.0


def test_a_name_that_does_not_tell_an_embedding_is_not_converted(tmp_path: Path) -> None:
    """Case 19b: nothing in the file tells which of the two it is."""
    adapter = adapters.read(write(tmp_path / "a", lora(rank=4, scale=1.0, dropout=0.0), "model.patch_embedding"))
    with pytest.raises(AdapterError, match="does not tell") as e:
        convert(adapter, "peft")
    assert e.value.code == "not-expressible"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and PEFT's LoRA of its embeddings, its head and a linear layer."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=10, target_modules=["embed_tokens", "q_proj", "lm_head"]))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(folder / "peft", save_embedding_layers=False)
    return folder


def merged_by_peft(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of the base with an adapter, merged by PEFT."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    merged: dict[str, torch.Tensor] = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return merged


def test_embeddings_go_to_mlx_and_back_and_are_merged(trained: Path, tmp_path: Path) -> None:
    """Case 19b: in MLX, lora_a @ lora_b * scale is the delta of the (vocab, dim) weight."""
    wanted = merged_by_peft(trained, trained / "peft")
    adapter = convert(adapters.read(trained / "peft"), "mlx")
    out = adapters.write(adapter, tmp_path / "mlx")
    keys = json.loads((out / "adapter_config.json").read_text())["lora_parameters"]["keys"]
    assert keys == ["lm_head", "model.embed_tokens", "self_attn.q_proj"]
    tensors = load_file(out / "adapters.safetensors")
    base = load_file(trained / "base" / "model.safetensors")
    embeddings = "model.embed_tokens"
    delta = 2.5 * tensors[f"{embeddings}.lora_a"] @ tensors[f"{embeddings}.lora_b"]
    np.testing.assert_allclose(base[f"{embeddings}.weight"] + delta, wanted[f"{embeddings}.weight"], atol=1e-6)

    back = adapters.write(convert(adapters.read(out), "peft"), tmp_path / "peft")
    assert f"base_model.model.{embeddings}.lora_embedding_A" in load_file(back / "adapter_model.safetensors")
    again = merged_by_peft(trained, back)
    assert all(torch.equal(again[key], value) for key, value in wanted.items())

    nola_codec.encode(out, tmp_path / "a.nola", nmse=1e-3)
    decoded = merged_by_peft(trained, nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded", format="peft"))
    nola_codec.merge([tmp_path / "a.nola"], trained / "base", tmp_path / "merged")
    for key, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(value, decoded[key], atol=1e-6)
    assert not torch.equal(decoded[f"{embeddings}.weight"], torch.from_numpy(base[f"{embeddings}.weight"]))


@pytest.mark.parametrize(("path", "name"), [("transformer.wte", "model.wte"), ("gpt_neox.embed_in", "model.embed_in")])
def test_embeddings_that_mlx_calls_otherwise(path: str, name: str) -> None:
    module = LoraModule(
        f"base_model.model.{path}", np.ones((2, 9), np.float32), np.ones((6, 2), np.float32), (2, 9), (6, 2), 1.0,
        layout="embedding",
    )  # fmt: skip
    made = convert(Adapter("peft", (module,)), "mlx", {"model_type": "gpt2"})
    assert [m.name for m in made.modules] == [name]
    assert [m.name for m in convert(made, "peft").modules] == [module.name]
