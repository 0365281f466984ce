"""State dicts that people save by hand, lone files of PEFT, and merges in memory of what PEFT saves beside factors.

Case 07 and its kin. The expected values come from PEFT: it loads what is decoded, and its merge is compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec import adapters
from nola_codec.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

IDS = torch.tensor([[1, 3, 5, 9]])
Q = "q_proj"


def _model(kind: str = "CausalLM") -> Any:
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=16, hidden_size=16, intermediate_size=80, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, initializer_range=0.2, num_labels=3,
    )  # fmt: skip
    return getattr(transformers, f"Qwen2For{kind}")(config)


def _trained(config: Any, kind: str = "CausalLM") -> Any:
    model = get_peft_model(_model(kind), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def _decoded(source: Path, tmp_path: Path, **options: Any) -> tuple[list[str], Path]:
    report = nola_codec.encode(source, tmp_path / "a.nola", size="60KB", **options)
    notes: list[str] = list(report.notes)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again", note=notes.append)
    return notes, tmp_path / "again"


def _require_near(kind: str, found: Path, expected: torch.Tensor) -> None:
    """PEFT loads what was decoded, misses no key, and computes what it computed before."""
    again = PeftModel.from_pretrained(_model(kind), found)
    lost = _logits(again) - expected
    assert float(lost.norm() / (expected - _logits(_model(kind))).norm()) < 0.1


@pytest.mark.parametrize("kind", ["CausalLM", "SequenceClassification"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_state_dict_of_the_whole_model(kind: str, alone: bool, tmp_path: Path) -> None:
    """Frozen weights beside the factors are left out with a note; heads that PEFT trained stay."""
    task = "CAUSAL_LM" if kind == "CausalLM" else "SEQ_CLS"
    model = _trained(LoraConfig(r=2, lora_alpha=2, target_modules=[Q], task_type=task), kind)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "adapter" / "adapter_model.bin")
    source = tmp_path / "adapter"
    if alone:
        source = Path(shutil.copy(tmp_path / "adapter" / "adapter_model.bin", tmp_path / "whole.pt"))
    notes, again = _decoded(source, tmp_path)
    assert any("weights of the model itself" in note for note in notes)
    kept = [key for key in load_file(again / "adapter_model.safetensors") if ".lora_" not in key]
    assert kept == ([] if task == "CAUSAL_LM" else ["base_model.model.score.weight"])
    _require_near(kind, again, _logits(model))


def test_trained_weights_of_a_whole_state_dict_are_kept_on_demand(tmp_path: Path) -> None:
    """With carry_unknown and the base model, the weights that differ from the base's are carried."""
    _model().save_pretrained(tmp_path / "base")
    model = _trained(LoraConfig(r=2, lora_alpha=2, target_modules=[Q], task_type="CAUSAL_LM"))
    with torch.no_grad():
        model.base_model.model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(model.state_dict(), tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", carry_unknown=True, base=tmp_path / "base")
    assert set(nola_codec.read_adapter(tmp_path / "a.nola").raw) == {"base_model.model.model.norm.weight"}


@pytest.mark.parametrize("start", ["model.", "net.language_model.", "module."])
def test_a_model_inside_a_larger_one(start: str, tmp_path: Path) -> None:
    """Lightning and others save the PEFT model as a part of a module; other parts of it have no such prefix."""
    model = _trained(LoraConfig(r=2, lora_alpha=8, target_modules=[Q], task_type="SEQ_CLS"), "SequenceClassification")
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({start + key if ".lora_" in key else key: tensor for key, tensor in tensors.items()}, path)
    notes, again = _decoded(tmp_path / "adapter", tmp_path)
    assert any(f"read without {start}" in note for note in notes)
    assert set(load_file(again / "adapter_model.safetensors")) == set(tensors)
    _require_near("SequenceClassification", again, _logits(model))


LONE: dict[str, dict[str, Any]] = {
    "factors": {"target_modules": [Q, "down_proj"], "rank_pattern": {"down_proj": 4}, "alpha_pattern": {Q: 4}},
    "all biases": {"target_modules": [Q], "bias": "all"},
    "biases of the layers": {"target_modules": [Q], "bias": "lora_only"},
    "biases of lora_B": {"target_modules": [Q], "lora_bias": True},
    "embedding": {"target_modules": [Q, "embed_tokens"]},
    "saved whole": {"target_modules": [Q], "modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("name", LONE)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_the_directory_of_a_lone_file_is_one_that_peft_loads(name: str, scale: float | None, tmp_path: Path) -> None:
    """PEFT loads no directory without a configuration; the one that is made has the carried tensors too."""
    wanted = scale or 1.0
    options = {"r": 2, "lora_alpha": 2 * wanted, "task_type": "CAUSAL_LM", **LONE[name]}
    if name == "factors":
        options["alpha_pattern"] = {"down_proj": 4 * wanted}
    model = _trained(LoraConfig(**options))
    model.save_pretrained(tmp_path / "adapter")
    lone = Path(shutil.copy(tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "lone.safetensors"))
    notes, again = _decoded(lone, tmp_path, scale=scale)
    assert any("was made with lora_alpha = r" in note for note in notes) == (scale is None)
    assert adapters.read(again).scale_origin == ("assumed" if scale is None else "option")
    _require_near("CausalLM", again, _logits(model))


def test_trained_tokens_need_a_configuration(tmp_path: Path) -> None:
    """Case 43: only the configuration has the numbers of the tokens, and a lone file has none."""
    config = LoraConfig(r=2, target_modules=[Q], trainable_token_indices={"embed_tokens": [3]}, task_type="CAUSAL_LM")
    _trained(config).save_pretrained(tmp_path / "adapter")
    lone = Path(shutil.copy(tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "lone.safetensors"))
    notes, again = _decoded(lone, tmp_path, scale=4.0)
    assert any("trainable_token_indices" in note for note in notes)
    assert not (adapters.read(again).config or {}).get("modules_to_save")


IN_MEMORY: dict[str, Callable[[], Any]] = {
    "embedding and its weight": lambda: LoraConfig(r=2, target_modules=[Q, "embed_tokens"]),
    "biases twice": lambda: LoraConfig(r=2, target_modules=[Q], bias="lora_only", lora_bias=True),
    "LoHa": lambda: LoHaConfig(r=2, alpha=4, target_modules=[Q, "down_proj"]),
    "LoKr": lambda: LoKrConfig(r=2, alpha=4, target_modules=[Q, "down_proj"]),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_merge_in_memory_is_peft_s(name: str, tmp_path: Path) -> None:
    """`merge_into` adds deltas to the weights that the adapter brings, and takes PEFT's own LoHa and LoKr."""
    _trained(IN_MEMORY[name]()).save_pretrained(tmp_path / "adapter")
    _, again = _decoded(tmp_path / "adapter", tmp_path)
    expected = PeftModel.from_pretrained(_model(), again).merge_and_unload()
    model = _model()
    with nola_codec.load(tmp_path / "a.nola", device="numpy") as opened:
        opened.merge_into(model)
    for key, weight in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("against_base", [False, True])
def test_a_merge_in_memory_takes_coded_heads(against_base: bool, tmp_path: Path) -> None:
    """Case 26: heads that are coded, alone or as changes of the base's, are merged in memory as on disk."""
    _model().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=[Q], modules_to_save=["down_proj"], task_type="CAUSAL_LM")
    _trained(config).save_pretrained(tmp_path / "adapter")
    base = tmp_path / "base" if against_base else None
    report = nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", size="60KB", carried="coded", base=base)
    assert any(f"in the form {'change' if against_base else 'coded'}" in note for note in report.notes)
    nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base", tmp_path / "merged")
    model = _model()
    with nola_codec.load(tmp_path / "a.nola", device="numpy") as opened:
        opened.merge_into(model)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(weight, merged[key]) for key, weight in model.state_dict().items() if key in merged)
    other = _model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    with nola_codec.load(tmp_path / "a.nola", device="numpy") as opened:
        if not against_base:
            opened.merge_into(other)
            return
        with pytest.raises(AdapterError) as caught:
            opened.merge_into(other)
    assert caught.value.code == "base-mismatch"


def test_embeddings_of_a_larger_vocabulary_are_saved_twice(tmp_path: Path) -> None:
    """Case 14: PEFT saves trained embeddings of a resized vocabulary under two keys, and loads the plain ones."""

    def resized() -> Any:
        model = _model()
        model.resize_token_embeddings(18, mean_resizing=False)
        return model

    _model().save_pretrained(tmp_path / "base")
    saved = ["embed_tokens", "lm_head"]
    options = {"r": 2, "target_modules": [Q], "modules_to_save": saved, "task_type": "CAUSAL_LM"}
    model = get_peft_model(resized(), LoraConfig(**options, base_model_name_or_path=str(tmp_path / "base")))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {"base_model.model.lm_head.modules_to_save.weight", "base_model.model.lm_head.weight"} <= set(keys)
    notes, again = _decoded(tmp_path / "adapter", tmp_path)
    assert any("twice" in note for note in notes)
    found = PeftModel.from_pretrained(resized(), again)
    lost = _logits(found) - _logits(model)
    assert float(lost.norm() / _logits(model).norm()) < 0.1
    nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base", tmp_path / "merged")
    merged = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(_logits(merged), _logits(found), atol=1e-5, rtol=1e-5)


BARE_PATHS = [
    "model.layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "model.language_model.layers.0.self_attn.q_proj",
    "transformer.h.0.attn.c_attn", "gpt_neox.layers.0.attention.query_key_value", "model.decoder.layers.0.fc1",
    "bert.encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value",
    "decoder.block.1.layer.0.SelfAttention.q", "model.encoder.layers.0.self_attn.q_proj",
]  # fmt: skip
IMAGE_PATHS = [
    "transformer_blocks.0.attn.to_q", "blocks.0.self_attn.q", "layers.0.attention.to_q", "down_blocks.0.attn1.to_k",
    "transformer.transformer_blocks.0.attn.to_q", "diffusion_model.layers.0.attention.qkv", "unet.mid_block.to_q",
]  # fmt: skip


def _bare(path: str, file: Path) -> Path:
    save_file({f"{path}.lora_A.weight": torch.ones(2, 4), f"{path}.lora_B.weight": torch.ones(3, 2)}, file)
    return file


@pytest.mark.parametrize("path", BARE_PATHS)
def test_factors_of_a_language_model_without_a_prefix_are_peft_s(path: str, tmp_path: Path) -> None:
    """No tool for image models reads them, so alpha = r is a guess, and a note says so."""
    found = adapters.read(_bare(path, tmp_path / "lora.safetensors"))
    assert (found.dialect, found.modules[0].name) == ("peft", f"base_model.model.{path}")
    assert found.scale_origin == "assumed"
    assert any("--scale" in note for note in found.notes)


@pytest.mark.parametrize("path", IMAGE_PATHS)
def test_factors_of_an_image_model_are_diffusers(path: str, tmp_path: Path) -> None:
    """Their names are no language model's, and diffusers defines alpha = r."""
    found = adapters.read(_bare(path, tmp_path / "lora.safetensors"))
    assert (found.dialect, found.modules[0].name, found.scale_origin) == ("diffusers", path, "dialect")


def test_a_configuration_beside_bare_keys_counts(tmp_path: Path) -> None:
    """A hand-made file beside PEFT's configuration is PEFT's, whatever its name is."""
    model = _trained(LoraConfig(r=2, lora_alpha=8, target_modules=[Q], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in load_file(path).items()}
    path.unlink()
    save_file(bare, tmp_path / "adapter" / "lora.safetensors")
    for source in (tmp_path / "adapter", tmp_path / "adapter" / "lora.safetensors"):
        found = adapters.read(source)
        assert (found.dialect, found.scale_origin) == ("peft", "config")
        assert {m.scaling for m in found.modules} == {4.0}


@pytest.mark.parametrize("configured", [False, True])
def test_torchtune_s_file_in_the_folder_of_an_epoch(configured: bool, tmp_path: Path) -> None:
    """Case 01: newer torchtune writes its own keys to ``epoch_0/adapter_model.pt``, with or without a configuration."""
    folder = tmp_path / "epoch_0"
    folder.mkdir()
    module = "layers.0.attn.q_proj"
    torch.save({f"{module}.lora_a.weight": torch.ones(2, 8), f"{module}.lora_b.weight": torch.ones(8, 2)},
               folder / "adapter_model.pt")  # fmt: skip
    if configured:
        config = LoraConfig(r=2, lora_alpha=8, target_modules=[Q])
        config.save_pretrained(folder)
    for source in (tmp_path, folder, folder / "adapter_model.pt"):
        found = adapters.read(source)
        assert (found.dialect, found.modules[0].name) == ("torchtune", module)
        assert found.modules[0].scaling == (4.0 if configured else 1.0)
        assert found.scale_origin == ("config" if configured else "assumed")
