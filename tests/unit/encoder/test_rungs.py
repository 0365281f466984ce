"""Progressive files: every rung is a file, the whole file decodes the same however it is read, rungs cost little."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.container.reader import open_container
from nola_codec.errors import AdapterError, EncodeError, FormatError, OutputExists


@pytest.fixture(scope="module")
def adapter() -> Any:
    """Make an adapter of 16 modules of rank 8."""
    rng = np.random.default_rng(5)
    tensors = {}
    for layer in range(8):
        for name, out, columns in (("q_proj", 640, 576), ("v_proj", 192, 576)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            strength = 0.7 ** np.arange(8) * (1 + layer / 4)
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((8, columns)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = (rng.standard_normal((out, 8)) * strength).astype(np.float32)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}

    def encode(**options: Any) -> tuple[bytes, Any]:
        from safetensors.numpy import save

        return nola_codec.encode_bytes(save(tensors), config=config, **options)

    return encode


@pytest.fixture(scope="module")
def whole(adapter: Callable[..., Any]) -> tuple[bytes, Any]:
    encoded: tuple[bytes, Any] = adapter(nmse=0.1, rungs=(3000, 8000))
    return encoded


def state(source: Any, rung: int | None = None) -> dict[str, np.ndarray]:
    with nola_codec.load(source, rung=rung) as opened:
        return {name: tensor.numpy() for name, tensor in opened.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def test_the_report_lists_the_rungs(whole: tuple[bytes, Any]) -> None:
    data, report = whole
    assert len(report.rungs) == 3
    assert report.rungs[-1] == {"bytes": len(data), "nmse": report.nmse}
    assert 0.0995 < report.nmse <= 0.1
    assert [r["bytes"] for r in report.rungs] == sorted(r["bytes"] for r in report.rungs)
    assert [r["nmse"] for r in report.rungs] == sorted((r["nmse"] for r in report.rungs), reverse=True)
    assert nola_codec.inspect(data).rungs == report.rungs


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_a_cut_file_is_the_rung(rung: int, whole: tuple[bytes, Any], tmp_path: Path) -> None:
    data, report = whole
    out = tmp_path / "cut.nola"
    made = nola_codec.truncate(data, out, rung=rung)
    cut = out.read_bytes()
    assert made.bytes == len(cut) <= report.rungs[rung]["bytes"]
    assert (made.rung, made.rungs) == (rung, 3)
    assert made.measured == {"nmse": report.rungs[rung]["nmse"]} == nola_codec.inspect(cut).measured
    nola_codec.verify(cut)
    assert len(nola_codec.inspect(cut).rungs) == rung + 1
    assert same(state(cut), state(data, rung))
    if rung == 2:
        assert cut == data


def test_the_whole_file_does_not_change_by_how_it_was_read(whole: tuple[bytes, Any]) -> None:
    data, _ = whole
    finest = state(data)
    for rung in (0, 1):
        assert not same(state(data, rung), finest)
    with open_container(data) as container:
        for rung in (0, 2, 1, 2):
            container.select(rung)
            assert len(container.header.rungs) == rung + 1
    assert same(state(data, 2), finest)


def test_the_finest_rung_that_fits(whole: tuple[bytes, Any], tmp_path: Path) -> None:
    data, report = whole
    sizes = [nola_codec.truncate(data, rung=rung).bytes for rung in (0, 1, 2)]
    for size, wanted in ((sizes[2], 2), (sizes[2] - 1, 1), (sizes[1], 1), (sizes[1] - 1, 0), (sizes[0], 0)):
        assert nola_codec.truncate(data, size=size).rung == wanted
    assert nola_codec.truncate(data, size="5KB").rung == 0
    with pytest.raises(EncodeError) as caught:
        nola_codec.truncate(data, tmp_path / "none.nola", size=sizes[0] - 1)
    assert caught.value.code == "unreachable"
    assert not (tmp_path / "none.nola").exists()


def test_the_beginning_of_a_file_is_enough(whole: tuple[bytes, Any]) -> None:
    data, report = whole
    ends = [int(rung["bytes"]) for rung in report.rungs]
    for length, wanted in ((ends[0], 0), (ends[1] - 1, 0), (ends[1], 1), (ends[2] - 1, 1), (ends[2], 2)):
        made = nola_codec.truncate(io.BytesIO(data[:length]))
        assert made.rung == wanted
        with pytest.raises(FormatError) if length < len(data) else io.BytesIO():
            nola_codec.load(data[:length])
    with pytest.raises(FormatError) as caught:
        nola_codec.truncate(data[: ends[0] - 1])
    assert caught.value.code == "truncated"


def test_refusals(whole: tuple[bytes, Any], adapter: Callable[..., Any], tmp_path: Path) -> None:
    data, _ = whole
    with pytest.raises(AdapterError) as unknown:
        nola_codec.load(data, rung=3)
    assert unknown.value.code == "unknown-rung"
    with pytest.raises(EncodeError, match="size, rung"):
        nola_codec.truncate(data, size=5000, rung=1)
    (tmp_path / "there.nola").write_bytes(b"")
    with pytest.raises(OutputExists):
        nola_codec.truncate(data, tmp_path / "there.nola", rung=0)
    for options in ({"num_basis": 20, "progressive": True}, {"nmse": 0.1, "rungs": ()}, {"nmse": 0.1, "rungs": (0,)}):
        with pytest.raises(EncodeError) as caught:
            adapter(**options)
        assert caught.value.code == "option"


def test_rungs_cost_little(whole: tuple[bytes, Any], adapter: Callable[..., Any]) -> None:
    """A rung takes little more than a file that is made for its error alone: under 5% on real adapters of 50 KB."""
    data, report = whole
    for rung in (0, 1, 2):
        alone, _ = adapter(nmse=report.rungs[rung]["nmse"])
        assert nola_codec.truncate(data, rung=rung).bytes < 1.12 * len(alone)


def test_each_rung_has_its_own_noise_cap(adapter: Callable[..., Any]) -> None:
    data, report = adapter(size=12_000, progressive=True, rungs=(2500,))
    assert len(data) <= 12_000
    assert len(report.rungs) == 2
    assert report.rungs[0]["effective_error"] > report.rungs[1]["effective_error"]
    nola_codec.verify(data)


def test_kinds_that_start_late(examples: Path) -> None:
    """Some kinds have no unit at the first rung, so later rungs give the constants that predict their amplitudes."""
    _, report = nola_codec.encode_bytes(examples / "smollm2_e2e", size=120_000, objective="nmse", progressive=True)
    losses = [rung["nmse"] for rung in report.rungs]
    assert len(losses) == 3
    assert 0.9 > losses[0] > losses[1] > losses[2] > 0.2


def test_a_small_file_has_no_default_rungs(adapter: Callable[..., Any]) -> None:
    data, report = adapter(size=6_000, progressive=True)
    assert len(report.rungs) == 1
    assert nola_codec.truncate(data).bytes == len(data)
