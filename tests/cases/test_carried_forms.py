"""The forms of carried tensors (`--carried`), with PEFT as the judge of what is decoded (section E, case 26)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import nola_codec
from nola_codec.decoder.carried_forms import restore_carried
from nola_codec.encoder.carried import relative_error
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import VectorTensor
from nola_codec.model.tensors import RawTensor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

HEAD = "base_model.model.lm_head.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
IDS = torch.tensor([[1, 5, 60, 9, 3]])
BITS = {"exact": 32, "bf16": 16, "int8": 9.1, "coded": 8}
"""The most bits of a number of a matrix in each form, with the scales of short rows."""


def make_config(**more: Any) -> LlamaConfig:
    """Return the configuration of a tiny model."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, **more)


def train(model: Any, *, only: str = "", **config: Any) -> PeftModel:
    """Return a PEFT model whose factors, and saved modules with `only` in their names, are as after a training."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **config))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and ("lora_" in name or only in name):
                weight.add_(torch.randn_like(weight) * 0.1)
    adapted.eval()
    return adapted


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a base model and of an adapter with a trained head and a trained embedding."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    model = LlamaForCausalLM(make_config(tie_word_embeddings=False))
    model.save_pretrained(folder / "base")
    train(model, modules_to_save=["lm_head", "embed_tokens"]).save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def write_like(adapter: Path, out: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write an adapter with other tensors in place of its own."""
    shutil.copytree(adapter, out)
    save_file(load_torch(adapter / "adapter_model.safetensors") | tensors, out / "adapter_model.safetensors")
    return out


def logits_of(base: Path, adapter: Path, kind: Any = LlamaForCausalLM) -> torch.Tensor:
    """Return the logits of a base model with an adapter, as PEFT loads both."""
    model = PeftModel.from_pretrained(kind.from_pretrained(base), str(adapter))
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("form", ["exact", "bf16", "int8", "coded"])
def test_a_form_takes_its_bytes_and_loses_what_it_says(form: Any, trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Every tensor comes back under its key, in its shape, and as far from its values as the report says."""
    base, adapter = trained
    report = nola_codec.encode(adapter, tmp_path / "a.nola", nmse=0.01, carried=form)
    before = load_file(adapter / "adapter_model.safetensors")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    after = load_torch(tmp_path / "back" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert [each.name for each in report.carried] == [HEAD, EMBEDDING]
    for each in report.carried:
        assert each.form == form
        assert each.bytes <= each.parameters * BITS[form] / 8
        found = after[each.name]
        assert found.dtype == (torch.bfloat16 if form == "bf16" else torch.float32)
        lost = np.linalg.norm(found.float().numpy() - before[each.name]) / np.linalg.norm(before[each.name])
        assert each.relative_error == pytest.approx(lost, rel=1e-4, abs=1e-12)
        assert (each.relative_error == 0) == (form == "exact")
    worst = max(each.relative_error for each in report.carried)
    assert worst <= {"exact": 0, "bf16": 0.003, "int8": 0.01, "coded": 0.05}[form]
    assert any("largest relative error" in note for note in report.notes) == (form != "exact")
    counted = {"int8": "2 deltas, 2 carried, reduced", "coded": "2 deltas, 2 carried, reduced"}
    assert counted.get(form, "2 deltas, 2 carried as they came") in str(nola_codec.inspect(tmp_path / "a.nola"))
    with nola_codec.load(tmp_path / "a.nola") as task:
        state = task.state_dict()
    assert state.keys() == before.keys()
    assert torch.equal(state[HEAD], after[HEAD])
    # PEFT loads the directory, and what it computes is as near as the report says to the same with exact tensors.
    deltas = {key: tensor for key, tensor in after.items() if key not in (HEAD, EMBEDDING)}
    exact = write_like(adapter, tmp_path / "exact", deltas)
    wanted, found = logits_of(base, exact), logits_of(base, tmp_path / "back")
    distance = float((found - wanted).norm() / wanted.norm())
    assert distance < 3 * worst + 1e-7
    assert (distance > 0) == (form != "exact")


@pytest.mark.parametrize("form", ["int8"])
def test_a_merge_puts_the_restored_tensors_into_the_model(
    form: Any, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """What `decode --base` writes is what the decoded adapter holds."""
    base, adapter = trained
    nola_codec.encode(adapter, tmp_path / "a.nola", carried=form)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    merged = load_torch(tmp_path / "merged" / "model.safetensors")
    back = load_torch(tmp_path / "back" / "adapter_model.safetensors")
    assert torch.equal(merged["lm_head.weight"].float(), back[HEAD].float())
    assert torch.equal(merged["model.embed_tokens.weight"].float(), back[EMBEDDING].float())


def test_the_head_of_a_classifier_is_reduced(tmp_path: Path) -> None:
    """A random head in float32 makes the file larger than fp16, and a note says so; `--carried bf16` halves it."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(make_config(num_labels=40, pad_token_id=0))
    model.save_pretrained(tmp_path / "base")
    train(model, task_type="SEQ_CLS").save_pretrained(tmp_path / "adapter")
    exact = nola_codec.encode(tmp_path / "adapter")
    assert exact.carried_bytes > 4000
    assert any("become 2.6 KB with --carried bf16" in note for note in exact.notes)
    half = nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", nmse=0.001, carried="bf16")
    assert half.carried_bytes <= 2560
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    kind = LlamaForSequenceClassification
    wanted = logits_of(tmp_path / "base", tmp_path / "adapter", kind)
    found = logits_of(tmp_path / "base", tmp_path / "back", kind)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_a_size_leaves_the_rest_to_the_deltas(trained: tuple[Path, Path]) -> None:
    """A coded head becomes coarser before a size is refused, and the errors of the report are those of the deltas."""
    _, adapter = trained
    free = nola_codec.encode(adapter, nmse=0.01, carried="coded")
    assert free.nmse <= 0.01
    assert len(free.tensors) == 2  # the coded carried tensors are no deltas
    tight = nola_codec.encode(adapter, size=free.carried_bytes, carried="coded")
    assert tight.bytes <= free.carried_bytes
    assert 0.12 > tight.carried[0].relative_error > free.carried[0].relative_error
    with pytest.raises(EncodeError, match=rf"most of them {HEAD}") as refusal:
        nola_codec.encode(adapter, size=free.carried_bytes // 2, carried="coded")
    assert refusal.value.code == "unreachable"


@pytest.mark.parametrize(("form", "dtype"), [("bf16", "float16"), ("int8", "bfloat16"), ("coded", "float16")])
def test_tensors_of_sixteen_bits_keep_their_dtype(form: Any, dtype: str, tmp_path: Path) -> None:
    """A head in 16 bits stays as it is in bf16, and comes back in its own dtype from the others."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(make_config(tie_word_embeddings=False)).to(getattr(torch, dtype))
    train(model, modules_to_save=["lm_head"]).save_pretrained(tmp_path / "adapter")
    report = nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", carried=form)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    before = load_torch(tmp_path / "adapter" / "adapter_model.safetensors")[HEAD]
    after = load_torch(tmp_path / "back" / "adapter_model.safetensors")[HEAD]
    assert after.dtype == before.dtype
    assert report.carried[0].form == ("exact" if form == "bf16" else form)
    assert torch.equal(before, after) == (form == "bf16")


def test_values_that_sixteen_bits_hold_lose_nothing(tmp_path: Path) -> None:
    """Float32 numbers that are bfloat16 or float16 numbers: the form bf16 then takes the dtype that is exact."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(make_config(tie_word_embeddings=False))
    adapted = train(model, modules_to_save=["lm_head", "embed_tokens"])
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.copy_(weight.bfloat16() if "lm_head" in name else weight.half())
    adapted.save_pretrained(tmp_path / "adapter")
    report = nola_codec.encode(tmp_path / "adapter", tmp_path / "a.nola", carried="bf16")
    assert [each.relative_error for each in report.carried] == [0, 0]
    assert any("without any loss" in note for note in report.notes)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "back")
    back = load_torch(tmp_path / "back" / "adapter_model.safetensors")
    assert (back[HEAD].dtype, back[EMBEDDING].dtype) == (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "others", [{"num_basis": 8}, {"progressive": True}, {"rungs": [900]}, {"fit": "task", "tuner": object()}]
)
def test_what_coded_cannot_go_with_is_refused(others: Any, trained: tuple[Path, Path]) -> None:
    """The message says which form can go with it."""
    with pytest.raises(EncodeError, match=r"carried coded cannot go with .*; carried int8 can"):
        nola_codec.encode(trained[1], carried="coded", **others)
    with pytest.raises(EncodeError, match="carried: expected one of exact, bf16, int8, coded, found 'int4'"):
        nola_codec.encode(trained[1], carried="int4")  # type: ignore[arg-type]


def test_a_form_that_changes_nothing_is_said(tmp_path: Path) -> None:
    """No option is accepted and ignored."""
    torch.manual_seed(1)
    train(LlamaForCausalLM(make_config())).save_pretrained(tmp_path / "adapter")
    assert any(
        "--carried int8 changed nothing" in n for n in nola_codec.encode(tmp_path / "adapter", carried="int8").notes
    )


def test_rows_of_zeros_and_values_that_are_not_finite() -> None:
    """A row of zeros comes back as zeros; a matrix with a NaN stays exact in the forms that cannot hold it."""
    from nola_codec.encoder.carried import reduce_carried
    from nola_codec.model.adapter import Adapter

    values = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    values[3] = 0
    tensor = RawTensor("F32", values.shape, values.tobytes())
    reduced = reduce_carried(Adapter("loralib", (), {"head.weight": tensor}), "int8")
    back, _ = restore_carried(reduced.adapter.raw, reduced.adapter.vectors)
    restored = np.frombuffer(back["head.weight"].data, np.float32).reshape(values.shape)
    assert not restored[3].any()
    assert 0 < relative_error(tensor, back["head.weight"]) < 0.01
    values[5, 5] = np.nan
    broken = RawTensor("F32", values.shape, values.tobytes())
    for form in ("int8", "coded"):
        kept = reduce_carried(Adapter("loralib", (), {"head.weight": broken}), form)
        assert (kept.adapter.raw, kept.forms) == ({"head.weight": broken}, {"head.weight": "exact"})


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ({"a.int8": RawTensor("I8", (2, 2), bytes(4))}, "bad-carried"),
        ({"a.int8_scale": RawTensor("F32", (2,), bytes(8))}, "bad-carried"),
        (
            {"a.int8": RawTensor("I8", (2, 2), bytes(4)), "a.int8_scale": RawTensor("F32", (3,), bytes(12))},
            "bad-carried",
        ),
        (
            {"a.int8": RawTensor("U8", (2, 2), bytes(4)), "a.int8_scale": RawTensor("F32", (2,), bytes(8))},
            "bad-carried",
        ),
        ({"a.int8": RawTensor("I8", (), bytes(1)), "a.int8_scale": RawTensor("I8", (0,), b"")}, "bad-carried"),
        ({"v": RawTensor("F32", (1,), bytes(4))}, "duplicate-key"),
    ],
)
def test_parts_that_do_not_fit_are_refused(raw: dict[str, RawTensor], code: str) -> None:
    """A stranger's file with half a tensor, or with one in two forms, gets one clear error."""
    with pytest.raises(AdapterError) as refusal:
        restore_carried(raw, [VectorTensor("v.coded", np.ones(1, np.float32))])
    assert refusal.value.code == code


def test_a_name_of_a_part_cannot_be_carried(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """An unknown tensor called ``x.int8`` would come back as another one, so it is refused when it is encoded."""
    tensors = load_torch(trained[1] / "adapter_model.safetensors") | {"x.int8": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((trained[1] / "adapter_config.json").read_bytes())
    with pytest.raises(EncodeError) as refusal:
        nola_codec.encode(tmp_path, carry_unknown=True)
    assert refusal.value.code == "reserved-key"
