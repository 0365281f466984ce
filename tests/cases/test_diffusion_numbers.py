"""Cases 02, 24: factors in 8-bit floats, and alphas of every dtype that trainers write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import deltas, read, write
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_scalar, to_float32, to_scalar

FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
KOHYA = ("lora_unet_double_blocks_0_img_attn_proj", ".lora_down.weight", ".lora_up.weight")
PRESENT = ("transformer.transformer_blocks.0.attn.to_q", ".lora_A.weight", ".lora_B.weight")
DOWN_UP = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_linear_layer",
    ".down.weight",
    ".up.weight",
)


def pair(spelling: tuple[str, str, str], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    name, down, up = spelling
    make = torch.Generator().manual_seed(0)
    down_values, up_values = torch.randn(4, 24, generator=make) * 0.1, torch.randn(16, 4, generator=make) * 0.1
    return {name + down: down_values.to(dtype), name + up: up_values.to(dtype)}


@pytest.mark.parametrize("name", FLOAT8)
def test_every_value_of_an_8_bit_float_is_torch_s(name: str) -> None:
    patterns = torch.arange(256, dtype=torch.uint8)
    right = patterns.view(FLOAT8[name]).float().numpy()
    np.testing.assert_array_equal(to_float32(RawTensor(name, (256,), bytes(range(256)))), right)
    for pattern, value in enumerate(right):
        if np.isfinite(value) and value != 0:
            assert from_scalar(float(value), name, ()).data == bytes([pattern])


@pytest.mark.parametrize("dtype", FLOAT8.values())
@pytest.mark.parametrize("spelling", [KOHYA, PRESENT, DOWN_UP])
def test_factors_in_8_bit_floats(spelling: tuple[str, str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    """They are read exactly. Written again they are float16, which has all their values; alphas keep their dtype."""
    state = pair(spelling, dtype) | {spelling[0] + ".alpha": torch.tensor(6.0).to(dtype)}
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    down, up = (state[spelling[0] + end].double().numpy() for end in spelling[1:])
    np.testing.assert_allclose(deltas(adapter)[0].dense(), 1.5 * up @ down, rtol=1e-15)
    write(adapter, tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert again[key].dtype == (dtype if key.endswith(".alpha") else torch.float16)
        assert torch.equal(again[key].float(), value.float())

    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.01)
    for wanted, right in ((None, torch.float32), ("f16", torch.float16)):
        nola_codec.decode(tmp_path / "a.nola", tmp_path / f"{wanted}.safetensors", dtype=wanted)
        decoded = load_file(tmp_path / f"{wanted}.safetensors")
        assert {decoded[spelling[0] + end].dtype for end in spelling[1:]} == {right}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("spelling", [KOHYA, PRESENT, DOWN_UP])
def test_integer_alphas_are_numbers_and_come_back(
    spelling: tuple[str, str, str], dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    state = pair(spelling) | {spelling[0] + ".alpha": torch.full(shape, 16, dtype=dtype)}
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert [m.scaling for m in adapter.modules] == [4.0]
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.05)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")[spelling[0] + ".alpha"]
    assert again.dtype == dtype
    assert torch.equal(again, state[spelling[0] + ".alpha"])


def test_alphas_of_several_dtypes_in_one_file(tmp_path: Path) -> None:
    state = {}
    alphas = (torch.tensor(2), torch.tensor(2), torch.tensor(3), torch.tensor(2.0), torch.tensor(4.0).bfloat16())
    for number, alpha in enumerate(alphas):
        spelling = (f"{KOHYA[0]}_{number}", *KOHYA[1:])
        state |= pair(spelling) | {f"{KOHYA[0]}_{number}.alpha": alpha.clone()}
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert [m.scaling for m in adapter.modules] == [float(alpha) / 4 for alpha in alphas]
    write(adapter, tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")
    assert all(again[k].dtype == v.dtype and torch.equal(again[k], v) for k, v in state.items())


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), torch.tensor(True), torch.tensor(1 << 60), torch.tensor(1j)])
def test_what_is_no_alpha_is_refused(bad: torch.Tensor, tmp_path: Path) -> None:
    save_file(pair(KOHYA) | {f"{KOHYA[0]}.alpha": bad}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="alpha") as caught:
        read(tmp_path / "a.safetensors")
    assert caught.value.code in ("bad-alpha", "overflow")


@pytest.mark.parametrize(
    ("value", "dtype"), [(1.5, "I64"), (300.0, "U8"), (-1.0, "U16"), (0.3, "F8_E4M3"), (1.0, "BOOL")]
)
def test_a_number_that_a_dtype_does_not_have_is_refused(value: float, dtype: str) -> None:
    with pytest.raises(AdapterError):
        from_scalar(value, dtype, ())


def test_integers_up_to_53_bits_are_exact() -> None:
    for value in (0, -3, (1 << 53) - 1):
        assert to_scalar(from_scalar(float(value), "I64", (1,))) == value
