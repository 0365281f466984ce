"""Files in live models of PEFT: the bits of the decoded directory, beside other adapters, and swapped in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.utils.hotswap import prepare_model_for_compiled_hotswap

import nola_codec
from nola_codec.errors import AdapterError
from nola_codec.integrations import peft as nola_peft

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Transformers and PEFT warn of each other's old names
    pytest.mark.usefixtures("one_thread"),
]
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}
"""A form that is coded at once, whatever it loses."""


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case(encode=RATE)


def decoded(case: Any, file: bytes, folder: Path) -> torch.Tensor:
    """The logits with the directory that `decode` writes."""
    nola_codec.decode(file, folder)
    return case.logits(PeftModel.from_pretrained(case.fresh(), folder))


def filled(model: Any) -> Any:
    """Give each trained parameter random numbers."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def encoded(model: Any) -> bytes:
    return nola_codec.encode_bytes(model, **RATE)[0]


def first_factor(model: Any) -> torch.nn.Parameter:
    return next(parameter for name, parameter in model.named_parameters() if ".lora_A." in name)


KINDS: dict[str, tuple[str, Any]] = {
    "patterns": ("llama", LoraConfig(r=4, lora_alpha=9, use_rslora=True, target_modules=["q_proj", "up_proj"],
                                     rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3})),
    "saved": ("llama", LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")),
    "dora": ("llama", LoraConfig(r=2, target_modules=["o_proj"], use_dora=True)),
    "embedding": ("llama", LoraConfig(r=2, target_modules=["embed_tokens", "k_proj"])),
    "transposed": ("gpt2", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only")),
    "vera": ("llama", VeraConfig(r=2, target_modules=["q_proj", "o_proj"])),  # all layers share the frozen factors
    "loha": ("llama", LoHaConfig(r=2, alpha=3, target_modules=["v_proj"])),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_the_decoded_directory(kind: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    family, config = KINDS[kind]
    case = make_case(family, ("c_attn",) if family == "gpt2" else ("q_proj",), encode=RATE)
    file = encoded(filled(get_peft_model(case.fresh(), copy.deepcopy(config))))
    wanted = decoded(case, file, tmp_path / "decoded")
    base = case.fresh()
    before = case.logits(base)
    model = nola_peft.load(base, file)
    peer = PeftModel.from_pretrained(case.fresh(), tmp_path / "decoded")
    assert type(model) is type(peer)
    for (name, own), (peers, other) in zip(model.named_parameters(), peer.named_parameters(), strict=True):
        assert (name, own.dtype, own.requires_grad) == (peers, other.dtype, other.requires_grad)
    assert torch.equal(case.logits(model), wanted)
    assert not torch.equal(wanted, before)
    if kind != "transposed":  # PEFT leaves the trained biases in
        with model.disable_adapter():
            assert torch.equal(case.logits(model), before)


def test_a_base_in_bfloat16(case: Any, tmp_path: Path) -> None:
    nola_codec.decode(case.encoded, tmp_path / "decoded")
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        wanted = PeftModel.from_pretrained(
            case.fresh().bfloat16(), tmp_path / "decoded", autocast_adapter_dtype=autocast
        )
        model = nola_peft.load(case.fresh().bfloat16(), case.encoded, autocast_adapter_dtype=autocast)
        assert torch.equal(case.logits(model), case.logits(wanted))
        assert model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.dtype == dtype


def test_adapters_side_by_side(case: Any, tmp_path: Path) -> None:
    model = nola_peft.load(case.fresh(), case.encoded, adapter_name="a")
    other = encoded(filled(get_peft_model(case.fresh(), LoraConfig(r=3, lora_alpha=4, target_modules=["k_proj"]))))
    assert nola_peft.load(model, other, adapter_name="b") is model
    assert model.active_adapters == ["a"]
    first = decoded(case, case.encoded, tmp_path / "a")
    assert torch.equal(case.logits(model), first)
    model.set_adapter("b")
    assert torch.equal(case.logits(model), decoded(case, other, tmp_path / "b"))
    with pytest.raises(AdapterError, match=r"has an adapter 'b'; replace=True replaces it") as caught:
        nola_peft.load(model, case.encoded, adapter_name="b")
    assert caught.value.code == "adapter-exists"
    for name, file in (("a", case.encoded), ("b", other)):
        saved = tmp_path / f"{name}.nola"
        nola_peft.save(model, saved, adapter_name=name, **RATE)
        assert len(nola_codec.load(saved).names()) == len(nola_codec.load(file).names())


def test_a_swap_keeps_the_live_parameters(case: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.5)
    smaller = encoded(filled(get_peft_model(case.fresh(), config)))
    model = nola_peft.load(case.fresh(), case.encoded, is_trainable=True)
    live = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    optimizer = torch.optim.SGD(live.values(), lr=0.1)
    model.train()
    assert nola_peft.load(model, smaller, replace=True) is model
    assert model.training
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in live.items())
    wanted = decoded(case, smaller, tmp_path / "smaller")
    found = case.logits(model)
    assert torch.allclose(found, wanted, atol=1e-6)  # more zeros in a sum may round otherwise
    assert model.peft_config["default"].lora_dropout == 0
    assert nola_codec.compare(model, smaller).nmse < 1e-12  # the live configuration says the scalings of the new file
    before = {name: parameter.detach().clone() for name, parameter in live.items()}
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    assert any(not torch.equal(before[name], parameter) for name, parameter in live.items())
    nola_peft.load(model, case.encoded, replace=True)
    assert torch.equal(case.logits(model), decoded(case, case.encoded, tmp_path / "again"))
    model.set_adapter("default")
    model.base_model.model.model.layers[0].self_attn.q_proj.set_scale("default", 0.5)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 1.0  # alpha / r is 2


def test_a_swap_after_peft_prepared_the_model_for_compilation(case: Any, tmp_path: Path) -> None:
    model = nola_peft.load(case.fresh(), case.encoded)
    prepare_model_for_compiled_hotswap(model, target_rank=6, config=model.peft_config)
    scaling = model.base_model.model.model.layers[0].mlp.down_proj.scaling["default"]
    config = LoraConfig(r=5, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"])
    other = encoded(filled(get_peft_model(case.fresh(), config)))
    nola_peft.load(model, other, replace=True)
    assert model.base_model.model.model.layers[0].mlp.down_proj.scaling["default"] is scaling
    assert float(scaling) == 1.0
    assert torch.allclose(case.logits(model), decoded(case, other, tmp_path / "other"), atol=1e-6)


def test_what_does_not_fit_in_place_is_made_anew(case: Any, tmp_path: Path) -> None:
    model = nola_peft.load(case.fresh(), case.encoded, adapter_name="a", is_trainable=True)
    nola_peft.load(model, case.encoded, adapter_name="b")
    changes = {"larger": {"r": 9}, "elsewhere": {"target_modules": ["o_proj"]}, "dora": {"use_dora": True}}
    for name, options in changes.items():
        config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **options})
        file = encoded(filled(get_peft_model(case.fresh(), config)))
        nola_peft.load(model, file, adapter_name="b", replace=True)
        assert model.active_adapters == ["a"]
        assert {n for n, p in model.named_parameters() if p.requires_grad and ".a." not in n} == set()
        assert any(p.requires_grad for n, p in model.named_parameters() if ".a." in n)
        model.set_adapter("b")
        assert torch.equal(case.logits(model), decoded(case, file, tmp_path / name))
        model.set_adapter("a")
    model.merge_adapter(["b"])
    with pytest.raises(AdapterError, match=r"call model\.unmerge_adapter\(\) first") as caught:
        nola_peft.load(model, case.encoded, adapter_name="b", replace=True)
    assert caught.value.code == "merged-adapter"


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"], "task_type": "SEQ_CLS"},  # to which PEFT adds names of classifiers each time
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": {"embed_tokens": [1, 3]}},  # tied embeddings share the trained rows
    ],
    ids=str,
)
def test_a_swap_of_the_only_adapter(options: dict[str, Any], make_case: Callable[..., Any], tmp_path: Path) -> None:
    case = make_case(tie="trainable_token_indices" in options, encode=RATE)
    files = []
    for rank in (2, 2, 3):
        config = LoraConfig(r=rank, target_modules=["q_proj"], **options)
        files.append(encoded(filled(get_peft_model(case.fresh(), config))))
    wanted = [decoded(case, file, tmp_path / str(number)) for number, file in enumerate(files)]
    model = nola_peft.load(case.fresh(), files[0])
    before = first_factor(model)
    for number, is_in_place in ((1, True), (0, True), (2, False), (1, True)):  # at last, two ranks fit into three
        nola_peft.load(model, files[number], replace=True)
        assert torch.equal(case.logits(model), wanted[number])
        assert (first_factor(model) is before) == is_in_place
        before = first_factor(model)
        assert model.active_adapters == ["default"]


def test_what_does_not_fit_leaves_the_model_as_it_was(case: Any, make_case: Callable[..., Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(case.model.config.to_dict())
    config.hidden_size, config.head_dim, config.num_hidden_layers = 24, 6, 2
    wider = LlamaForCausalLM(config)
    config = LlamaConfig.from_dict(case.model.config.to_dict())
    config.num_hidden_layers = 3
    deeper = LlamaForCausalLM(config)
    wrapped = nola_peft.load(copy.deepcopy(case.model), case.encoded, adapter_name="good")
    gpt2 = encoded(filled(get_peft_model(make_case("gpt2", ("c_attn",), encode=RATE).model, KINDS["transposed"][1])))
    lacks = r"it lacks 6 tensors that the model needs: \S*layers\.2\.\S*lora_A\.default\.weight, .* and 4 more"
    for model, file, words in (
        (wider, case.encoded, r"size mismatch for \S*lora_A\.default\.weight: .*\[4, 16\].*\[4, 24\]"),
        (deeper, case.encoded, lacks),
        (case.fresh(), gpt2, "not found in the base model"),
        (wrapped, gpt2, "not found in the base model"),
    ):
        names = [name for name, _ in model.named_modules()]
        flags = [parameter.requires_grad for parameter in model.parameters()]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(AdapterError, match=words) as caught:
            nola_peft.load(model, file, adapter_name="default")
        assert caught.value.code == "base-mismatch"
        assert str(caught.value).startswith("(bytes): it does not fit the model: ")
        assert str(caught.value).endswith("model?")
        assert [name for name, _ in model.named_modules()] == names
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert hasattr(model, "peft_config") is (model is wrapped)
    assert list(wrapped.peft_config) == ["good"]


def test_the_model_that_an_adapter_names_is_told(case: Any, make_case: Callable[..., Any]) -> None:
    other = make_case("gpt2", ("c_attn",), encode=RATE).model
    other.config.name_or_path = other.name_or_path = "gpt2/medium"
    model = filled(get_peft_model(other, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)))
    with pytest.raises(AdapterError, match="It names 'gpt2/medium' as its base model; is this that model") as caught:
        nola_peft.load(case.fresh(), encoded(model))
    assert len(str(caught.value)) < 800  # the command line cuts longer ones


def test_a_model_that_is_on_no_device_is_refused(case: Any) -> None:
    with pytest.raises(AdapterError, match="load the weights of the model first") as caught:
        nola_peft.load(case.fresh().to("meta"), case.encoded)
    assert caught.value.code == "no-data"
    mixed = case.fresh()
    mixed.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match=r"nola_codec\.integrations\.transformers\.load") as caught:
        nola_peft.load(mixed, case.encoded)
    assert caught.value.code == "not-peft"


def test_weights_that_accelerate_holds(case: Any, tmp_path: Path) -> None:
    from accelerate import dispatch_model

    wanted = decoded(case, case.encoded, tmp_path / "decoded")
    model = dispatch_model(case.fresh(), {"": "cpu"}, force_hooks=True)
    assert model.hf_device_map == {"": "cpu"}
    found = nola_peft.load(model, case.encoded)
    assert torch.equal(case.logits(found), wanted)
    assert nola_peft.load(found, case.encoded, adapter_name="b") is found


def test_another_dialect_and_another_device(case: Any, tmp_path: Path) -> None:
    nola_codec.decode(case.encoded, tmp_path / "mlx", format="mlx")
    file, _ = nola_codec.encode_bytes(tmp_path / "mlx", nmse=0.01)
    nola_codec.decode(file, tmp_path / "decoded", format="peft", base=case.base)
    wanted = case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / "decoded"))
    for device in ("cpu", "numpy"):
        assert torch.equal(case.logits(nola_peft.load(case.fresh(), file, device=device)), wanted)


def test_a_compiled_model_is_loaded_into_and_saved(case: Any, tmp_path: Path) -> None:
    model = nola_peft.load(case.fresh(), case.encoded)
    compiled = torch.compile(model)
    other = encoded(filled(get_peft_model(case.fresh(), LoraConfig.from_pretrained(case.adapter))))
    assert nola_peft.load(compiled, other, replace=True) is compiled
    assert torch.equal(case.logits(model), decoded(case, other, tmp_path / "other"))
    report = nola_peft.save(compiled, tmp_path / "task.nola", size="2KB")
    assert (tmp_path / "task.nola").stat().st_size == report.bytes <= 2000


@pytest.mark.slow
def test_the_real_adapter_of_smollm2(smollm2_base: Path, examples: Path, tmp_path: Path) -> None:
    """135 million parameters: PEFT and Transformers give the bits of the decoded directory, and save again."""
    from transformers import AutoModelForCausalLM

    from nola_codec.integrations import transformers as nola_transformers

    adapter = examples / "smollm2_e2e"
    nola_codec.encode(adapter, tmp_path / "task.nola", size="50KB")
    nola_codec.decode(tmp_path / "task.nola", tmp_path / "decoded")

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(smollm2_base, dtype=torch.float32)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(input_ids=torch.arange(500, 532)[None]).logits
        return found

    wanted = logits(PeftModel.from_pretrained(fresh(), tmp_path / "decoded"))
    model = nola_peft.load(fresh(), tmp_path / "task.nola")
    assert torch.equal(logits(model), wanted)
    nola_peft.load(model, tmp_path / "task.nola", replace=True)
    assert torch.equal(logits(model), wanted)
    plain = fresh()
    assert not torch.equal(logits(plain), wanted)
    nola_transformers.load(plain, tmp_path / "task.nola")
    assert torch.equal(logits(plain), wanted)
    nola_peft.load(model, tmp_path / "task.nola", adapter_name="again")
    report = nola_peft.save(model, tmp_path / "again.nola", adapter_name="again", size="50KB")
    assert report.bytes <= 50_000
    model = PeftModel.from_pretrained(fresh(), adapter)
    data, _ = nola_codec.encode_bytes(model, size="50KB")  # the live factors are float32, and those on disk bfloat16
    lost = [nola_codec.compare(adapter, file).nmse for file in (data, tmp_path / "task.nola")]
    assert lost[0] == pytest.approx(lost[1], rel=0.02)
