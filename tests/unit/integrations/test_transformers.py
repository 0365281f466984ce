"""Files in live models of Transformers, and beside the checkpoints of an ordinary training with PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from training_support import tiny

import nola_codec
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.integrations import peft as nola_peft
from nola_codec.integrations import transformers as nola_transformers
from nola_codec.integrations.transformers import NolaCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Transformers and PEFT warn of each other's old names
    pytest.mark.usefixtures("one_thread"),
]
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case(encode=RATE)


def test_the_bits_are_those_of_the_decoded_directory(case: Any, tmp_path: Path) -> None:
    nola_codec.decode(case.encoded, tmp_path / "decoded")
    wanted = case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / "decoded"))
    peer = case.fresh()
    peer.load_adapter(str(tmp_path / "decoded"), adapter_name="a")
    model = case.fresh()
    nola_transformers.load(model, case.encoded, adapter_name="a")
    assert torch.equal(case.logits(model), wanted)
    assert torch.equal(case.logits(peer), wanted)
    assert set(model.state_dict()) == set(peer.state_dict())
    with pytest.raises(AdapterError, match="replace=True replaces it") as caught:
        nola_transformers.load(model, case.encoded, adapter_name="a")
    assert caught.value.code == "adapter-exists"
    config = LoraConfig(r=3, target_modules=["k_proj"], init_lora_weights=False)
    other, _ = nola_codec.encode_bytes(get_peft_model(case.fresh(), config), **RATE)
    nola_codec.decode(other, tmp_path / "other")
    nola_transformers.load(model, other, adapter_name="a", replace=True)
    assert torch.equal(case.logits(model), case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / "other")))
    assert nola_codec.compare(model, other).nmse < 1e-12


@pytest.mark.parametrize("method", ["Vera", "Pvera", "RandLora", "UniLora", "VBLoRA"])
def test_methods_whose_layers_share_tensors_are_sent_to_peft(method: str) -> None:
    """The trial said "Is it the adapter of another model?", which it was not."""
    more = {"num_vectors": 8, "vector_length": 8} if method == "VBLoRA" else {}
    config = getattr(peft, f"{method}Config")(r=2, target_modules=["q_proj", "o_proj"], **more)
    data, _ = nola_codec.encode_bytes(get_peft_model(tiny(), config))
    with pytest.raises(AdapterError, match=r"share tensors.*nola_codec\.integrations\.peft\.load puts it") as caught:
        nola_transformers.load(tiny(), data)
    assert caught.value.code == "not-expressible"
    assert isinstance(nola_peft.load(tiny(), data), PeftModel)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"], "task_type": "SEQ_CLS"},
        {"trainable_token_indices": {"embed_tokens": [1, 3]}},
        {"use_rslora": True, "bias": "lora_only", "rank_pattern": {"k_proj": 3}, "target_modules": ["k_proj"]},
    ],
    ids=str,
)
def test_more_than_factors(options: dict[str, Any], make_case: Callable[..., Any], tmp_path: Path) -> None:
    case = make_case(tie="trainable_token_indices" in options, encode=RATE)
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options})
    wrapped = get_peft_model(case.fresh(), config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    file, _ = nola_codec.encode_bytes(wrapped, **RATE)
    nola_codec.decode(file, tmp_path / "decoded")
    model = case.fresh()
    nola_transformers.load(model, file, adapter_name="a")
    assert torch.equal(case.logits(model), case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / "decoded")))


def test_what_does_not_fit_leaves_the_model_as_it_was(case: Any, make_case: Callable[..., Any]) -> None:
    gpt2 = make_case("gpt2", ("c_attn",), encode=RATE)
    model = gpt2.fresh()
    names = [name for name, _ in model.named_modules()]
    wrapped = get_peft_model(case.fresh(), LoraConfig(r=2, target_modules=["q_proj"]))
    for target, code, words in (
        (model, "base-mismatch", "it does not fit the model: .*not found in the base model"),
        (wrapped, "source-type", r"found PeftModel; nola_codec\.integrations\.peft\.load takes any model"),
        (torch.nn.Linear(2, 2), "source-type", "found Linear"),
    ):
        with pytest.raises(AdapterError, match=words) as caught:
            nola_transformers.load(target, case.encoded)
        assert caught.value.code == code
    assert [name for name, _ in model.named_modules()] == names
    assert not model._hf_peft_config_loaded


def train(folder: Path, callback: NolaCallback, change: Callable[[Any], None] = lambda model: None) -> Any:
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(1)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (16, 12), generator=generator)]
    model = get_peft_model(tiny(), LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"]))
    change(model)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, save_steps=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    return model


def test_files_beside_the_checkpoints_of_a_lora(tmp_path: Path) -> None:
    callback = NolaCallback(tmp_path / "end.nola", size="2KB")
    model = train(tmp_path / "run", callback)
    tokens = torch.arange(12)[None]
    for step in (2, 4):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        found = nola_codec.compare(folder, folder / "task.nola")
        assert (folder / "task.nola").stat().st_size <= 2000
        assert found.same_structure
        assert 0 < found.nmse < 0.2
    assert (tmp_path / "end.nola").read_bytes() == (tmp_path / "run" / "checkpoint-4" / "task.nola").read_bytes()
    assert callback.report.bytes == (tmp_path / "end.nola").stat().st_size
    assert callback.report.nmse == pytest.approx(nola_codec.compare(model, tmp_path / "end.nola").nmse, rel=1e-6)
    from nola_codec.integrations.peft import load

    with torch.no_grad():
        again = load(tiny(), tmp_path / "end.nola")(input_ids=tokens).logits
        assert torch.allclose(again, model.eval()(input_ids=tokens).logits, atol=0.1)


def test_files_of_steps_as_one_chain(tmp_path: Path) -> None:
    callback = NolaCallback(nmse=0.05, every=1, reference="previous")
    train(tmp_path, callback)
    folder = tmp_path / "task_steps"
    files = [folder / f"step-{step}.nola" for step in (1, 2, 3, 4)]
    references = [nola_codec.inspect(file).reference for file in files]
    assert [each and each["name"] for each in references] == [None, "step-1.nola", "step-2.nola", "step-3.nola"]
    assert nola_codec.compare(tmp_path / "checkpoint-4", files[-1]).nmse <= 0.05
    for name in ("task.nola", "checkpoint-4/task.nola"):  # these need no other file
        assert nola_codec.inspect(tmp_path / name).reference is None
    assert files[-1].stat().st_size < (tmp_path / "task.nola").stat().st_size


def test_a_chain_begins_anew_after_a_file_that_is_no_reference(tmp_path: Path) -> None:
    callback = NolaCallback(nmse=0.05, every=4, reference="previous")
    folder = tmp_path / "task_steps"
    folder.mkdir()
    (folder / "step-3.nola").write_bytes(b"left of another training")
    with pytest.warns(UserWarning, match=r"step-4\.nola holds no difference to step-3\.nola: "):
        train(tmp_path, callback)
    assert nola_codec.inspect(folder / "step-4.nola").reference is None
    assert nola_codec.verify(folder / "step-4.nola")


def test_a_training_outlives_what_cannot_be_encoded(tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("layers.0.self_attn.q_proj.lora_A.default.weight"):
                parameter.data[0, 0] = float("nan")

    with (
        pytest.warns(UserWarning, match=r"no task\.nola for step 2: .*q_proj.*NaN"),
        pytest.raises(AdapterError, match="NaN") as caught,
    ):
        train(tmp_path, NolaCallback(**RATE), spoil)
    assert caught.value.code == "not-finite"
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").exists()


def test_wrong_options_are_refused_before_the_training(tmp_path: Path) -> None:
    from nola_codec.training import parametrize

    wrong: list[dict[str, Any]] = [
        {"every": 0}, {"reference": "previous"}, {"every": 2, "reference": "first"},
        {"every": 2, "reference": "previous", "bits": 4},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(EncodeError) as caught:
            NolaCallback(**options)
        assert caught.value.code == "option"
    with pytest.raises(EncodeError, match="nmse") as caught:
        NolaCallback(size="2KB", nmse=0.1)
    assert caught.value.code == "option"
    with pytest.raises(EncodeError, match="size: the file of a NOLA training is exact") as caught:
        train(tmp_path, NolaCallback(size="2KB"), lambda model: parametrize(model, num_basis=8, bits=4))
    assert caught.value.code == "option"
    with pytest.raises(AdapterError, match="no adapter named 'other'"):
        train(tmp_path, NolaCallback(adapter_name="other"))
    assert not list(tmp_path.glob("checkpoint-*"))
    bare = copy.deepcopy(NolaCallback())
    with pytest.raises(AdapterError, match="the model has no adapter"):
        bare.on_train_begin(None, None, None, model=tiny())
