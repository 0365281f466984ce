"""VeRA and RandLoRA as PEFT saves them: read with their matrices as draws, refused for a reason, written back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nola_codec.adapters import dialect_of, read, write
from nola_codec.adapters.dialects import randlora, vera
from nola_codec.adapters.dialects.peft_draws import find_draws
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.rules import apply_rules
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng.draws import draw_tensor
from nola_codec.stores.dtypes import from_float32, to_float32
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.stores.safetensors_writer import dump

M = "base_model.model.layers.0.q"
VERA: dict[str, Any] = {"peft_type": "VERA", "r": 2, "projection_prng_key": 3}
RANDLORA: dict[str, Any] = {"peft_type": "RANDLORA", "r": 2, "randlora_alpha": 4, "projection_prng_key": 3}
Save = Callable[..., Path]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT of Transformers
    pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning"),  # PEFT, of seeds
]


def floats(*shape: int, dtype: str = "F32") -> RawTensor:
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return from_float32(values, dtype)


GOOD = {
    "VERA": (VERA, {f"{M}.vera_lambda_b": floats(5), f"{M}.vera_lambda_d": floats(2)}),
    "RANDLORA": (RANDLORA, {f"{M}.randlora_lambda": floats(2, 3), f"{M}.randlora_gamma": floats(3, 5)}),
}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(method, dtype, **config)`: a trained adapter of a tiny model as PEFT writes it."""

    def make(method: str = "VERA", dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        from peft import RandLoraConfig, VeraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        config = LlamaConfig(vocab_size=40, hidden_size=24, intermediate_size=56, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
        targets = ["q_proj", "v_proj", "down_proj", "up_proj"]
        kind = {"VERA": VeraConfig, "RANDLORA": RandLoraConfig}[method]
        wanted = kind(**{"r": 5, "target_modules": targets, "projection_prng_key": 11, **options})
        model = get_peft_model(LlamaForCausalLM(config).to(dtype), wanted)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * 0.3)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("method", "options"),
    [("VERA", {}), ("RANDLORA", {}), ("RANDLORA", {"sparse": True}), ("RANDLORA", {"very_sparse": True}),
     ("VERA", {"projection_prng_key": 2**40 + 5}), ("VERA", {"r": 16}), ("RANDLORA", {"r": 24})],
)  # fmt: skip
def test_the_matrices_of_peft_are_found(save: Save, method: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    path = save(method, dtype, **options)
    adapter = read(path)
    kept = [key for key in adapter.raw if key not in adapter.draws]
    assert (kept, adapter.notes) == ([], ())
    assert len(adapter.draws) == (2 if method == "VERA" else 2 + 2 * 8)
    assert len(adapter.vectors) == 16
    with SafetensorsFile(path / "adapter_model.safetensors") as file:
        for key, draw in adapter.draws.items():
            assert draw_tensor(draw) == adapter.raw[key] == file.read(key)
    write(with_exact_diagonals(adapter), path.with_name("back"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = (p / name for p in (path.with_name("back"), path))
        if name.endswith(".json"):
            assert json.loads(ours.read_bytes()) == json.loads(theirs.read_bytes())
        else:
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("method", ["VERA", "RANDLORA"])
def test_matrices_that_were_not_saved_stay_away(save: Save, method: str) -> None:
    adapter = read(save(method, save_projection=False))
    assert (adapter.raw, adapter.draws, adapter.notes) == ({}, {}, ())
    assert len(adapter.vectors) == 16
    assert all(vector.gain > 0 for vector in adapter.vectors)
    assert dialect_of(adapter).combined_deltas(adapter) == ()


@pytest.mark.parametrize("method", ["VERA", "RANDLORA"])
def test_matrices_of_another_seed_are_carried_and_said_so(save: Save, method: str) -> None:
    path = save(method)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    (path / "adapter_config.json").write_text(json.dumps({**config, "projection_prng_key": 12}), encoding="utf-8")
    adapter = read(path)
    assert adapter.draws == {}
    assert len(adapter.raw) == (2 if method == "VERA" else 18)
    assert len(adapter.notes) == 1
    assert "not what PEFT draws from projection_prng_key 12" in adapter.notes[0]


def with_exact_diagonals(adapter: Adapter) -> Adapter:
    return apply_rules(adapter, EncodeOptions())[0]


def find_vera(a: RawTensor, b: RawTensor) -> tuple[Draw | None, Draw | None]:
    return find_draws(vera.VERA.draw_rule(VERA, a.shape, b.shape), VERA["projection_prng_key"], a, b)


def test_one_bit_off_is_carried() -> None:
    bounds = [float(np.float32(np.sqrt(6 / n))) for n in (9, 2)]
    a, b = (
        draw_tensor(Draw(shape, ("F32",), "uniform", 24, 3, start, 0, -bound, bound))
        for shape, start, bound in zip(((2, 9), (5, 2)), (0, 18), bounds, strict=True)
    )
    assert None not in find_vera(a, b)
    data = bytearray(b.data)
    data[0] ^= 1
    found = find_vera(a, replace(b, data=bytes(data)))
    assert found[0] is not None
    assert found[1] is None


@pytest.mark.parametrize("method", ["uniform", "uniform-fused"])
@pytest.mark.parametrize(("digits", "dtype"), [(8, "BF16"), (11, "F16"), (24, "BF16"), (24, "F16")])
def test_draws_of_other_processors_and_versions_are_found(method: Any, digits: int, dtype: str) -> None:
    """RandLoRA's, as PyTorch drew 16 bits before, and as it does without fused multiply-add."""
    bound = np.float32(np.sqrt(3.0) * (np.sqrt(2 / 6) / np.sqrt([40, 8])))
    if digits < 24:
        bound = to_float32(from_float32(bound, dtype))
    first, second = map(float, bound)
    a, b = map(draw_tensor, (
        Draw((8, 1, 40), (dtype, "F32"), method, digits, 3, 0, 0, -first, first, 0.08984375),
        Draw((60, 5, 8), (dtype, "F32"), method, digits, 3, 320, 1, -second, second, 0.203125),
    ))  # fmt: skip
    found = find_draws(randlora.RANDLORA.draw_rule(RANDLORA | {"r": 8}, a.shape, b.shape), 3, a, b)
    assert [None if draw is None else draw_tensor(draw) for draw in found] == [a, b]


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_diagonals_of_other_dtypes_come_back(dtype: str, tmp_path: Path) -> None:
    config, tensors = GOOD["VERA"]
    tensors = {key: from_float32(to_float32(t), dtype) for key, t in tensors.items()}
    adapter = read(dump(tensors), config=config)
    assert len(adapter.vectors) == (0 if dtype == "F64" else 2)
    write(with_exact_diagonals(adapter), tmp_path / "out")
    with SafetensorsFile(tmp_path / "out" / "adapter_model.safetensors") as file:
        assert {key: file.read(key) for key in file.tensors} == tensors


def test_biases_heads_and_embeddings_are_carried() -> None:
    extra = {"base_model.model.layers.0.q.bias": floats(5), "base_model.model.head.weight": floats(2, 2),
             "base_model.model.embed_tokens.weight": floats(3, 2)}  # fmt: skip
    for config, tensors in GOOD.values():
        adapter = read(dump(tensors | extra), config={**config, "bias": "all", "modules_to_save": ["head"]})
        assert set(adapter.raw) == set(extra)
        assert dialect_of(adapter).model_tensors(adapter) == extra


REFUSED: dict[str, tuple[str, str, Callable[[dict[str, Any], dict[str, RawTensor]], Any], str]] = {
    "no diagonals": ("VERA", "empty-adapter", lambda c, t: t.clear(), "no diagonals of VeRA"),
    "b missing": ("VERA", "missing-partner", lambda c, t: t.pop(f"{M}.vera_lambda_b"), "vera_lambda_b is missing"),
    "gamma missing": ("RANDLORA", "missing-partner", lambda c, t: t.pop(f"{M}.randlora_gamma"), "gamma is missing"),
    "another rank": ("VERA", "rank-mismatch", lambda c, t: c.update(r=3), "expected 3 by adapter_config"),
    "another rank of lambda": ("RANDLORA", "rank-mismatch", lambda c, t: c.update(r=3), "expected 3"),
    "rank 0": ("VERA", "bad-config", lambda c, t: c.update(r=0), "r: expected"),
    "no rank": ("VERA", "bad-config", lambda c, t: c.pop("r"), "r: expected"),
    "a key of text": ("VERA", "bad-config", lambda c, t: c.update(projection_prng_key="1"), "projection_prng_key"),
    "a key over 64 bits": ("VERA", "bad-config", lambda c, t: c.update(projection_prng_key=1 << 64), "64 bits"),
    "alpha of text": ("RANDLORA", "bad-config", lambda c, t: c.update(randlora_alpha="a"), "randlora_alpha"),
    "b a matrix": ("VERA", "bad-shape", lambda c, t: t.update({f"{M}.vera_lambda_b": floats(5, 1)}), "1 dimensions"),
    "b of nothing": ("VERA", "ungathered", lambda c, t: t.update({f"{M}.vera_lambda_b": floats(0)}), "are empty"),
    "bases that do not fit": (
        "RANDLORA", "bad-shape", lambda c, t: t.update({f"{M}.randlora_gamma": floats(2, 5)}), "(r, N) and (N, min)"),
    "too few bases": (
        "RANDLORA", "bad-shape", lambda c, t: t.update({f"{M}.randlora_gamma": floats(3, 7)}), "rounded up"),
    "matrices too small": (
        "VERA", "bad-shape",
        lambda c, t: t.update({"base_model.vera_A": floats(2, 4), "base_model.vera_B": floats(4, 2)}), "do not fit"),
    "integers": (
        "VERA", "not-float", lambda c, t: t.update({f"{M}.vera_lambda_b": RawTensor("I32", (5,), bytes(20))}), "F32"),
    "not finite": (
        "VERA", "not-finite",
        lambda c, t: t.update({f"{M}.vera_lambda_d": from_float32(np.array([np.nan, 1], np.float32), "F32")}), "NaN"),
    "an unknown key": ("VERA", "unknown-key", lambda c, t: t.update({f"{M}.lora_A.weight": floats(2, 2)}), "lora_A"),
    "a bias nobody trains": ("VERA", "unknown-key", lambda c, t: t.update({f"{M}.bias": floats(2)}), "q.bias"),
    "RandLoRA's keys": (
        "VERA", "foreign-dialect", lambda c, t: (t.clear(), t.update(GOOD["RANDLORA"][1])), "says VeRA, and the keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused(case: str) -> None:
    method, code, alter, words = REFUSED[case]
    config, tensors = copy.deepcopy(GOOD[method])
    assert read(dump(tensors), config=config).vectors
    alter(config, tensors)
    with pytest.raises(AdapterError) as caught:
        read(dump(tensors), config=config)
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)


def test_unknown_tensors_are_carried_when_asked_for() -> None:
    config, tensors = GOOD["VERA"]
    extra = {f"{M}.lora_A.weight": floats(2, 2)}
    assert read(dump(tensors | extra), config=config, carry_unknown=True).raw == extra


def test_gains_are_what_errors_do_to_the_delta(save: Save) -> None:
    """On average over random errors of a diagonal, |error of the delta| = gain * |error|, within a few percent."""
    rng = np.random.default_rng(0)
    for method in ("VERA", "RANDLORA"):
        adapter = read(save(method, r=16))
        for composite in dialect_of(adapter).combined_deltas(adapter):
            values = {v.name: v.values.astype(np.float64) for v in adapter.vectors if v.name in composite.parts}
            whole = composite.combine(values)
            for vector in (v for v in adapter.vectors if v.name in composite.parts):
                assert vector.gain * np.linalg.norm(vector.values) == pytest.approx(np.linalg.norm(whole), rel=0.2)
                squares = []
                for _ in range(20):
                    error = rng.standard_normal(vector.values.shape)
                    moved = composite.combine({**values, vector.name: values[vector.name] + error}) - whole
                    squares.append(np.square(moved).sum() / np.square(error).sum())
                assert np.sqrt(np.mean(squares)) == pytest.approx(vector.gain, rel=0.25)
