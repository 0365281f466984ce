"""Conversion between dialects: the deltas stay, to the bit where the factors do; what cannot be said is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nola_codec.adapters import DIALECTS, deltas, dialect_of, read, write
from nola_codec.adapters.conversion import convert, matching_names
from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.adapters.dialects.paths import kohya_path, old_diffusers_name, old_diffusers_path
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.tensors import RawTensor

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 16,
}  # fmt: skip


def module(name: str, out: int = 8, inputs: int = 6, rank: int = 2, scaling: float = 2.0, **more: Any) -> LoraModule:
    rng = np.random.default_rng([len(name), out, inputs, rank])
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, inputs), (out, rank)))
    return LoraModule(name, a, b, a.shape, b.shape, scaling, **more)


def language_model(**more: Any) -> Adapter:
    """A PEFT adapter of every linear layer of three."""
    leaves = {"self_attn.q_proj": 16, "self_attn.k_proj": 8, "self_attn.v_proj": 8, "mlp.down_proj": 16}
    modules = [
        module(f"base_model.model.model.layers.{layer}.{leaf}", out=out, **more)
        for layer in range(3) for leaf, out in leaves.items()
    ]  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return Adapter("peft", tuple(modules), {}, config, {"format": "pt"})


def image_model() -> Adapter:
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn"
    names = [f"unet.{attention}{n}.{p}" for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")]
    names += ["text_encoder.text_model.encoder.layers.11.self_attn.out_proj"]
    return Adapter("diffusers", tuple(module(name) for name in names), {}, None, {})


def unet() -> Adapter:
    """A PEFT adapter of a UNet alone, whose configuration names the class of the model."""
    attention = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1"
    mapping = {"base_model_class": "UNet2DConditionModel", "parent_library": "diffusers.models.unets"}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "auto_mapping": mapping}
    return Adapter("peft", tuple(module(f"{attention}.to_{leaf}") for leaf in "qkv"), {}, config)


def dense(adapter: Adapter) -> dict[str, Any]:
    return {delta.name: delta.dense() for delta in deltas(adapter)}


@pytest.mark.parametrize(
    ("adapter", "through"),
    [
        (language_model(), "mlx"),
        (language_model(), "gguf"),
        (unet(), "diffusers"),
        (language_model(), "loralib"),
        (image_model(), "kohya"),
        (image_model(), "diffusers-old"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.dialect,
)
def test_there_and_back(adapter: Adapter, through: str, tmp_path: Path) -> None:
    converted = convert(adapter, through, LLAMA)
    assert converted.dialect == through
    written = write(converted, tmp_path / "there")
    again = convert(read(written), adapter.dialect, LLAMA)
    wanted, found = dense(adapter), dense(again)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert np.array_equal(found[name], delta), name
    read(write(again, tmp_path / "back"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' own, of peft's use of it
def test_peft_loads_what_mlx_was_converted_to(tmp_path: Path, shared_data: Path) -> None:
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import Qwen2Config, Qwen2ForCausalLM

    source = read(shared_data / "lora" / "mlx_qwen05b" / "0000200_adapters.safetensors")
    folder = write(convert(source, "peft"), tmp_path / "peft")
    config = Qwen2Config(
        hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=8,
        vocab_size=32, torch_dtype="bfloat16",
    )  # fmt: skip
    model = PeftModel.from_pretrained(Qwen2ForCausalLM(config), folder)
    state = get_peft_model_state_dict(model)
    path = "model.layers.23.self_attn.q_proj"
    module = next(m for m in source.modules if m.name == path)
    key = f"base_model.model.{path}"
    assert np.array_equal(state[f"{key}.lora_A.weight"].numpy(), module.lora_A)
    assert np.array_equal(state[f"{key}.lora_B.weight"].numpy(), module.lora_B)
    assert model.get_submodule(key).scaling["default"] == 10.0
    assert len(state) == 2 * len(source.modules)


def test_a_conversion_keeps_the_name_of_the_base_model() -> None:
    named = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/a-model"}
    theirs = convert(replace(language_model(), config=named), "mlx")
    assert (theirs.config or {})["model"] == "someone/a-model"
    assert (convert(theirs, "peft").config or {})["base_model_name_or_path"] == "someone/a-model"
    assert "model" not in (convert(language_model(), "mlx").config or {})


@pytest.mark.parametrize("path", ["/Users/me/models/a", "~/a", "./a", "../a", "C:\\models\\a", "\\\\host\\a"])
def test_a_conversion_leaves_out_a_path_of_the_authors_machine(path: str) -> None:
    named = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": path}
    assert "model" not in (convert(replace(language_model(), config=named), "mlx").config or {})


def test_query_and_key_are_permuted_as_llama_cpp_does() -> None:
    adapter = language_model()
    converted = {m.name: m for m in convert(adapter, "gguf", LLAMA).modules}
    for name, heads, gguf_name in (("q_proj", 4, "attn_q"), ("k_proj", 2, "attn_k")):
        before = next(m for m in adapter.modules if m.name.endswith(f"0.self_attn.{name}")).lora_B
        weights = torch.from_numpy(before)
        # convert_hf_to_gguf.py, LlamaModel.permute
        wanted = weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)
        assert np.array_equal(converted[f"blk.0.{gguf_name}.weight"].lora_B, wanted.numpy())
    plain = {**LLAMA, "model_type": "qwen2"}
    unturned = {m.name: m for m in convert(adapter, "gguf", plain).modules}
    assert np.array_equal(unturned["blk.2.attn_q.weight"].lora_B, adapter.modules[8].lora_B)


NAMES = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj":
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_up_blocks_2_resnets_1_time_emb_proj": "unet.up_blocks.2.resnets.1.time_emb_proj",
    "lora_unet_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q":
        "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "lora_unet_double_blocks_3_img_attn_qkv": "unet.double_blocks.3.img_attn.qkv",
    "lora_te_text_model_encoder_layers_9_mlp_fc1": "text_encoder.text_model.encoder.layers.9.mlp.fc1",
    "lora_te2_text_model_encoder_layers_9_self_attn_k_proj":
        "text_encoder_2.text_model.encoder.layers.9.self_attn.k_proj",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_flattened_names(name: str) -> None:
    assert kohya_path(name) == NAMES[name]


def test_old_names() -> None:
    path = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    name = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    assert old_diffusers_path(name) == path
    assert old_diffusers_name(path) == name
    assert old_diffusers_path(name.removeprefix("unet.")) == path


def refusal(adapter: Adapter, dialect: str, base: dict[str, Any] | None = None) -> AdapterError:
    with pytest.raises(AdapterError) as e:
        convert(adapter, dialect, base)
    return e.value


def test_what_cannot_be_said_is_refused() -> None:
    lm, image = language_model(), image_model()
    assert "begin with a component of an image model" in str(refusal(lm, "kohya"))
    assert "the components of a pipeline" in str(refusal(lm, "diffusers"))
    assert refusal(lm, "gguf").code == "needs-base"
    assert "mamba" in str(refusal(lm, "gguf", {**LLAMA, "model_type": "mamba"}))
    assert "of one model" in str(refusal(image, "peft"))
    assert "layers of a language model" in str(refusal(image, "mlx"))
    third = Adapter("peft", (module("base_model.model.q", scaling=1 / 3),), config=lm.config)
    assert "would round" in str(refusal(third, "loralib"))
    scalings = Adapter("peft", (lm.modules[0], module(lm.modules[1].name, scaling=3.0)), config=lm.config)
    assert "one scaling" in str(refusal(scalings, "mlx"))
    odd = Adapter("peft", (lm.modules[0], module(lm.modules[1].name, scaling=1 / 3.1)), config=lm.config)
    assert "one alpha" in str(refusal(odd, "gguf", LLAMA))
    bias = {lm.modules[0].name + ".bias": RawTensor("F32", (1,), bytes(4))}
    assert "no place" in str(refusal(Adapter("peft", lm.modules, bias, lm.config), "mlx"))
    diff = Adapter("kohya", (), vectors=(VectorTensor("lora_unet_x.diff", np.ones((2, 2), np.float32)),))
    assert "a change of a whole tensor" in str(refusal(diff, "diffusers"))
    strange = Adapter("kohya", (module("lora_unet_my_own_block"),))
    assert "no image or video model" in str(refusal(strange, "diffusers"))
    numbered = Adapter("cloneofsimo", (module("unet:0"),))
    assert "numbers" in str(refusal(numbered, "diffusers"))
    assert {name for name, each in DIALECTS.items() if each.is_conversion_target} == set(TARGET_DIALECTS)
    assert "sam_lora" not in TARGET_DIALECTS
    assert refusal(lm, "sam_lora").code == "not-expressible"


@pytest.mark.parametrize("dialect", ["mlx", "gguf"])
def test_several_ranks_become_one(dialect: str) -> None:
    lm = language_model()
    adapter = Adapter("peft", (lm.modules[0], module(lm.modules[1].name, rank=3)), config=lm.config)
    converted = convert(adapter, dialect, {**LLAMA, "model_type": "qwen2"})
    assert [m.rank for m in converted.modules] == [3, 3]
    again = dense(convert(converted, "peft", {**LLAMA, "model_type": "qwen2"}))
    assert all(np.array_equal(again[name], delta) for name, delta in dense(adapter).items())


def test_names_match_between_dialects() -> None:
    image = image_model()
    kohya = convert(image, "kohya")
    a, b = matching_names(image, kohya)
    assert sorted(a.values()) == sorted(b.values())
    lm = language_model()
    a, b = matching_names(lm, convert(lm, "mlx"))
    assert sorted(a.values()) == sorted(b.values())
    assert DIALECTS["kohya"].path_of("lora_unet_conv_in") == "unet.conv_in"


def test_biases_and_magnitudes_go_along() -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    name = f"base_model.model.{path}"
    raw = {f"{name}.lora_magnitude_vector": RawTensor("F32", (8,), bytes(32))}
    converted = convert(Adapter("peft", (module(name),), raw, language_model().config), "diffusers")
    assert [m.name for m in converted.modules] == [f"unet.{path}"]
    assert set(converted.raw) == {f"unet.{path}.lora_magnitude_vector"}
    back = convert(converted, "peft")
    assert set(back.raw) == set(raw)
    assert back.config is not None
    assert back.config["use_dora"] is True
    assert json.dumps(dict(back.config))
    assert dialect_of(back).tensors(back)
