"""PEFT adapters as trainers write them: heads, names of adapters, and the methods beside LoRA.

The expected values come from PEFT itself: a decoded adapter is loaded by it, and a merge is compared with its merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec import adapters
from nola_codec.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

IDS = torch.tensor([[1, 3, 5, 9]])


def _llama(kind: str) -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return getattr(transformers, f"LlamaFor{kind}")(config)


def _bert(kind: str) -> Any:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    return getattr(transformers, f"BertFor{kind}")(config)


def _train(model: Any) -> None:
    """Move every trained tensor away from its start, as a training does."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)


def _edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        made = model.eval()(IDS)
    logits: torch.Tensor = made.logits if hasattr(made, "logits") else torch.cat([made.start_logits, made.end_logits])
    return logits


def _require_same(make: Callable[[], Any], base: Path, adapter: Path, tmp_path: Path) -> None:
    """Encode an adapter, and compare what is decoded and merged with what PEFT loads and merges."""
    nola_codec.encode(adapter, tmp_path / "a.nola", size="40KB")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    expected = PeftModel.from_pretrained(make(), adapter)
    again = PeftModel.from_pretrained(make(), tmp_path / "again")
    lost = _outputs(again) - _outputs(expected)
    assert float(lost.norm() / (_outputs(expected) - _outputs(make())).norm()) < 0.1
    nola_codec.merge([tmp_path / "a.nola"], base, tmp_path / "merged")
    merged = type(make()).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(_outputs(merged), _outputs(again.merge_and_unload()), atol=1e-5, rtol=1e-5)


HEADS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "score": ("SEQ_CLS", lambda: _llama("SequenceClassification"), "score.weight"),
    "classifier": ("TOKEN_CLS", lambda: _bert("TokenClassification"), "classifier.bias"),
    "qa_outputs": ("QUESTION_ANS", lambda: _bert("QuestionAnswering"), "qa_outputs.weight"),
}


@pytest.mark.parametrize("head", HEADS)
def test_task_type_implies_the_head(head: str, tmp_path: Path) -> None:
    """PEFT adds the head to modules_to_save by itself, so the configuration on disk may leave it out."""
    task, make, key = HEADS[head]
    make().save_pretrained(tmp_path / "base")
    names = ["q_proj", "query"]
    model = get_peft_model(make(), LoraConfig(r=2, lora_alpha=8, target_modules=names, task_type=task))
    _train(model)
    model.save_pretrained(tmp_path / "adapter")
    _edit_config(tmp_path / "adapter", modules_to_save=None)
    _require_same(make, tmp_path / "base", tmp_path / "adapter", tmp_path)
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors")[f"base_model.model.{key}"]
        for name in ("adapter", "again")
    )
    assert torch.equal(before, after)


def test_head_without_a_task_is_unknown(tmp_path: Path) -> None:
    """Without task_type, a head that no entry names stays an unknown tensor."""
    model = get_peft_model(
        _llama("SequenceClassification"), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    model.save_pretrained(tmp_path / "adapter")
    _edit_config(tmp_path / "adapter", modules_to_save=None, task_type=None)
    with pytest.raises(nola_codec.NolaError, match=r"score\.weight.*unknown key"):
        nola_codec.encode(tmp_path / "adapter")


def _delta(adapter: Path, module: str) -> torch.Tensor:
    """Return the delta of one module as it was read, in float64."""
    found = {delta.name: delta for delta in adapters.deltas(adapters.read(adapter))}
    return torch.from_numpy(found[f"base_model.model.{module}"].dense())


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora_is_read_as_lora(pruned: bool, tmp_path: Path) -> None:
    """AdaLoRA is a plain delta; PEFT keeps dividing by the first rank after the allocator took rows away."""
    base = _llama("CausalLM")
    base.save_pretrained(tmp_path / "base")
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=16, total_step=10, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(_llama("CausalLM"), config)
    _train(model)
    if pruned:
        layer = "model.layers.0.self_attn"
        model.peft_config["default"].rank_pattern = {
            f"{layer}.q_proj.lora_E.default": [True, False, True, True],
            f"{layer}.v_proj.lora_E.default": [False] * 4,
        }
    model.save_pretrained(tmp_path / "adapter")
    expected = PeftModel.from_pretrained(_llama("CausalLM"), tmp_path / "adapter")
    delta = expected.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
    found = _delta(tmp_path / "adapter", "model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(found, delta.detach().double(), atol=1e-7, rtol=1e-6)
    _require_same(lambda: _llama("CausalLM"), tmp_path / "base", tmp_path / "adapter", tmp_path)
    again = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert again["peft_type"] == "LORA"
    assert ("v_proj" in str(again["target_modules"])) is not pruned
    notes = adapters.read(tmp_path / "adapter").notes
    assert any("AdaLoRA" in note for note in notes)
    assert any("1 modules have rank 0" in note for note in notes) is pruned


def _merged_linear(enabled: list[bool], dimensions: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the factors of a fused projection (12 rows, 5 columns, rank 2), and loralib's product of them."""
    torch.manual_seed(1)
    groups, blocks = sum(enabled), len(enabled)
    lora_A, lora_B = torch.randn(2 * groups, 5), torch.randn(12 // blocks * groups, 2)
    # loralib's `MergedLinear.merge_AB` and `zero_pad`.
    product = torch.nn.functional.conv1d(lora_A[None], lora_B[..., None], groups=groups)[0]
    delta = torch.zeros(blocks, 12 // blocks, 5)
    delta[torch.tensor(enabled)] = product.reshape(groups, -1, 5)
    return {"A": lora_A, "B": lora_B if dimensions == 2 else lora_B[..., None]}, delta.reshape(12, 5)


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True], [False, True, False]], ids=str)
@pytest.mark.parametrize("dialect", ["peft", "loralib"])
def test_fused_projection(dialect: str, enabled: list[bool], tmp_path: Path) -> None:
    """BLOOM's query_key_value of old PEFT, and loralib's MergedLinear: the delta has a block for each projection."""
    factors, expected = _merged_linear(enabled, 3 if dialect == "peft" else 2)
    config: dict[str, Any] = {"enable_lora": enabled}
    module, end, name, scaling = "h.0.query_key_value", "", "lora.safetensors", 1.0
    if dialect == "peft":
        config |= {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "merge_weights": False}
        module, end, name, scaling = f"base_model.model.{module}", ".weight", "adapter_model.safetensors", 4.0
    save_file({f"{module}.lora_{ab}{end}": factor for ab, factor in factors.items()}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = adapters.read(tmp_path)
    (delta,) = adapters.deltas(adapter)
    assert adapter.dialect == dialect
    torch.testing.assert_close(torch.from_numpy(delta.dense()).float(), expected * scaling, atol=1e-6, rtol=1e-6)
    nola_codec.encode(tmp_path, tmp_path / "a.nola", size="40KB")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    (again,) = adapters.deltas(adapters.read(tmp_path / "again"))
    assert again.product is not None
    assert float(torch.from_numpy(again.dense() - delta.dense()).norm() / expected.norm() / scaling) < 0.7


def test_fused_projection_without_flags_is_refused(tmp_path: Path) -> None:
    """Which blocks were adapted, only enable_lora tells."""
    factors, _ = _merged_linear([True, False, True], 2)
    save_file({f"h.0.c_attn.lora_{ab}": factor for ab, factor in factors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match=r"enable_lora: \[true, false, true\]") as caught:
        adapters.read(tmp_path / "lora.safetensors")
    assert caught.value.code == "merged-linear"


LYCORIS: dict[str, Any] = {
    "LoHa": LoHaConfig(r=3, alpha=6, target_modules=["q_proj", "up_proj"], alpha_pattern={"up_proj": 9}),
    "LoKr": LoKrConfig(r=3, alpha=6, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 1}),
    "LoKr of small factors": LoKrConfig(r=1, alpha=6, decompose_both=True, target_modules=["q_proj", "up_proj"]),
}


@pytest.mark.parametrize("name", LYCORIS)
def test_peft_lycoris_in_a_language_model(name: str, tmp_path: Path) -> None:
    """Case 30: PEFT's own LoHa and LoKr, read, written, loaded by PEFT and merged as PEFT does."""
    _llama("CausalLM").save_pretrained(tmp_path / "base")
    model = get_peft_model(_llama("CausalLM"), LYCORIS[name])
    _train(model)
    model.save_pretrained(tmp_path / "adapter")
    _require_same(lambda: _llama("CausalLM"), tmp_path / "base", tmp_path / "adapter", tmp_path)
    config, again = (json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("adapter", "again"))
    assert config == again


class Convolutions(torch.nn.Module):
    """A layer of each kind that PEFT's LyCORIS adapts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.line = torch.nn.Linear(6, 8)
        self.one = torch.nn.Conv1d(6, 8, 3)
        self.two = torch.nn.Conv2d(6, 8, (3, 2))
        self.point = torch.nn.Conv2d(6, 8, 1)


CONVOLUTIONS = [(LoHaConfig, 1, False), (LoHaConfig, 4, True), (LoKrConfig, 1, False), (LoKrConfig, 8, True)]


@pytest.mark.parametrize(("kind", "rank", "effective"), [*CONVOLUTIONS, (LoKrConfig, 1, True)])
def test_peft_lycoris_of_convolutions(kind: Any, rank: int, effective: bool, tmp_path: Path) -> None:
    """Case 30: kernels in a core of their own, flattened in a factor, or in a whole second factor of LoKr."""
    names = ["line", "one", "two", "point"]
    if kind is LoKrConfig and rank == 1 and effective:
        names.remove("one")  # PEFT itself cannot make this delta
    config = kind(r=rank, alpha=2, target_modules=names, use_effective_conv2d=effective, init_weights=False)
    model = get_peft_model(Convolutions(), config)
    model.save_pretrained(tmp_path / "adapter")
    found = {delta.name: delta for delta in adapters.deltas(adapters.read(tmp_path / "adapter"))}
    assert sorted(found) == sorted(f"base_model.model.{name}" for name in names)
    for name in names:
        expected = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").detach().double()
        delta = torch.from_numpy(found[f"base_model.model.{name}"].dense()).reshape(expected.shape)
        torch.testing.assert_close(delta, expected, atol=1e-6, rtol=1e-5)
    nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", size="40KB")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    again = PeftModel.from_pretrained(Convolutions(), tmp_path / "again").merge_and_unload()
    save_file(Convolutions().state_dict(), tmp_path / "base.safetensors")
    nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base.safetensors", tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-5)


def test_lycoris_of_the_other_method_is_refused(tmp_path: Path) -> None:
    """A configuration of LoKr beside the keys of LoHa, as a mixed-up folder has."""
    model = get_peft_model(Convolutions(), LoHaConfig(r=2, target_modules=["line"]))
    model.save_pretrained(tmp_path)
    _edit_config(tmp_path, peft_type="LOKR")
    with pytest.raises(AdapterError, match="says LoKr") as caught:
        adapters.read(tmp_path)
    assert caught.value.code == "foreign-dialect"


@pytest.mark.parametrize("tied", [False, True])
def test_trainable_tokens_come_back(tied: bool, tmp_path: Path) -> None:
    """Case 43: rows of embeddings are carried exactly; a merge refuses them by name."""

    def make() -> Any:
        model = _llama("CausalLM")
        if tied:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        return model

    make().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5]})
    model = get_peft_model(make(), config)
    _train(model)
    model.save_pretrained(tmp_path / "adapter")
    nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", size="40KB")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    (key,) = (key for key in before if "trainable_tokens_delta" in key)
    assert torch.equal(before[key], after[key])
    lost = _outputs(PeftModel.from_pretrained(make(), tmp_path / "again")) - _outputs(model)
    assert float(lost.norm() / (_outputs(model) - _outputs(make())).norm()) < 0.1
    with pytest.raises(AdapterError, match="trained tokens") as caught:
        nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base", tmp_path / "merged")
    assert caught.value.code == "merge-trainable-tokens"


def test_factors_on_a_matrix_parameter(tmp_path: Path) -> None:
    """Case 44: target_parameters may name the weight of an ordinary layer; it is merged as PEFT merges it."""
    _llama("CausalLM").save_pretrained(tmp_path / "base")
    names = ["mlp.up_proj.weight", "mlp.down_proj.weight"]
    model = get_peft_model(
        _llama("CausalLM"), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], target_parameters=names)
    )
    _train(model)
    model.save_pretrained(tmp_path / "adapter")
    _require_same(lambda: _llama("CausalLM"), tmp_path / "base", tmp_path / "adapter", tmp_path)
