"""Uni-LoRA, TinyLoRA, VB-LoRA, FourierFT, WaveFT and PVeRA through a `.nola` file: equal by default, coded, merged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.api.comparing import compare
from nola_codec.api.decoding import decode, verify
from nola_codec.api.encoding import encode, encode_bytes
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.integrations import peft as live
from nola_codec.stores.safetensors_io import SafetensorsFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT of Transformers
    pytest.mark.filterwarnings("ignore:Specified to not:UserWarning"),  # PEFT, of seeds
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),  # PEFT, of an adapted embedding
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),  # PEFT, of layers of two types
]

KINDS: dict[str, tuple[str, type, dict[str, Any]]] = {
    "Uni-LoRA": ("llama", peft.UniLoraConfig, {"r": 3, "theta_d_length": 70}),
    "Uni-LoRA, indices": ("llama", peft.UniLoraConfig, {"r": 3, "theta_d_length": 70, "save_indices": True}),
    "Uni-LoRA of Conv1D": ("gpt2", peft.UniLoraConfig, {"theta_d_length": 90, "save_indices": True}),
    "TinyLoRA": ("llama", peft.TinyLoraConfig, {"u": 20}),
    "TinyLoRA, tied": ("llama", peft.TinyLoraConfig, {"u": 17, "r": 3, "weight_tying": 0.6}),
    "TinyLoRA, one vector": ("llama", peft.TinyLoraConfig, {"u": 1, "r": 2, "weight_tying": 1.0}),
    "TinyLoRA, few numbers": ("llama", peft.TinyLoraConfig, {"u": 2, "r": 2, "projection_seed": 2**33 + 5}),
    "TinyLoRA, no P": ("llama", peft.TinyLoraConfig, {"u": 20, "save_projection": False}),
    "TinyLoRA of Conv1D": ("gpt2", peft.TinyLoraConfig, {"u": 20, "fan_in_fan_out": True}),
    "TinyLoRA of an embedding": ("gpt2", peft.TinyLoraConfig, {"u": 20, "target_modules": ["wte", "c_fc"]}),
    "VB-LoRA": ("llama", peft.VBLoRAConfig, {"num_vectors": 12, "vector_length": 4, "topk": 3}),
    "VB-LoRA, top k": (
        "llama", peft.VBLoRAConfig,
        {"num_vectors": 300, "vector_length": 8, "topk": 2, "save_only_topk_weights": True},
    ),
    "VB-LoRA, top 1": (
        "llama", peft.VBLoRAConfig, {"num_vectors": 9, "vector_length": 4, "topk": 1, "save_only_topk_weights": True}
    ),
    "VB-LoRA of Conv1D": ("gpt2", peft.VBLoRAConfig, {"num_vectors": 12, "vector_length": 8}),
    "FourierFT": ("odd", peft.FourierFTConfig, {"n_frequency": 30, "random_loc_seed": 5, "scaling": 40.0}),
    "FourierFT, pattern": ("odd", peft.FourierFTConfig, {"n_frequency": 30, "n_frequency_pattern": {"v_proj": 11}}),
    "FourierFT of Conv1D": ("gpt2", peft.FourierFTConfig, {"n_frequency": 50}),
    "WaveFT": ("odd", peft.WaveFTConfig, {"n_frequency": 30, "random_loc_seed": 5}),
    "WaveFT, db4": ("odd", peft.WaveFTConfig, {"n_frequency": 60, "wavelet_family": "db4"}),
    "WaveFT, coif4": ("odd", peft.WaveFTConfig, {"n_frequency": 60, "wavelet_family": "coif4", "scaling": 3.0}),
    "WaveFT, proportional": (
        "llama", peft.WaveFTConfig, {"n_frequency": 30, "wavelet_family": "sym2", "proportional_parameters": True}
    ),
    "WaveFT, no transform": ("odd", peft.WaveFTConfig, {"n_frequency": 60, "use_idwt": False}),
    "WaveFT of Conv1D": ("gpt2", peft.WaveFTConfig, {"n_frequency": 50}),
    "PVeRA": ("llama", peft.PveraConfig, {"r": 5, "projection_prng_key": 11}),
    "PVeRA of Conv1D": ("gpt2", peft.PveraConfig, {"r": 5, "fan_in_fan_out": True}),
}  # fmt: skip
MERGED = [kind for kind in KINDS if kind not in ("Uni-LoRA", "TinyLoRA, no P")]
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


@dataclass(frozen=True)
class Trained:
    """A base model, a trained adapter of it in PEFT, and both as files."""

    model: Any
    tuned: Any
    base: Path
    adapter: Path

    def logits(self, model: Any) -> torch.Tensor:
        tokens = torch.arange(24).reshape(2, 12) % 40
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=tokens).logits
        return logits


Train = Callable[..., Trained]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`train(kind, dtype=, **options)`."""

    def make(kind: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Trained:
        family, make_config, given = KINDS[kind]
        torch.manual_seed(1)
        if family == "gpt2":
            config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                                             bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                                             tie_word_embeddings=False)  # fmt: skip
            model: Any = transformers.GPT2LMHeadModel(config).to(dtype)
        else:
            wide = 41 if family == "odd" else 40
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=wide, num_hidden_layers=2,
                                         max_position_embeddings=32, num_attention_heads=4, num_key_value_heads=2)
            ).to(dtype)  # fmt: skip
        model.save_pretrained(tmp_path / "base")
        targets = TARGETS["gpt2" if family == "gpt2" else "llama"]
        tuned = peft.get_peft_model(
            copy.deepcopy(model), make_config(**{"target_modules": targets, **given, **options})
        )
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * (2.0 if "logits" in name else 0.3))
        tuned.save_pretrained(tmp_path / "adapter")
        return Trained(model, tuned, tmp_path / "base", tmp_path / "adapter")

    return make


def load_again(case: Trained, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(case.model), adapter)


def tensors(directory: Path) -> dict[str, Any]:
    with SafetensorsFile(directory / "adapter_model.safetensors") as file:
        return {key: file.read(key) for key in file.tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_equal(train: Train, tmp_path: Path, kind: str) -> None:
    case = train(kind)
    report = encode(case.adapter, tmp_path / "a.nola")
    assert (report.nmse, report.objective, report.tensors) == (0, "nmse", ())
    assert any("carried exact" in note for note in report.notes)
    verify(tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(case.adapter)
    config, original = (json.loads((p / "adapter_config.json").read_text()) for p in (tmp_path / "out", case.adapter))
    assert config == original
    source, again = load_again(case, case.adapter), load_again(case, tmp_path / "out")
    assert torch.equal(case.logits(again), case.logits(source))
    assert not torch.allclose(case.logits(again), case.logits(case.model), atol=1e-4)
    assert torch.equal(case.logits(live.load(copy.deepcopy(case.model), tmp_path / "a.nola")), case.logits(source))
    found = compare(case.adapter, tmp_path / "a.nola")
    assert (found.nmse, found.same_structure) == (0, True)
    live.save(case.tuned, tmp_path / "saved.nola")
    decode(tmp_path / "saved.nola", tmp_path / "saved")
    assert tensors(tmp_path / "saved") == tensors(case.adapter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MERGED)
def test_merges_are_pefts(train: Train, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    case = train(kind, dtype=dtype)
    encode(case.adapter, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    in_memory = copy.deepcopy(case.model)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(in_memory)
    merged = type(case.model).from_pretrained(tmp_path / "merged", dtype=dtype).state_dict()
    theirs = load_again(case, case.adapter).float().merge_and_unload().state_dict()
    base, changed = case.model.state_dict(), 0
    for name, weight in merged.items():
        assert torch.equal(weight, in_memory.state_dict()[name]), name
        changed += not torch.equal(weight, base[name])
        step = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8}[dtype]
        assert torch.allclose(weight.float(), theirs[name].float(), rtol=2 * step, atol=2 * step), name
    assert changed == (6 if KINDS[kind][0] != "gpt2" else 3 if "embedding" in kind else 4)


def true_nmse(case: Trained, adapter: Path) -> float:
    """The NMSE of the deltas that PEFT merges."""
    base = case.model.state_dict()
    ours, theirs = (load_again(case, p).merge_and_unload().state_dict() for p in (adapter, case.adapter))
    lost = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in base)
    return lost / sum(float((theirs[name] - base[name]).double().square().sum()) for name in base)


@pytest.mark.parametrize("rate", [{"nmse": 0.02}, {"bits": 4}], ids=str)
@pytest.mark.parametrize("kind", ["Uni-LoRA, indices", "TinyLoRA", "TinyLoRA, tied", "VB-LoRA", "VB-LoRA, top k"])
def test_a_rate_codes_the_numbers_and_errors_are_those_of_deltas(
    train: Train, tmp_path: Path, kind: str, rate: dict[str, Any]
) -> None:
    case = train(kind)
    report = encode(case.adapter, tmp_path / "a.nola", **rate)
    assert 0 < report.nmse <= rate.get("nmse", 0.1)
    assert any("errors are measured on the deltas" in note for note in report.notes)
    decode(tmp_path / "a.nola", tmp_path / "out")
    assert true_nmse(case, tmp_path / "out") == pytest.approx(report.nmse, rel=1e-3)
    assert compare(case.adapter, tmp_path / "a.nola").nmse == pytest.approx(report.nmse, rel=1e-6)
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    merged = type(case.model).from_pretrained(tmp_path / "merged").state_dict()
    for name, weight in load_again(case, tmp_path / "out").merge_and_unload().state_dict().items():
        assert torch.allclose(merged[name], weight, atol=1e-5), name


@pytest.mark.parametrize("nmse", [0.01, 0.5])
def test_untrained_numbers_lose_nothing(train: Train, nmse: float) -> None:
    """As PEFT begins: the vectors are zero, and so are all deltas, but not the matrices."""
    case = train("TinyLoRA")
    file = case.adapter / "adapter_model.safetensors"
    values = load_file(file)
    assert any("tinylora_v" in name for name in values)
    save_file({name: value * ("tinylora_v" not in name) for name, value in values.items()}, file)
    report = encode(case.adapter, nmse=nmse)
    assert report.nmse == 0
    assert any("all its deltas are zero" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["Uni-LoRA", "TinyLoRA, no P", "FourierFT", "WaveFT", "WaveFT, db4"])
def test_where_the_file_tells_no_delta_errors_are_those_of_the_numbers(train: Train, tmp_path: Path, kind: str) -> None:
    case = train(kind)
    report = encode(case.adapter, tmp_path / "a.nola", nmse=0.01)
    assert report.nmse <= 0.01
    assert any("errors are those of the trained numbers" in note for note in report.notes)
    decode(tmp_path / "a.nola", tmp_path / "out")
    found = true_nmse(case, tmp_path / "out")
    # The delta of Uni-LoRA is a product of two sides, and that of TinyLoRA of three, and each has the error.
    assert report.nmse / 2 < found < 4 * report.nmse


def test_a_rate_gives_logits_the_form_that_peft_saves(train: Train, tmp_path: Path) -> None:
    """The indices are those that PEFT chooses, and the weights are its softmax."""
    case = train("VB-LoRA")
    report = encode(case.adapter, tmp_path / "a.nola", nmse=0.02)
    assert any("save_only_topk_weights" in note for note in report.notes)
    decode(tmp_path / "a.nola", tmp_path / "out")
    case.tuned.peft_config["default"].save_only_topk_weights = True
    case.tuned.save_pretrained(tmp_path / "theirs")
    ours, theirs = tensors(tmp_path / "out"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        if key.endswith("indices"):
            assert ours[key] == tensor
        elif key.endswith("weights"):
            values = [np.frombuffer(each.data, np.float32) for each in (ours[key], tensor)]
            assert np.allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("rate", [{}, {"bits": 4}], ids=str)
@pytest.mark.parametrize(
    ("kind", "words"), [("Uni-LoRA", "save_indices=True"), ("TinyLoRA, no P", "save_projection=True")]
)
def test_nothing_is_merged_that_the_file_does_not_tell(
    train: Train, tmp_path: Path, kind: str, words: str, rate: dict[str, Any]
) -> None:
    case = train(kind)
    encode(case.adapter, tmp_path / "a.nola", **rate)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        attempts: list[Callable[[], Any]] = [
            lambda: decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base),
            lambda: opened.merge_into(copy.deepcopy(case.model)),
            lambda: opened.delta_weight("model.layers.0.mlp.down_proj", (16, 40)),
        ]
        for attempt in attempts:
            with pytest.raises(AdapterError, match=words) as caught:
                attempt()
            assert caught.value.code == "merge-projections"


def test_a_tinylora_of_another_seed_is_not_merged(train: Train, tmp_path: Path) -> None:
    """Only the draw of P tells which vector belongs to which layer; a guess could be wrong in silence."""
    case = train("TinyLoRA")
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projection_seed": 1000}))
    encode(case.adapter, tmp_path / "a.nola")
    with pytest.raises(AdapterError, match="not what PEFT draws from projection_seed"):
        decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("FourierFT", {"scaling": 80.0}), ("FourierFT", {"random_loc_seed": 6}), ("WaveFT", {"scaling": 50.0}),
     ("WaveFT", {"random_loc_seed": 6}), ("WaveFT, db4", {"wavelet_family": "sym4"}), ("WaveFT", {"use_idwt": False})],
)  # fmt: skip
def test_the_options_change_a_merge_as_they_change_peft(
    train: Train, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    case = train(kind)
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    encode(case.adapter, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    merged = type(case.model).from_pretrained(tmp_path / "merged").state_dict()
    theirs = load_again(case, case.adapter).merge_and_unload().state_dict()
    before = copy.deepcopy(case.tuned).merge_and_unload().state_dict()
    assert all(torch.allclose(weight, theirs[name], atol=1e-5) for name, weight in merged.items())
    assert not all(torch.allclose(weight, before[name], atol=1e-3) for name, weight in merged.items())


def test_what_is_trained_beside_the_numbers_is_kept_and_merged(train: Train, tmp_path: Path) -> None:
    case = train("FourierFT of Conv1D", bias="all", modules_to_save=["lm_head"])
    encode(case.adapter, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(case.adapter)
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    merged = type(case.model).from_pretrained(tmp_path / "merged").state_dict()
    theirs = load_again(case, case.adapter).merge_and_unload().state_dict()
    assert all(torch.allclose(weight, theirs[name], atol=1e-5) for name, weight in merged.items())


def test_a_sampled_pvera_is_merged_by_its_mean(train: Train, tmp_path: Path) -> None:
    case = train("PVeRA", sample_at_inference=True, generator_seed=3)
    report = encode(case.adapter, tmp_path / "a.nola")
    assert any("those of their mean" in note for note in report.notes)
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    merged = type(case.model).from_pretrained(tmp_path / "merged").state_dict()
    theirs = load_again(case, case.adapter).merge_and_unload().state_dict()
    assert all(torch.allclose(weight, theirs[name], atol=1e-5) for name, weight in merged.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bits": 4, "rank": 2}, "rank of FourierFT"), ({"objective": "effective", "size": 2000}, "by the NMSE")],
)
def test_options_of_low_rank_factors_are_refused(train: Train, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        encode(train("FourierFT").adapter, **options)
    assert caught.value.code == "option"


def test_a_lone_file_has_no_place_for_the_configuration(train: Train, tmp_path: Path) -> None:
    case = train("WaveFT")
    data, _ = encode_bytes(case.adapter)
    (tmp_path / "a.nola").write_bytes(data)
    with pytest.raises(AdapterError, match="write a directory") as caught:
        decode(tmp_path / "a.nola", tmp_path / "lone.safetensors")
    assert caught.value.code == "needs-directory"
    with pytest.raises(AdapterError, match="keys look like PEFT's WaveFT") as caught:
        encode((case.adapter / "adapter_model.safetensors").read_bytes())
    assert caught.value.code == "foreign-dialect"
    with pytest.raises(AdapterError, match="cannot take") as caught:
        decode(tmp_path / "a.nola", tmp_path / "k", format="kohya")
    assert caught.value.code == "not-expressible"


def test_a_delta_alone_needs_the_shape_only_where_the_file_does_not_tell_it(train: Train, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    for kind, shape in (("FourierFT", (16, 41)), ("TinyLoRA", None), ("VB-LoRA", None)):
        case = train(kind)
        encode(case.adapter, tmp_path / "a.nola", overwrite=True)
        theirs = dict(load_again(case, case.adapter).named_modules())[f"base_model.model.{name}"]
        with nola_codec.load(tmp_path / "a.nola") as opened:
            assert torch.allclose(opened.delta_weight(name, shape), theirs.get_delta_weight("default"), atol=1e-5)
            for wrong, code in ((None, "needs-shape"), ((2, 3), "bad-shape")):
                if wrong is None and shape is None:
                    continue
                with pytest.raises(AdapterError) as caught:
                    opened.delta_weight(name, wrong)
                assert caught.value.code == code


def test_the_diagonals_of_pvera_are_trained_as_coefficients(train: Train, tmp_path: Path) -> None:
    from nola_codec import training

    case = train("PVeRA")
    training.parametrize(case.tuned, num_basis=6, bits=4)
    assert {p.numel() for p in case.tuned.parameters() if p.requires_grad} == {6}
    training.save(case.tuned, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "out")
    assert torch.equal(case.logits(load_again(case, tmp_path / "out")), case.logits(case.tuned))
