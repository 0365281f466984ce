"""Sources, outputs and refusals of the library's calls."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_paths import COMPILED
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.merger import merged_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT of Transformers
]


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case()


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def damaged(data: bytes) -> bytes:
    """One bit of the last section turned over."""
    return data[:-12] + bytes([data[-12] ^ 4]) + data[-11:]


def test_every_kind_of_source_and_sink_gives_the_same_file(case: Any, tmp_path: Path) -> None:
    weights = (case.adapter / "adapter_model.safetensors").read_bytes()
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    stream = io.BytesIO()
    assert nola_codec.encode(io.BytesIO(weights), stream, config=config, nmse=0.05).bytes == len(stream.getvalue())
    report = nola_codec.encode(case.adapter, tmp_path / "a.nola", nmse=0.05)
    assert report.source_bytes == len(weights)
    from_bytes, _ = nola_codec.encode_bytes(weights, config=config, nmse=0.05)
    assert (tmp_path / "a.nola").read_bytes() == stream.getvalue() == from_bytes == case.encoded


def test_every_kind_of_file_to_load(case: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nola"
    path.write_bytes(case.encoded)
    states = []
    for source in (path, str(path), case.encoded, io.BytesIO(case.encoded)):
        with nola_codec.load(source, verify=True) as opened:
            states.append(opened.state_dict())
        assert nola_codec.verify(source if not isinstance(source, io.BytesIO) else io.BytesIO(case.encoded))
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_the_arrays_of_numpy_are_the_tensors_of_pytorch(case: Any) -> None:
    with nola_codec.load(case.encoded) as opened, nola_codec.load(case.encoded, "numpy") as plain:
        for dtype in ("f32", "f16"):
            tensors, arrays = opened.state_dict(dtype), plain.state_dict(dtype)
            assert list(tensors) == list(arrays)
            for key, tensor in tensors.items():
                assert np.array_equal(tensor.numpy(), arrays[key])
                assert tensor.numpy().dtype == arrays[key].dtype


def test_factors_and_deltas(case: Any) -> None:
    with nola_codec.load(case.encoded) as opened:
        assert len(opened.names()) == 6
        state = opened.state_dict()
        for name in opened.names():
            lora_A, lora_B = opened.factors(name)
            assert torch.equal(lora_A, state[name + ".lora_A.weight"])
            assert torch.equal(lora_B, state[name + ".lora_B.weight"])
            assert lora_A.dtype == lora_B.dtype == torch.float32
            delta = opened.delta_weight(name)
            exact = 2.0 * (lora_B.double() @ lora_A.double())
            assert torch.equal(delta, exact.float())
            assert torch.equal(opened.delta_weight(name.removeprefix("base_model.model.")), delta)
        with pytest.raises(nola_codec.AdapterError, match="no record named 'nobody'") as caught:
            opened.factors("nobody")
    assert caught.value.code == "unknown-name"


def test_delta_of_an_embedding_is_shaped_like_its_weight(make_case: Callable[..., Any]) -> None:
    with nola_codec.load(make_case(targets=("embed_tokens",)).encoded) as opened:
        assert opened.delta_weight("model.embed_tokens").shape == (40, 16)


@pytest.mark.parametrize(("name", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtypes_round_the_factors_once(name: str, dtype: torch.dtype, case: Any, tmp_path: Path) -> None:
    nola_codec.decode(case.encoded, tmp_path / "out", dtype=name)
    decoded = load_file(tmp_path / "out" / "adapter_model.safetensors")
    with nola_codec.load(case.encoded) as opened:
        exact, rounded = opened.state_dict(), opened.state_dict(name)
    for key, tensor in decoded.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[key].to(dtype))
        assert torch.equal(tensor, rounded[key])


def test_decode_to_a_lone_file(case: Any, tmp_path: Path) -> None:
    """Its scaling, alpha / r = 2, is folded into lora_B: exact, being a power of two."""
    nola_codec.decode(case.encoded, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    with nola_codec.load(case.encoded) as opened:
        for key, tensor in opened.state_dict().items():
            assert torch.equal(found[key], tensor * (2 if "lora_B" in key else 1))
    assert nola_codec.compare(case.adapter, tmp_path / "out.safetensors").nmse == pytest.approx(
        nola_codec.inspect(case.encoded).measured["nmse"], rel=1e-6
    )


def test_nothing_is_overwritten_unasked(case: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "out.nola").write_text("mine")
    calls: list[Callable[..., Any]] = [
        lambda **more: nola_codec.decode(case.encoded, tmp_path / "out", **more),
        lambda **more: nola_codec.decode(case.encoded, tmp_path / "out", base=case.base, **more),
        lambda **more: nola_codec.encode(case.adapter, tmp_path / "out.nola", nmse=0.1, **more),
    ]
    for call in calls:
        with pytest.raises(nola_codec.OutputExists, match="already exists"):
            call()
    assert (tmp_path / "out" / "mine").read_text() == (tmp_path / "out.nola").read_text() == "mine"
    with pytest.raises(nola_codec.OutputExists, match="not a model directory"):  # a slip would cost all that is in it
        calls[1](overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    calls[2](overwrite=True)
    assert (tmp_path / "out.nola").read_bytes().startswith(b"\x89NLA")
    for base in (None, case.base):
        nola_codec.decode(case.encoded, tmp_path / "ours", base=base)
        again = nola_codec.decode(case.encoded, tmp_path / "ours", base=base, overwrite=True)
        assert "config.json" in names_in(again) or base is None
        shutil.rmtree(again)


def test_special_files_are_never_replaced(case: Any, tmp_path: Path) -> None:
    """A rename over /dev/null, by root, would take the device away from the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for call in (
        lambda: nola_codec.encode(case.adapter, pipe, nmse=0.1, overwrite=True),
        lambda: nola_codec.decode(case.encoded, pipe, overwrite=True),
        lambda: nola_codec.decode(case.encoded, pipe, base=case.base, overwrite=True),
    ):
        with pytest.raises(nola_codec.OutputExists, match="not replaced") as caught:
            call()
        assert caught.value.code == "special-file"
    assert pipe.is_fifo()
    assert names_in(tmp_path) == {"base", "adapter", "pipe"}


@pytest.mark.parametrize("base", [False, True])
def test_a_damaged_file_gives_no_output(base: bool, case: Any, tmp_path: Path) -> None:
    bad = damaged(case.encoded)
    with pytest.raises(nola_codec.ChecksumMismatch):
        nola_codec.decode(bad, tmp_path / "out", base=case.base if base else None)
    with pytest.raises(nola_codec.ChecksumMismatch):
        nola_codec.verify(bad)
    with pytest.raises(nola_codec.ChecksumMismatch):
        nola_codec.load(bad)
    assert names_in(tmp_path) == {"base", "adapter"}


def test_a_damaged_file_changes_no_weight(case: Any) -> None:
    model = case.fresh()
    with nola_codec.load(damaged(case.encoded), verify=False) as opened, pytest.raises(nola_codec.ChecksumMismatch):
        opened.merge_into(model)
    for key, tensor in case.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_a_failure_midway_leaves_nothing(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = merged_model.add_rows

    def failing(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError("disk full")
        return real(*arguments, **more)

    monkeypatch.setattr(merged_model, "add_rows", failing)
    with pytest.raises(OSError, match="disk full"):
        nola_codec.decode(case.encoded, tmp_path / "out", base=case.base)
    assert calls == 4
    assert names_in(tmp_path) == {"base", "adapter"}


def test_an_encode_that_fails_leaves_what_was_there(case: Any, tmp_path: Path) -> None:
    (tmp_path / "a.nola").write_text("mine")
    with pytest.raises(nola_codec.EncodeError):
        nola_codec.encode(case.adapter, tmp_path / "a.nola", size=10, overwrite=True)
    assert (tmp_path / "a.nola").read_text() == "mine"
    assert names_in(tmp_path) == {"base", "adapter", "a.nola"}


def test_compare(case: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nola"
    path.write_bytes(case.encoded)
    found = nola_codec.compare(case.adapter, path)
    assert found.same_structure
    assert found.nmse == pytest.approx(nola_codec.inspect(path).measured["nmse"], rel=1e-6)
    source = load_file(case.adapter / "adapter_model.safetensors")
    with nola_codec.load(path) as opened:
        for tensor in found.tensors:
            b, a = (source[f"{tensor.name}.lora_{side}.weight"].double() for side in "BA")
            own, decoded = 2 * b @ a, opened.delta_weight(tensor.name).double()
            assert tensor.shape == tuple(own.shape)
            assert tensor.nmse == pytest.approx(float(((own - decoded) ** 2).sum() / (own**2).sum()), rel=1e-5)
    assert nola_codec.compare(path, path).nmse == 0


def test_compare_sees_what_is_missing_and_what_scaling_does(case: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(case.adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 12}))
    assert nola_codec.compare(case.adapter, other).nmse == pytest.approx(0.25)  # (1 - 1.5)^2
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, other / "adapter_model.safetensors")
    found = nola_codec.compare(case.adapter, other)
    assert not found.same_structure
    assert len(found.only_in_a) == 3
    assert found.only_in_b == ()


def test_inspect_does_not_read_the_sections(case: Any) -> None:
    facts = nola_codec.inspect(damaged(case.encoded))
    assert facts.bytes == len(case.encoded)
    assert len(facts.tensors) == 6
    assert sum(facts.bytes_by_part.values()) <= facts.bytes


def test_the_public_names_are_there() -> None:
    for name in nola_codec.__all__:
        assert getattr(nola_codec, name) is not None
    assert set(nola_codec.__all__) <= set(dir(nola_codec))
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        nola_codec.bogus  # noqa: B018


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_selftest_passes_here(device: str) -> None:
    checks = nola_codec.selftest(device)
    paths = ["NumPy"] if device == "numpy" else ["NumPy", "PyTorch", *(f"{v} kernels" for v in COMPILED[-1:])]
    assert [c.name.split(", ")[1] for c in checks] == [p for p in sorted(paths, key=str.lower) for _ in range(5)]
    assert [c.name for c in checks if not c.passed] == []


def test_selftest_notices_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec.api import selftest as module

    real = module.words

    def wrong(*arguments: Any, **more: Any) -> Any:
        made = np.array(real(*arguments, **more))
        made[..., 0] ^= 1
        return made

    monkeypatch.setattr(module, "words", wrong)
    assert not any(c.passed for c in module.selftest("numpy") if "words" in c.name)
