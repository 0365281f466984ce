"""`decode --trim` drops components that are zero: the same deltas, smaller ranks, and scalings that stay exact."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import nola_codec
from nola_codec.adapters import deltas, read, write
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.trimming import trim
from nola_codec.cli import main
from nola_codec.errors import AdapterError, NolaError
from nola_codec.model.adapter import Adapter, LoraModule

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers own, of what PEFT uses

TARGETS = ["q_proj", "o_proj", "down_proj"]
IDS = torch.tensor([[1, 5, 9, 33]])


def make_module(
    name: str, used: int, *, rank: int = 8, scaling: float = 2.0, out: int = 6, into: int = 5
) -> LoraModule:
    """A module of which only some components, not the first ones, are not zero."""
    rng = np.random.default_rng([used, rank, out])
    a, b = rng.standard_normal((rank, into), np.float32), rng.standard_normal((out, rank), np.float32)
    gone = rng.permutation(rank)[used:]
    a[gone], b[:, gone] = 0, 0
    return LoraModule(name, a, b, a.shape, b.shape, scaling)


def dense(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    return {delta.name: delta.dense() for delta in deltas(adapter)}


def scalings(adapter: Adapter) -> dict[str, float]:
    return {module.name: module.scaling for module in adapter.modules}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_adapter(folder: Path, **options: Any) -> Path:
    """Save a LoRA of PEFT whose modules differ in their strongest components, so that a small file drops many."""
    adapted = get_peft_model(model(), LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                strength = torch.logspace(0, -3 if "down_proj" in name else -1, 8)
                shape = (-1, 1) if "lora_A" in name else (1, -1)
                weight.copy_(torch.randn(weight.shape, generator=generator) * strength.reshape(shape))
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha / r", "rslora"])
def test_peft_loads_what_was_trimmed(use_rslora: bool, tmp_path: Path) -> None:
    """PEFT's logits are those of the adapter that was not trimmed, and no key is missing or left over."""
    source = save_adapter(tmp_path / "lora", use_rslora=use_rslora)
    nola_codec.encode(source, tmp_path / "a.nola", size=900)
    notes: list[str] = []
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "whole", note=notes.append)
    assert notes == []
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "trimmed", trim=True, note=notes.append)
    assert " of 24 components" in notes[0]
    config = json.loads((tmp_path / "trimmed" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    found = {}
    for name in ("whole", "trimmed"):
        loaded = PeftModel.from_pretrained(model(), tmp_path / name)
        found[name] = loaded(IDS).logits
        layer = loaded.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
        assert layer.scaling["default"] == (16 / math.sqrt(8) if use_rslora else 2.0)
    assert not torch.equal(found["whole"], model()(IDS).logits)
    torch.testing.assert_close(found["trimmed"], found["whole"], rtol=0, atol=1e-6)
    state = load_file(tmp_path / "trimmed" / "adapter_model.safetensors")
    assert all(a.any(dim=1).all() for key, a in state.items() if "lora_A" in key)
    before, after = (dense(read(tmp_path / name)) for name in ("whole", "trimmed"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"
LANGUAGE = "model.layers.0.self_attn."
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}


def image_model(scaling: float = 2.0) -> list[LoraModule]:
    return [make_module(PATH + leaf, used, scaling=scaling) for leaf, used in (("q", 5), ("k", 3), ("v", 8))]


def language_model(scaling: float = 2.0) -> list[LoraModule]:
    return [
        make_module(LANGUAGE + f"{leaf}_proj", used, scaling=scaling)
        for leaf, used in zip("qkv", (5, 3, 1), strict=True)
    ]


CASES: dict[str, tuple[str, list[LoraModule], list[int]]] = {
    "peft": ("peft", language_model(), [3, 5, 1]),
    "kohya": ("kohya", image_model(), [3, 5, 8]),
    "diffusers, metadata": ("diffusers", image_model(), [3, 5, 8]),
    "diffusers, alpha = r": ("diffusers", image_model(1.0), [3, 5, 8]),
    "diffusers before 0.22": ("diffusers-old", image_model(), [3, 5, 8]),
    # One rank for all modules:
    "mlx": ("mlx", language_model(), [5, 5, 5]),
    "gguf": ("gguf", language_model(), [5, 5, 5]),
    "loralib": ("loralib", language_model(), [5, 5, 5]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_dialect_states_the_new_ranks(case: str, tmp_path: Path) -> None:
    """What is written and read again has the same deltas to the bit, and the ranks that its dialect allows."""
    dialect, modules, ranks = CASES[case]
    plain = Adapter("diffusers" if "unet" in modules[0].name else "loralib", tuple(modules))
    adapter = plain if plain.dialect == dialect else convert(plain, dialect, LLAMA)
    before = read(write(adapter, tmp_path / "before"))
    trimmed, count = trim(before)
    after = read(write(trimmed, tmp_path / "after"))
    assert [m.rank for m in after.modules] == ranks
    assert count.dropped == 24 - sum(ranks)
    assert scalings(after) == scalings(before)
    for name, delta in dense(before).items():
        assert np.array_equal(dense(after)[name], delta), name


def test_mlx_and_gguf_state_one_rank(tmp_path: Path) -> None:
    """The configuration of MLX and the alpha of GGUF are those of the common rank."""
    plain = Adapter("loralib", tuple(language_model()))
    write(trim(convert(plain, "mlx"))[0], tmp_path / "mlx")
    parameters = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["lora_parameters"]
    assert (parameters["rank"], parameters["scale"]) == (5, 2.0)
    gguf = trim(convert(plain, "gguf", LLAMA))[0]
    assert gguf.config is not None
    assert gguf.config["gguf"]["adapter.lora.alpha"] == ["FLOAT32", 10.0]


def test_a_module_of_zeros_keeps_one_component(tmp_path: Path) -> None:
    """PEFT refuses rank 0, so one zero component stays in a module that changes nothing."""
    modules = [make_module(LANGUAGE + "q_proj", 0), make_module(LANGUAGE + "k_proj", 4)]
    trimmed, count = trim(convert(Adapter("loralib", tuple(modules)), "peft"))
    assert {m.name.rpartition(".")[2]: m.rank for m in trimmed.modules} == {"q_proj": 1, "k_proj": 4}
    assert (count.found, count.dropped) == (16, 11)
    assert LoraConfig.from_pretrained(write(trimmed, tmp_path / "peft")).r in (1, 4)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha / r", "rslora"])
@pytest.mark.parametrize("alpha", [16, 0.1, 1 / 3, 7])
@pytest.mark.parametrize("rank", [7, 8, 12])
def test_scalings_of_peft_stay_exact(use_rslora: bool, alpha: float, rank: int) -> None:
    """No alpha gives some scalings at some ranks; then zero components stay, or ``use_rslora`` is cleared."""
    scaling = alpha / math.sqrt(rank) if use_rslora else alpha / rank
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": use_rslora, "target_modules": ["x"]}
    for used in range(1, rank):
        module = make_module("base_model.model.x", used, rank=rank, scaling=scaling)
        trimmed, _ = trim(Adapter("peft", (module,), {}, config))
        assert trimmed.config is not None
        options = LoraConfig(**{key: value for key, value in trimmed.config.items() if key != "peft_type"})
        layer = get_peft_model(nn.ModuleDict({"x": nn.Linear(5, 6)}), options).base_model.model["x"]
        assert layer.scaling["default"] == scaling
        assert layer.r["default"] == trimmed.modules[0].rank <= rank


def test_alphas_in_half_precision_stay_exact() -> None:
    """A dtype that has no exact alpha for a rank gives way to float32, or a zero component stays."""
    module = make_module(KOHYA + "q", 5, rank=7, scaling=1 / 7)
    alpha = {"dtype": "BF16", "shape": [], "value": 1.0}
    trimmed, count = trim(Adapter("kohya", (module,), {}, {"alpha": alpha}))
    (found,) = trimmed.modules
    assert trimmed.config is not None
    stated = trimmed.config["alpha"]["value"]
    assert stated / found.rank == 1 / 7
    assert np.float32(stated) == stated
    assert count.found - count.dropped == found.rank


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adapter("delta", (make_module("model.layers.0.mlp.down_proj.weight", 3),)),
        lambda: Adapter("cloneofsimo", (make_module("unet:0", 3),)),
    ],
    ids=["dense changes", "numbered modules"],
)
def test_what_cannot_be_trimmed_is_refused(make: Callable[[], Adapter]) -> None:
    with pytest.raises(AdapterError, match="rank") as caught:
        trim(make())
    assert caught.value.code == "not-expressible"


def test_the_command_says_what_was_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line prints the count, and what a lone file cannot hold; a merge takes no --trim."""
    nola_codec.encode(save_adapter(tmp_path / "lora"), tmp_path / "a.nola", size=900)
    file = str(tmp_path / "a.nola")
    with pytest.raises(SystemExit) as ended:
        main(["decode", file, "-o", str(tmp_path / "out.safetensors"), "--trim"])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert "components" in said
    assert "the scaling alpha / r (2) is multiplied into lora_B" in said
    with pytest.raises(SystemExit) as ended:
        main(["decode", file, "-o", str(tmp_path / "m"), "--trim", "--base", str(tmp_path)])
    assert ended.value.code == 2
    with pytest.raises(NolaError, match="trim is for adapters"):
        nola_codec.decode(file, tmp_path / "m", base=tmp_path, trim=True)
