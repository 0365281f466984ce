"""`merge A B` without a base: one adapter whose deltas are the weighted sums of those of several adapters.

PEFT's `add_weighted_adapter(combination_type="cat")` is the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import nola_codec
from nola_codec.adapters import deltas, read, write
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.joining import join_adapters
from nola_codec.adapters.weighted import WeightedAdapter
from nola_codec.cli import main
from nola_codec.errors import AdapterError, NolaError
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.tensors import RawTensor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IDS = torch.tensor([[1, 5, 9, 3]])


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_adapter(folder: Path, seed: int, targets: list[str], **options: Any) -> Path:
    adapted = get_peft_model(model(), LoraConfig(target_modules=targets, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                # Multiples of 1 / 16: every sum below is exact in float64, in any order.
                weight.copy_(torch.randint(-8, 9, weight.shape, generator=generator) / 16)
    adapted.save_pretrained(folder)
    return folder


def dense(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    return {delta.name: delta.dense() for delta in deltas(adapter)}


def cat_logits(folders: list[Path], weights: list[float]) -> Tensor:
    """The logits of PEFT's own "cat"."""
    adapted = PeftModel.from_pretrained(model(), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(folder, adapter_name=str(number))
    names = [str(number) for number in range(len(folders))]
    adapted.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    adapted.set_adapter("sum")
    return adapted(IDS).logits  # type: ignore[no-any-return]


def merged_logits(folders: list[Path], weights: list[float]) -> Tensor:
    """The logits of the model with PEFT's deltas added to its weights.

    For rsLoRA this is the right sum: "cat" computes lora_alpha = r, which leaves a factor of sqrt(r) there.
    """
    plain = model()
    for folder, weight in zip(folders, weights, strict=True):
        for path, layer in PeftModel.from_pretrained(model(), folder).base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                plain.get_submodule(path).weight.data += weight * layer.get_delta_weight("default").data
    return plain(IDS).logits  # type: ignore[no-any-return]


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "equal": ({"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 8}),
    "ranks and scalings": ({"r": 4, "lora_alpha": 8}, {"r": 3, "lora_alpha": 7}),
    "rslora": ({"r": 3, "lora_alpha": 8, "use_rslora": True}, {"r": 4, "lora_alpha": 6}),
}


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.3], [1.0, -0.5]], ids=str)
@pytest.mark.parametrize("case", CONFIGS)
def test_peft_agrees(case: str, weights: list[float], tmp_path: Path) -> None:
    """The sum of two adapters, also with different modules, is what PEFT computes; all keys are matched."""
    first, second = CONFIGS[case]
    targets = ["q_proj", "down_proj"]
    a = save_adapter(tmp_path / "a", 1, targets, **first)
    b = save_adapter(tmp_path / "b", 2, targets, **second)
    sources: list[Any] = list(zip([a, b], weights, strict=True))
    report = nola_codec.merge_adapters(sources, tmp_path / "both")
    assert report.rank == 2 * (first["r"] + second["r"])
    merged = PeftModel.from_pretrained(model(), tmp_path / "both")
    keys = {key.replace(".default", "") for key in merged.state_dict() if "lora_" in key}
    assert keys == set(load_file(tmp_path / "both" / "adapter_model.safetensors"))
    logits = merged(IDS).logits
    torch.testing.assert_close(logits, merged_logits([a, b], weights), rtol=0, atol=1e-5)
    if "use_rslora" not in first:
        torch.testing.assert_close(logits, cat_logits([a, b], weights), rtol=0, atol=1e-5)
    before = [dense(read(folder)) for folder in (a, b)]
    for name, delta in dense(read(tmp_path / "both")).items():
        wanted = sum(w * own[name] for w, own in zip(weights, before, strict=True))
        np.testing.assert_allclose(delta, wanted, rtol=0, atol=1e-6)


def test_equal_scalings_are_exact(tmp_path: Path) -> None:
    """Nothing is rounded where the scalings are equal, or differ by a power of two, and no note says otherwise."""
    a = save_adapter(tmp_path / "a", 1, ["q_proj"], r=4, lora_alpha=8)
    b = save_adapter(tmp_path / "b", 2, ["q_proj", "v_proj"], r=4, lora_alpha=4)
    report = nola_codec.merge_adapters([a, (b, 0.5)], tmp_path / "both")
    assert report.notes == ()
    before_a, before_b, after = (dense(read(folder)) for folder in (a, b, tmp_path / "both"))
    for name, delta in after.items():
        assert np.array_equal(delta, before_a.get(name, 0) + 0.5 * before_b[name])
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 2  # the union, as whole paths
    assert (
        config["base_model_name_or_path"]
        == json.loads((a / "adapter_config.json").read_text())["base_model_name_or_path"]
    )


def test_a_nola_file_is_coded_to_a_target(tmp_path: Path) -> None:
    """`.nola` files and adapters are joined and coded again; the loss is that of the target."""
    a = save_adapter(tmp_path / "a", 1, ["q_proj"], r=4, lora_alpha=8)
    b = save_adapter(tmp_path / "b", 2, ["q_proj"], r=2, lora_alpha=4)
    nola_codec.encode(a, tmp_path / "a.nola", nmse=1e-3)
    report = nola_codec.merge_adapters([tmp_path / "a.nola", b], tmp_path / "both.nola", nmse=2e-3)
    assert any("a.nola had lost a part of its adapter already" in note for note in report.notes), report.notes
    alone = nola_codec.merge_adapters([b, b], tmp_path / "twice.nola", nmse=2e-3)
    assert not any("already" in note for note in alone.notes)
    twice = nola_codec.merge_adapters([tmp_path / "a.nola"], tmp_path / "again.nola")
    assert twice.encoded is not None
    assert twice.encoded.expectation is None
    assert report.encoded is not None
    assert report.encoded.nmse <= 2e-3
    (name, wanted), *_ = dense(read(a)).items()
    wanted = wanted + dense(read(b))[name]
    found = dense(nola_codec.read_adapter(tmp_path / "both.nola"))[name]
    assert np.square(found - wanted).sum() <= 6e-3 * np.square(wanted).sum()


def make_module(
    name: str, seed: int, *, rank: int = 2, scaling: float = 2.0, out: int = 6, into: int = 5
) -> LoraModule:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, into), np.float32), rng.standard_normal((out, rank), np.float32)
    return LoraModule(name, a, b, a.shape, b.shape, scaling)


def make_image_adapter(seed: int, **options: Any) -> Adapter:
    names = [f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{leaf}" for leaf in "qk"]
    return Adapter("diffusers", tuple(make_module(name, seed + n, **options) for n, name in enumerate(names)))


def make_language_adapter(seed: int, **options: Any) -> Adapter:
    names = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qk"]
    return Adapter("loralib", tuple(make_module(name, seed + n, **options) for n, name in enumerate(names)))


LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("make", "dialect"),
    [
        (make_image_adapter, "kohya"), (make_image_adapter, "diffusers"), (make_image_adapter, "diffusers-old"),
        (make_language_adapter, "mlx"), (make_language_adapter, "gguf"), (make_language_adapter, "loralib"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3)], ids=str)
def test_every_dialect_holds_a_sum(
    make: Callable[..., Adapter], dialect: str, weights: tuple[float, float], tmp_path: Path
) -> None:
    """The sum is written and read in each dialect, with other ranks of the second adapter."""
    found = [convert(make(1), dialect, LLAMA), convert(make(7, rank=3), dialect, LLAMA)]
    first, second = (read(write(adapter, tmp_path / str(n))) for n, adapter in enumerate(found))
    joined = join_adapters([WeightedAdapter("a", first, weights[0]), WeightedAdapter("b", second, weights[1])])
    after = dense(read(write(joined, tmp_path / "both")))
    for name, delta in after.items():
        wanted = weights[0] * dense(first)[name] + weights[1] * dense(second)[name]
        np.testing.assert_allclose(delta, wanted, rtol=0, atol=1e-5)
    assert any("which rounds" in note for note in joined.notes) == (weights != (1.0, 1.0))


def test_dialects_are_brought_to_the_first(tmp_path: Path) -> None:
    """A diffusers file is added to a kohya file, in kohya's names; `format` chooses another dialect."""
    kohya, diffusers = convert(make_image_adapter(1), "kohya"), make_image_adapter(7)
    write(kohya, tmp_path / "a.safetensors")
    write(convert(convert(diffusers, "kohya"), "diffusers"), tmp_path / "b.safetensors")
    nola_codec.merge_adapters([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "c.safetensors")
    both = read(tmp_path / "c.safetensors")
    assert both.dialect == "kohya"
    assert [m.rank for m in both.modules] == [4, 4]
    nola_codec.merge_adapters([tmp_path / "a.safetensors"], tmp_path / "d.safetensors", format="diffusers")
    assert read(tmp_path / "d.safetensors").dialect == "diffusers"


def test_dense_changes_are_added() -> None:
    """Full deltas of LyCORIS beside pairs are added element by element."""

    def make(value: float) -> Adapter:
        values = np.full((2, 2), value, np.float32)
        return Adapter("kohya", (), vectors=(VectorTensor("lora_unet_conv_in.diff", values),))

    joined = join_adapters([WeightedAdapter("a", make(1.0)), WeightedAdapter("b", make(3.0), 0.5)])
    assert np.array_equal(joined.vectors[0].values, np.full((2, 2), 2.5))


def with_carried(key: str, value: int) -> Adapter:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "modules_to_save": ["head"]}
    raw = {key: RawTensor("U8", (1,), bytes([value]))}
    return Adapter("peft", (make_module("base_model.model.q", 1),), raw, config)


HEAD = "base_model.model.head.weight"
REFUSED: dict[str, tuple[list[tuple[Adapter, float]], str]] = {
    "other shapes": ([(make_language_adapter(1), 1), (make_language_adapter(1, out=7), 1)], "base-mismatch"),
    "DoRA": ([(with_carried("base_model.model.q.lora_magnitude_vector", 1), 1)], "merge-dora"),
    "two heads": ([(with_carried(HEAD, 1), 1), (with_carried(HEAD, 2), 1)], "merge-conflict"),
    "a weighted head": ([(with_carried(HEAD, 1), 0.5)], "merge-conflict"),
    "no number": ([(make_language_adapter(1), float("nan"))], "merge-weight"),
    "numbered": ([(Adapter("cloneofsimo", (make_module("unet:0", 1),)), 1)] * 2, "not-expressible"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_joined_is_refused(case: str) -> None:
    parts, code = REFUSED[case]
    with pytest.raises(AdapterError) as caught:
        join_adapters([WeightedAdapter(f"file {n}", adapter, weight) for n, (adapter, weight) in enumerate(parts)])
    assert caught.value.code == code


def test_one_head_is_kept_and_other_bases_are_said() -> None:
    """A carried tensor of one adapter stays; base models of other names are told in a note."""
    other = Adapter("peft", (make_module("base_model.model.v", 2),), {}, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    named = [
        Adapter(each.dialect, each.modules, each.raw, {**(each.config or {}), "base_model_name_or_path": base})
        for each, base in ((with_carried(HEAD, 1), "org/one"), (other, "org/two"))
    ]
    joined = join_adapters([WeightedAdapter("a", named[0]), WeightedAdapter("b", named[1])])
    assert set(joined.raw) == {HEAD}
    assert "org/one (a), org/two (b)" in joined.notes[0]


def test_experts_keep_their_parameter(tmp_path: Path) -> None:
    """Factors of experts (`target_parameters`) are joined for each expert; the configuration states the new rank."""
    tensors = {
        "base_model.model.mlp.experts.lora_A.weight": torch.randn(2 * 3, 5),
        "base_model.model.mlp.experts.lora_B.weight": torch.randn(6, 3 * 2),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["mlp.experts.gate_up_proj"]}
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.merge_adapters([tmp_path / "a", (tmp_path / "a", 0.5)], tmp_path / "both")
    before, after = dense(read(tmp_path / "a")), dense(read(tmp_path / "both"))
    assert len(after) == 3
    for name, delta in after.items():
        assert np.array_equal(delta, 1.5 * before[name])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line merges into a file or a directory, and refuses options that do not serve what is written."""
    write(convert(make_language_adapter(1), "peft"), tmp_path / "a")
    write(convert(make_language_adapter(7), "peft"), tmp_path / "b")

    def run(*arguments: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as ended:
            main(["merge", f"{tmp_path / 'a'}:0.7", f"{tmp_path / 'b'}", *arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    status, said = run("-o", str(tmp_path / "both.nola"), "--nmse", "0.01", "-q")
    assert status == 0, said
    assert "NMSE" in said or "nmse" in said
    assert "rounds each number once" in said
    status, said = run("-o", str(tmp_path / "both"), "--format", "mlx")
    assert status == 0, said
    assert run("-o", str(tmp_path / "both2"), "--nmse", "0.01")[0] == 2
    assert run("-o", str(tmp_path / "m"), "--base", str(tmp_path), "--format", "mlx")[0] == 2
    with pytest.raises(NolaError):
        nola_codec.merge_adapters([], tmp_path / "x")
