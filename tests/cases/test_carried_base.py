"""Carried tensors that the base model has already: they cost nothing, and PEFT computes the same (section E)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import nola_codec
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

HEAD = "base_model.model.lm_head.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
IDS = torch.tensor([[1, 5, 60, 9, 3]])


def make_model(*, tied: bool = False) -> LlamaForCausalLM:
    """Return a tiny model, the same each time."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2, tie_word_embeddings=tied))


def write_adapter(model: Any, out: Path, touched: tuple[str, ...] = (), **config: Any) -> Path:
    """Write an adapter whose factors are trained, and of its other tensors those with `touched` in their names."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], **config))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and any(part in name for part in ("lora_", *touched)):
                weight.add_(torch.randn_like(weight) * 0.01)
    adapted.save_pretrained(out)
    return out


def logits_of(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits of a base model with an adapter, as PEFT loads both."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter)).eval()
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def keys_and_saved(adapter: Path) -> tuple[set[str], Any]:
    """Return the keys of an adapter that are not factors, and its modules_to_save."""
    keys = {key for key in load_file(adapter / "adapter_model.safetensors") if ".lora_" not in key}
    return keys, json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a base model with two embeddings."""
    path = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(path)
    return path


def test_untouched_tensors_cost_nothing(base: Path, tmp_path: Path) -> None:
    """Both embeddings are as the base has them: they are left out, a note says so, and the logits are the same."""
    adapter = write_adapter(make_model(), tmp_path / "adapter", modules_to_save=["lm_head", "embed_tokens"])
    whole = nola_codec.encode(adapter, tmp_path / "whole.nola")
    report = nola_codec.encode(adapter, tmp_path / "a.nola", base=base)
    assert report.carried == ()
    assert report.bytes < 1200 < whole.bytes
    assert report.parameters == whole.parameters - 2 * 96 * 32
    (note,) = (each for each in report.notes if "left out" in each)
    assert HEAD in note
    assert EMBEDDING in note
    for name in ("whole", "a"):
        nola_codec.decode(tmp_path / f"{name}.nola", tmp_path / name)
    assert keys_and_saved(tmp_path / "a") == (set(), None)
    assert torch.equal(logits_of(base, tmp_path / "a"), logits_of(base, tmp_path / "whole"))
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    assert torch.equal(
        load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"],
        load_file(base / "model.safetensors")["lm_head.weight"],
    )


def test_a_touched_tensor_stays(base: Path, tmp_path: Path) -> None:
    """Only the embedding is left out; the head is carried, and a note says how far it is from the base's."""
    saved = ["lm_head", "embed_tokens"]
    adapter = write_adapter(make_model(), tmp_path / "adapter", ("lm_head",), modules_to_save=saved)
    report = nola_codec.encode(adapter, tmp_path / "a.nola", base=base)
    assert [each.name for each in report.carried] == [HEAD]
    assert any(EMBEDDING in note and "left out" in note for note in report.notes)
    assert any("differs from lm_head.weight by 0.0" in note for note in report.notes)
    nola_codec.encode(adapter, tmp_path / "whole.nola")
    for name in ("whole", "a"):
        nola_codec.decode(tmp_path / f"{name}.nola", tmp_path / name)
    assert keys_and_saved(tmp_path / "a") == ({HEAD}, ["lm_head"])
    assert torch.equal(logits_of(base, tmp_path / "a"), logits_of(base, tmp_path / "whole"))


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path: Path) -> None:
    """The base stores one tensor for both; a saved head that equals it is left out, a trained one stays."""
    make_model(tied=True).save_pretrained(tmp_path / "base")
    assert "lm_head.weight" not in load_file(tmp_path / "base" / "model.safetensors")
    for number, touched in enumerate([(), ("lm_head",)]):
        adapter = write_adapter(
            make_model(tied=True), tmp_path / f"adapter{number}", touched, modules_to_save=["lm_head"]
        )
        assert HEAD in keys_and_saved(adapter)[0]
        report = nola_codec.encode(adapter, tmp_path / "a.nola", base=tmp_path / "base", overwrite=True)
        assert bool(report.carried) == bool(touched)
        nola_codec.decode(tmp_path / "a.nola", tmp_path / f"a{number}")
        nola_codec.encode(adapter, tmp_path / "whole.nola", overwrite=True)
        nola_codec.decode(tmp_path / "whole.nola", tmp_path / f"whole{number}")
        found, wanted = (logits_of(tmp_path / "base", tmp_path / f"{name}{number}") for name in ("a", "whole"))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("saved", ["bfloat16"])
def test_an_adapter_of_sixteen_bits_beside_a_base_of_thirty_two(saved: str, base: Path, tmp_path: Path) -> None:
    """The base's values rounded to the adapter's dtype count as equal; so do those of a base in fewer bits."""
    adapter = write_adapter(make_model(), tmp_path / "adapter", modules_to_save=["lm_head"])
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor.to(getattr(torch, saved)) for key, tensor in tensors.items()}, weights)
    assert nola_codec.encode(adapter, base=base).carried == ()
    half = {name: tensor.to(getattr(torch, saved)) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(half, tmp_path / "half.safetensors")
    tensors[HEAD] = half["lm_head.weight"].float()
    save_file(tensors, weights)
    assert nola_codec.encode(adapter, base=tmp_path / "half.safetensors").carried == ()


def test_what_a_base_does_not_have_is_said(base: Path, tmp_path: Path) -> None:
    """A resized embedding, and a head that no base has, stay, and notes say why."""
    model = make_model()
    model.resize_token_embeddings(100)
    adapter = write_adapter(model, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    report = nola_codec.encode(adapter, base=base)
    assert EMBEDDING in [each.name for each in report.carried]
    assert any("has the shape [100, 32], and model.embed_tokens.weight [96, 32]" in note for note in report.notes)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] = torch.randn(3, 32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["embed_tokens", "score"]}))
    report = nola_codec.encode(adapter, base=base)
    assert any("no tensor for base_model.model.score.weight" in note for note in report.notes)


def test_a_base_that_serves_nothing_is_said(base: Path, tmp_path: Path) -> None:
    """No option is accepted and ignored; and a base that is none is refused."""
    adapter = write_adapter(make_model(), tmp_path / "adapter")
    assert any("--base changed nothing" in note for note in nola_codec.encode(adapter, base=base).notes)
    with pytest.raises(AdapterError):
        nola_codec.encode(adapter, base=tmp_path / "nothing")
    nola_codec.encode(adapter, tmp_path / "a.nola")
    with pytest.raises(AdapterError, match=r"expected a model, found a \.nola file"):
        nola_codec.encode(adapter, base=tmp_path / "a.nola")


def test_a_value_that_the_dtype_cannot_hold_is_a_difference() -> None:
    """A large number of the base has no neighbour in float16, and a NaN equals a NaN."""
    from nola_codec.encoder.base_tensors import _are_equal

    big = RawTensor("F32", (2,), np.array([1, 1e30], np.float32).tobytes())
    small = RawTensor("F16", (2,), np.array([1, 2], np.float16).tobytes())
    assert not _are_equal(small, big)
    nan = RawTensor("F32", (2,), np.array([1, np.nan], np.float32).tobytes())
    assert _are_equal(nan, nan)
    assert not _are_equal(nan, big)


def test_the_command_line_takes_a_base(base: Path, tmp_path: Path) -> None:
    """`encode --base`; a whole model in place of the adapter is sent to encode-delta."""
    from click.testing import CliRunner

    from nola_codec.cli import group

    adapter = write_adapter(make_model(), tmp_path / "adapter", modules_to_save=["lm_head"])
    done = CliRunner().invoke(group, ["encode", str(adapter), "-n", "--base", str(base), "--carried", "bf16"])
    assert done.exit_code == 0, done.output
    assert "equals that of the base model and was left out" in done.output
    wrong = CliRunner().invoke(group, ["encode", str(base), "-n", "--base", str(base)])
    assert wrong.exit_code == 2
    assert "nola-codec encode-delta" in wrong.output


@pytest.mark.parametrize("tied", [False, True])
def test_a_nearly_equal_head_is_coded_as_a_change(tied: bool, tmp_path: Path) -> None:
    """With the base, the decoded directory has the head again; a merge adds the change; without it, a clear refusal."""
    make_model(tied=tied).save_pretrained(tmp_path / "base")
    adapter = write_adapter(make_model(tied=tied), tmp_path / "adapter", ("lm_head",), modules_to_save=["lm_head"])
    exact = nola_codec.encode(adapter, tmp_path / "exact.nola", nmse=0.01)
    file = tmp_path / "a.nola"
    report = nola_codec.encode(adapter, file, nmse=0.01, carried="coded", base=tmp_path / "base")
    (head,) = report.carried
    assert (head.name, head.form) == (HEAD, "change")
    assert head.bytes < 96 * 32 * 5 / 8
    assert report.bytes < exact.bytes - 8000
    assert any("coded as a change of the base model" in note and HEAD in note for note in report.notes)
    # An adapter of it needs the base model, and says so.
    with pytest.raises(AdapterError, match=HEAD) as refusal:
        nola_codec.decode(file, tmp_path / "none")
    assert refusal.value.code == "needs-base"
    assert not (tmp_path / "none").exists()
    with nola_codec.load(file) as task, pytest.raises(AdapterError, match="is held as a change") as refusal:
        task.state_dict()
    nola_codec.decode(file, tmp_path / "back", base=tmp_path / "base", format="peft")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "back"))
    assert before.keys() == after.keys()
    lost = float((after[HEAD] - before[HEAD]).norm() / before[HEAD].norm())
    assert lost == pytest.approx(head.relative_error, rel=0.01)
    assert lost < 0.01
    nola_codec.decode(tmp_path / "exact.nola", tmp_path / "whole")
    found, wanted = (logits_of(tmp_path / "base", tmp_path / name) for name in ("back", "whole"))
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    # A merge has the same head to one rounding, and refuses another base.
    nola_codec.decode(file, tmp_path / "merged", base=tmp_path / "base")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(merged["lm_head.weight"], after[HEAD], rtol=1e-6, atol=1e-7)
    model = make_model(tied=tied)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match="has other bytes") as refusal:
        nola_codec.decode(file, tmp_path / "wrong", base=tmp_path / "other", format="peft")
    assert refusal.value.code == "base-mismatch"
    with pytest.raises(AdapterError, match="has other bytes") as refusal:
        nola_codec.merge([file], tmp_path / "other", tmp_path / "wrong", any_base=True)
    assert refusal.value.code == "base-mismatch"
    with pytest.raises(AdapterError, match="whose weights are others") as refusal:
        nola_codec.decode(file, tmp_path / "wrong", base=tmp_path / "other")
    assert refusal.value.code == "other-base"


def test_a_head_that_is_another_one_is_coded_by_itself(base: Path, tmp_path: Path) -> None:
    """A change as large as the tensor gains nothing, so the file needs no base model."""
    adapter = write_adapter(make_model(), tmp_path / "adapter", modules_to_save=["lm_head"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[HEAD] = torch.randn(96, 32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    report = nola_codec.encode(adapter, tmp_path / "a.nola", carried="coded", base=base)
    assert [each.form for each in report.carried] == ["coded"]
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    assert HEAD in load_file(tmp_path / "back" / "adapter_model.safetensors")
