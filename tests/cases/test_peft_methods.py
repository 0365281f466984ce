"""PEFT methods beside LoRA: those that PEFT turns into LoRA, and those that nothing can code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import nola_codec
from nola_codec import adapters
from nola_codec.adapters.dialects.peft_methods import CODED, CONVERTIBLE, describe_refusal
from nola_codec.cli import main
from nola_codec.errors import AdapterError
from nola_codec.integrations.peft_conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names


def _model() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny language model."""
    path = tmp_path_factory.mktemp("model") / "base"
    _model().save_pretrained(path)
    return path


METHODS: dict[str, Any] = {
    "MISS": peft.MissConfig(r=4, target_modules=["q_proj"], init_weights=False, task_type="CAUSAL_LM"),
    "GRALORA": peft.GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"], init_weights=False),
    "C3A": peft.C3AConfig(block_size=8, target_modules=["q_proj"], init_weights=False, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("method", METHODS)
def test_peft_turns_other_methods_into_lora(
    method: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`encode --base` takes PEFT's own way, and its note says what was lost."""
    model = peft.get_peft_model(_model(), METHODS[method])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    target = tmp_path / "a.nola"
    command = ["encode", str(tmp_path / "adapter"), "-o", str(target), "--size", "40KB", "--base", str(base)]
    with pytest.raises(SystemExit) as status:
        main(command)
    assert not status.value.code
    assert f"PEFT turned {method} into LoRA of rank" in capsys.readouterr().err
    nola_codec.merge([target], base, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    before, name = _model().state_dict(), "model.layers.0.self_attn.q_proj.weight"
    expected = model.merge_and_unload().state_dict()[name] - before[name]
    assert float((merged[name] - before[name] - expected).norm() / expected.norm()) < 0.1


def _config(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensor = nola_codec.model.tensors.RawTensor("F32", (2,), bytes(8))
    data = nola_codec.stores.safetensors_writer.dump({"base_model.model.q_proj.x": tensor}, {})
    (path / "adapter_model.safetensors").write_bytes(data)
    return path


@pytest.mark.parametrize("method", CONVERTIBLE)
def test_refusal_names_the_way_out(method: str, tmp_path: Path) -> None:
    """A method that PEFT can convert: the message says so."""
    with pytest.raises(AdapterError, match=r"--base MODEL_DIR.*peft\.save_as_lora") as caught:
        adapters.read(_config(tmp_path / "a", peft_type=method))
    assert caught.value.code == "not-lora"


@pytest.mark.parametrize(
    ("method", "reason"),
    [("IA3", "multiplies activations"), ("OFT", "multiplies the base weights"), ("PROMPT_TUNING", "changes no weight"),
     ("PREFIX_TUNING", "changes no weight"), ("P_TUNING", "changes no weight"), ("SHIRA", "single elements"),
     ("BEFT", "added to biases"), ("ADAMSS", "subspaces")],
)  # fmt: skip
def test_refusal_gives_the_reason(method: str, reason: str, tmp_path: Path) -> None:
    """A method that nothing can code: the message says why."""
    with pytest.raises(AdapterError, match=f"{method} cannot be coded: .*{reason}"):
        adapters.read(_config(tmp_path / "a", peft_type=method))


def test_unknown_method_lists_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"'NEW' is a method of PEFT .* does not know, .* reads LORA, .*, WAVEFT"):
        adapters.read(_config(tmp_path / "a", peft_type="NEW"))


def test_every_method_of_peft_has_a_reason() -> None:
    """No method of this PEFT is refused with a bare list."""
    refused = set(peft.PeftType.__members__) - {*CODED, *CONVERTIBLE}
    assert [method for method in sorted(refused) if "cannot be coded" not in describe_refusal(method)] == []


def test_python_names_its_own_way_out(base: Path, tmp_path: Path) -> None:
    """`encode(base=...)` converts nothing, and its message names the function that does, whose result it takes."""
    peft.get_peft_model(_model(), METHODS["MISS"]).save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"in Python, .*nola_codec\.integrations\.peft_conversion\.convert"):
        nola_codec.encode(tmp_path / "a", base=base)
    convert(tmp_path / "a", base, tmp_path / "lora")
    assert nola_codec.encode(tmp_path / "lora", base=base).bytes


def test_tables_follow_peft() -> None:
    """Every method in the tables is one of PEFT's, and PEFT converts those that are said to be convertible."""
    assert {*CODED, *CONVERTIBLE} <= set(peft.PeftType.__members__)
    for method in CONVERTIBLE:
        layers = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[peft.PeftType[method]].tuner_layer_cls
        classes = [layers] if isinstance(layers, type) else list(layers)
        known = [c for each in classes for c in (each, *each.__subclasses__())]
        base = peft.tuners.tuners_utils.BaseTunerLayer.supports_lora_conversion
        assert any(c.supports_lora_conversion is not base for c in known), method


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    """PEFT only warns of an adapter that fits nothing in the model; here it is an error."""
    model = peft.get_peft_model(_model(), METHODS["C3A"])
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["k_proj"]}))
    with pytest.raises(AdapterError, match="other modules") as caught:
        convert(tmp_path / "adapter", base, tmp_path / "lora")
    assert caught.value.code == "base-mismatch"
    assert not (tmp_path / "lora").exists()
