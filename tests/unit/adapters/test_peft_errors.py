"""Adapters that are refused, each for its own reason, and real files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils.other import get_pattern_key

from nola_codec.adapters import read
from nola_codec.adapters.dialects.peft_config import parse_config, with_ranks
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import dump

P = "base_model.model.layers.0.q"
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def tensor(*shape: int, dtype: str = "F32") -> RawTensor:
    size = {"F32": 4, "F16": 2, "I32": 4, "F64": 8}[dtype]
    return RawTensor(dtype, shape, bytes(size * math.prod(shape)))


def filled(value: float, *shape: int, dtype: str = "<f4", name: str = "F32") -> RawTensor:
    return RawTensor(name, shape, np.full(shape, value, dtype).tobytes())


GOOD = {f"{P}.lora_A.weight": tensor(2, 4), f"{P}.lora_B.weight": tensor(3, 2)}
A, B = GOOD
EMB = {f"{P}.lora_embedding_A": tensor(2, 9), f"{P}.lora_embedding_B": tensor(4, 2)}


def without(key: str) -> dict[str, RawTensor]:
    return {k: v for k, v in GOOD.items() if k != key}


TENSOR_CASES: dict[str, tuple[str, dict[str, RawTensor], str]] = {
    "no tensors": ("empty-adapter", {}, "no LoRA factors"),
    "no factors": ("empty-adapter", {"base_model.model.head.weight": tensor(2, 2)}, "no LoRA factors"),
    "B missing": ("missing-partner", without(B), "lora_B.weight is missing"),
    "A missing": ("missing-partner", without(A), "lora_A.weight is missing"),
    "embedding B missing": ("missing-partner", {f"{P}.lora_embedding_A": tensor(2, 9)}, "lora_embedding_B is missing"),
    "ranks differ": ("rank-mismatch", GOOD | {B: tensor(3, 5)}, B),
    "rank not as configured": ("rank-mismatch", {A: tensor(3, 4), B: tensor(3, 3)}, "expected 2 by adapter_config"),
    "one dimension": ("bad-shape", GOOD | {A: tensor(8)}, A),
    "six dimensions": ("bad-shape", GOOD | {A: tensor(2, 1, 1, 1, 1, 1)}, A),
    "embedding dimensions": ("bad-shape", EMB | {f"{P}.lora_embedding_A": tensor(2, 9, 1)}, "lora_embedding_A"),
    "empty dimension": ("bad-shape", GOOD | {A: tensor(2, 0)}, A),
    "conv A, linear B": ("bad-shape", GOOD | {A: tensor(2, 4, 3, 3)}, B),
    "conv B with a kernel": ("bad-shape", {A: tensor(2, 4, 3), B: tensor(3, 2, 3)}, B),
    "grouped convolution": ("grouped-conv", {A: tensor(2, 4, 3), B: tensor(4, 1, 1)}, "2 groups"),
    "NaN": ("not-finite", GOOD | {A: filled(float("nan"), 2, 4)}, A),
    "infinity": ("not-finite", GOOD | {B: filled(float("inf"), 3, 2)}, B),
    "infinite half": ("not-finite", GOOD | {B: filled(float("inf"), 3, 2, dtype="<f2", name="F16")}, B),
    "too large": ("overflow", GOOD | {B: filled(1e300, 3, 2, dtype="<f8", name="F64")}, B),
    "integers": ("not-float", GOOD | {A: tensor(2, 4, dtype="I32")}, A),
    "both layouts": ("mixed-layout", GOOD | EMB, P),
    "unknown key": ("unknown-key", GOOD | {f"{P}.lora_C.weight": tensor(1)}, "lora_C"),
    "weight nobody lists": ("unknown-key", GOOD | {"base_model.model.norm.weight": tensor(1)}, "norm.weight"),
    "bias nobody trains": ("unknown-key", GOOD | {"base_model.model.norm.bias": tensor(1)}, "norm.bias"),
    "bias of no module": ("unknown-key", GOOD | {"base_model.model.k.lora_B.bias": tensor(1)}, "k.lora_B.bias"),
    "magnitude of no module": ("unknown-key", GOOD | {"base_model.model.k.lora_magnitude_vector": tensor(1)}, "k.lora"),
    "adapter name": ("duplicate-key", GOOD | {f"{P}.lora_A.default.weight": tensor(2, 4)}, "means the same tensor as"),
    "kohya": ("foreign-dialect", {"lora_unet_q.lora_down.weight": tensor(2, 4)}, "kohya"),
    "loralib": ("foreign-dialect", {"q.lora_A": tensor(2, 4), "q.lora_B": tensor(3, 2)}, "loralib"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSOR_CASES)
def test_tensors_are_refused(case: str) -> None:
    code, tensors, words = TENSOR_CASES[case]
    with pytest.raises(AdapterError) as e:
        read(dump(tensors), config=CONFIG)
    assert words in str(e.value)
    assert e.value.code == code


def test_carry_unknown_carries() -> None:
    extra = {"base_model.model.norm.weight": tensor(3), f"{P}.lora_C.weight": tensor(1)}
    assert read(dump(GOOD | extra), config=CONFIG, carry_unknown=True).raw == extra


def test_mixed_dtypes_go_to_the_one_that_holds_both() -> None:
    half = RawTensor("F16", (3, 2), bytes(12))
    assert read(dump(GOOD | {B: half}), config=CONFIG).modules[0].dtype == "F32"


def test_a_configuration_of_peft_beside_other_keys() -> None:
    with pytest.raises(AdapterError, match="look like kohya") as e:
        read(dump({"lora_te1_text_model.lora_up.weight": tensor(1, 1)}), config=CONFIG)
    assert e.value.code == "foreign-dialect"


def test_lone_expert_factors_are_refused() -> None:
    with pytest.raises(AdapterError) as e:
        read(dump({f"base_model.model.mlp.experts.{k.rpartition('.q.')[2]}": v for k, v in GOOD.items()}))
    assert e.value.code == "target-parameters"


CONFIG_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "other method": ("not-lora", {"peft_type": "IA3"}),
    "pissa": ("not-a-delta", {"init_lora_weights": "pissa_niter_16"}),
    "olora": ("not-a-delta", {"init_lora_weights": "OLoRA"}),
    "corda": ("not-a-delta", {"init_lora_weights": "corda"}),
    "lora_ga": ("not-a-delta", {"init_lora_weights": "lora_ga"}),
    "loftq": ("not-a-delta", {"init_lora_weights": "loftq"}),
    "layer_replication": ("layer-replication", {"layer_replication": [[0, 4], [2, 5]]}),
    "target_parameters": ("bad-config", {"target_parameters": "experts.down_proj"}),
    "qalora": ("qalora", {"use_qalora": True}),
    "bdlora": ("bdlora", {"use_bdlora": {"nblocks": 2}}),
    "kasa": ("kasa", {"kasa_config": {"beta": 1}}),
    "monteclora": ("monteclora", {"monteclora_config": {"num_samples": 8}}),
    "arrow": ("arrow", {"arrow_config": {"top_k": 3}}),
    "r zero": ("bad-config", {"r": 0}),
    "r text": ("bad-config", {"r": "8"}),
    "r absurd": ("bad-config", {"r": 1 << 40}),
    "alpha text": ("bad-config", {"lora_alpha": None}),
    "alpha NaN": ("bad-config", {"lora_alpha": float("nan")}),
    "flag": ("bad-config", {"use_rslora": "yes"}),
    "pattern list": ("bad-config", {"rank_pattern": [1]}),
    "pattern value": ("bad-config", {"rank_pattern": {"q": 1.5}}),
    "pattern syntax": ("bad-config", {"alpha_pattern": {"(": 1}}),
    "pattern that looks ahead": ("unsafe-pattern", {"rank_pattern": {"(?!a).*x": 1}}),
    "pattern of many states": ("unsafe-pattern", {"rank_pattern": {"((x{0,90}){0,90}){0,90}": 1}}),
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_configurations_are_refused(case: str) -> None:
    code, change = CONFIG_CASES[case]
    with pytest.raises(AdapterError) as e:
        read(dump(GOOD), config=CONFIG | change)
    assert e.value.code == code
    assert "adapter_config.json" in str(e.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone_are_read(init: Any) -> None:
    assert read(dump(GOOD), config=CONFIG | {"init_lora_weights": init}).modules[0].scaling == 2.0


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("adapter_config.json", b"{", "bad-json"),
        ("adapter_config.json", b"[]", "bad-json"),
        ("adapter_config.json", b"\xff", "bad-json"),
        ("adapter_config.json", b"", "empty-file"),
        ("adapter_config.json", b'{"a":' * 100_000, "bad-json"),
        ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "lfs-pointer"),
        ("adapter_model.safetensors", None, "missing-weights"),
        ("adapter_config.json", None, "missing-config"),
    ],
)
def test_directories_are_refused(name: str, content: bytes | None, code: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(dump(GOOD))
    assert read(tmp_path).modules[0].scaling == 2.0
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError) as e:
        read(tmp_path)
    assert e.value.code == code


def test_pickles_models_and_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(AdapterError) as e:
        read(tmp_path)
    assert e.value.code == "pickle"
    (tmp_path / "adapter_model.bin").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match="whole model") as e:
        read(tmp_path)
    assert e.value.code == "missing-weights"
    with pytest.raises(AdapterError) as e:
        read(tmp_path / "nowhere")
    assert e.value.code == "not-found"


PATHS = ["model.layers.0.q", "model.layers.10.q", "q", "xq", "model.layers.0.attn.k", "decoder.model.layers.0.q"]
PATTERNS = ["q", "layers.0.q", "^model.layers.0.q", "(q|k)", ".*k", "x", "model", r"layers\.\d.q"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_patterns_match_as_in_peft(use_rslora: bool) -> None:
    for first in PATTERNS:
        patterns = {first: 3} | {p: 4 + i for i, p in enumerate(PATTERNS) if p != first}
        config = CONFIG | {"rank_pattern": patterns, "alpha_pattern": dict(reversed(patterns.items()))}
        settings = parse_config(config | {"use_rslora": use_rslora}, "c")
        for path in PATHS:
            rank = patterns.get(get_pattern_key(list(patterns), path), 2)
            alpha = config["alpha_pattern"].get(get_pattern_key(list(config["alpha_pattern"]), path), 4)
            assert settings.rank_of(path) == rank
            assert settings.scaling_of(path) == (alpha / math.sqrt(rank) if use_rslora else alpha / rank)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_with_ranks_keeps_every_scaling(use_rslora: bool) -> None:
    rng = np.random.default_rng(0)
    ranks = {path: int(rng.integers(1, 65)) for path in PATHS}
    scalings = {path: float(rng.integers(1, 65)) / int(rng.integers(1, 65)) for path in PATHS}
    config = with_ranks(CONFIG | {"use_rslora": use_rslora, "rank_pattern": {"q": 1}}, ranks, scalings)
    settings = parse_config(config, "c")
    for path in PATHS:
        assert settings.rank_of(path) == ranks[path]
        assert settings.scaling_of(path) == pytest.approx(scalings[path], rel=4e-16)
    assert json.loads(json.dumps(config)) == config


def test_with_ranks_writes_whole_alphas_as_integers() -> None:
    config = with_ranks(CONFIG, {"q": 3, "k": 3, "v": 5}, {"q": 2.0, "k": 2.0, "v": 2.0})
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"^v": 5}, {"^v": 10})
    assert isinstance(config["lora_alpha"], int)


@pytest.mark.parametrize(
    ("name", "modules", "scaling"),
    [
        ("smollm2_e2e", 210, 2.0),
        ("smollm135m_medical", 60, 2.0),
        ("gptneo125m_movies", 24, 2.0),
        ("gpt2_tigrinya", 36, 4.0),
    ],
)
def test_real_adapters(name: str, modules: int, scaling: float, real_adapter: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    adapter = read(real_adapter(name))
    stored = load_file(real_adapter(name) / "adapter_model.safetensors")
    assert (len(adapter.modules), {m.scaling for m in adapter.modules}) == (modules, {scaling})
    assert adapter.parameters == sum(t.numel() for t in stored.values())
    for module in adapter.modules:
        assert torch.equal(torch.from_numpy(module.lora_B), stored[f"{module.name}.lora_B.weight"].float())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_grouped_convolution_as_peft_saves_it(save_adapter: Callable[..., Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2))
    _, directory = save_adapter(model, r=4, target_modules=["0"])
    with pytest.raises(AdapterError, match="2 groups") as e:
        read(directory)
    assert e.value.code == "grouped-conv"
