"""Real adapters through the codec and back to the tools that made them: no key missing, none unexpected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nola_codec
from nola_codec.adapters.sources import open_source

SMALL = ["gptneo125m_movies", "mlx_qwen05b/0000200_adapters.safetensors", "sam_vitb_rank4.safetensors",
         "sd15_catundchat", "roberta_base_lora_mnli.bin"]  # fmt: skip
LARGE = ["gpt2_tigrinya", "mlx_qwen05b/0000100_adapters.safetensors",
         "sam_vitb_rank16.safetensors", "sd15_analog_svd_rank4.safetensors", "sd15_disney_rank1.safetensors",
         "smollm135m_medical", "smollm2_e2e"]  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_key_comes_back(name: str, real_adapter: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_adapter(name)
    report = nola_codec.encode(source, tmp_path / "a.nola", nmse=0.5)
    decoded = nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    found = nola_codec.compare(source, decoded)
    assert found.same_structure
    assert found.nmse == pytest.approx(report.nmse, rel=1e-3)
    with open_source(source) as before, open_source(decoded) as after:
        assert {k: i.shape for k, i in after.file.tensors.items()} == {
            k: i.shape for k, i in before.file.tensors.items()
        }
        assert after.file.metadata == before.file.metadata
        assert after.config == (before.config if before.config is not None else before.beside)
        with nola_codec.load(tmp_path / "a.nola") as opened:
            for record in opened.header.raw:
                assert after.file.read(record.name) == before.file.read(record.name)
            state = opened.state_dict()
        assert {key: tuple(value.shape) for key, value in state.items()} == {
            key: info.shape for key, info in before.file.tensors.items()
        }


@pytest.mark.filterwarnings("ignore")  # diffusers, of its optional packages
def test_diffusers_takes_a_file_of_its_first_form_in_its_present_one(shared_data: Path, tmp_path: Path) -> None:
    """Diffusers no longer loads the file as it was published; converted, it takes all of it."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    nola_codec.encode(shared_data / "lora" / "sd15_catundchat", tmp_path / "a.nola", nmse=0.5)
    folder = nola_codec.decode(tmp_path / "a.nola", tmp_path / "lora", format="diffusers")
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(folder), local_files_only=True)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, low_cpu_mem_usage=True)
    loaded = [key for key in unet.state_dict() if ".lora_" in key]
    assert len(loaded) == len(state) == 256


@pytest.mark.filterwarnings("ignore")  # PEFT, of the base model's name; transformers, of PEFT
def test_peft_takes_what_it_wrote(examples: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    nola_codec.encode(examples / "gptneo125m_movies", tmp_path / "a.nola", nmse=0.5)
    folder = nola_codec.decode(tmp_path / "a.nola", tmp_path / "lora")
    with torch.device("meta"):
        config = GPTNeoConfig(hidden_size=768, num_layers=12, attention_types=[[["global", "local"], 6]], num_heads=12)
        model = get_peft_model(GPTNeoForCausalLM(config), LoraConfig.from_pretrained(folder))
    state = load_file(folder / "adapter_model.safetensors")
    result: Any = set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]


def gguf_adapter(path: Path) -> dict[str, np.ndarray]:
    """As llama.cpp's `convert_lora_to_gguf.py` writes one."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for name, (out, inputs) in {"attn_q": (64, 64), "ffn_down": (64, 96)}.items():
            tensors[f"blk.{layer}.{name}.weight.lora_a"] = rng.standard_normal((4, inputs)).astype(np.float16)
            tensors[f"blk.{layer}.{name}.weight.lora_b"] = rng.standard_normal((out, 4)).astype(np.float16)
    tensors["token_embd.weight.lora_a"] = rng.standard_normal((50, 4)).astype(np.float32)
    tensors["token_embd.weight.lora_b"] = rng.standard_normal((64, 4)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 6.0)
    writer.add_array("general.tags", ["a", "b"])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def key_values(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def test_gguf(tmp_path: Path) -> None:
    wanted = gguf_adapter(tmp_path / "in.gguf")
    adapter = nola_codec.adapters.read(tmp_path / "in.gguf")
    assert {m.scaling for m in adapter.modules} == {1.5}
    embedding = next(m for m in adapter.modules if m.name == "token_embd.weight")
    assert (embedding.layout, embedding.lora_A.shape, embedding.lora_B.shape) == ("embedding", (4, 50), (64, 4))
    report = nola_codec.encode(tmp_path / "in.gguf", tmp_path / "a.nola", nmse=0.05)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    # GGUF gives dimensions the other way round.
    assert {t.name: tuple(int(n) for n in t.shape)[::-1] for t in reader.tensors} == {
        name: values.shape for name, values in wanted.items()
    }
    assert key_values(tmp_path / "out.gguf") == key_values(tmp_path / "in.gguf")
    assert nola_codec.compare(tmp_path / "in.gguf", tmp_path / "out.gguf").nmse == pytest.approx(report.nmse, rel=1e-3)
    with pytest.raises(nola_codec.AdapterError) as e:
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "out.safetensors")
    assert e.value.code == "not-expressible"
