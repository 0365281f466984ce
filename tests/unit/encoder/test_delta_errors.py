"""LoHa, LoKr and Tucker: the reported error is that of the delta, and targets hold for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nola_codec import EncodeError, compare, decode, encode, encode_bytes, inspect, sweep
from nola_codec.adapters import deltas, read
from nola_codec.api.expecting import find_difference
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import write_tensors


def floats(*shape: int, seed: int) -> RawTensor:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return RawTensor("F32", shape, values.tobytes())


def adapter_file(path: Path, *kinds: str) -> Path:
    tensors = {}
    for number, kind in enumerate(kinds):
        stem = f"lora_unet_down_blocks_{number}_attentions_0_proj_in"
        if kind == "plain":
            shapes = {"lora_down.weight": (4, 96), "lora_up.weight": (64, 4)}
        elif kind == "loha":
            shapes = {f"hada_w{n}_{s}": (64, 4) if s == "a" else (4, 96) for n in "12" for s in "ab"}
        elif kind == "lokr":
            shapes = {"lokr_w1": (8, 8), "lokr_w2_a": (32, 4), "lokr_w2_b": (4, 48)}
        else:
            shapes = {
                "lora_down.weight": (6, 32, 1, 1),
                "lora_mid.weight": (6, 6, 3, 3),
                "lora_up.weight": (48, 6, 1, 1),
            }
        tensors |= {f"{stem}.{part}": floats(*shape, seed=number) for part, shape in shapes.items()}
        tensors[f"{stem}.alpha"] = RawTensor("F32", (), np.float32(2).tobytes())
    return write_tensors(path, tensors, {"ss_network_dim": "4"})


@pytest.mark.parametrize("kinds", [("loha",), ("lokr",), ("tucker",), ("plain", "loha", "lokr", "tucker")])
def test_the_reported_error_is_the_deltas(kinds: tuple[str, ...], tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", *kinds)
    report = encode(source, tmp_path / "out.nola", nmse=0.05)
    decoded = {
        delta.name: delta.dense() for delta in deltas(read(decode(tmp_path / "out.nola", tmp_path / "o.safetensors")))
    }
    lost = energy = 0.0
    for delta in deltas(read(source)):
        lost += float(np.square(delta.dense() - decoded[delta.name]).sum())
        energy += float(np.square(delta.dense()).sum())
    assert report.nmse == pytest.approx(lost / energy, rel=1e-6)
    assert report.nmse <= 0.05
    assert report.nmse == pytest.approx(compare(source, tmp_path / "out.nola").nmse, rel=1e-6)


@pytest.mark.parametrize("kinds", [("loha",), ("lokr",), ("tucker",), ("plain", "loha")])
def test_a_delta_of_several_parts_is_coded_by_the_nmse(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Its effective error was once said to be 0, and a file of the default target lost the task in silence."""
    source = adapter_file(tmp_path / "in.safetensors", *kinds)
    sizes = []
    for error in (None, 0.1, 0.5):
        report = encode(source, tmp_path / "out.nola", error=error, overwrite=True)
        assert (report.objective, report.effective_error, report.expectation) == ("nmse", None, None)
        assert compare(source, tmp_path / "out.nola").nmse == pytest.approx(report.nmse, rel=1e-6)
        assert report.nmse <= (error or 0.02)
        assert report.is_default_target == (error is None)
        assert ("target       none was given: bound the NMSE (--error 0.02)" in str(report)) == (error is None)
        assert sum("the objective is the NMSE" in note for note in report.notes) == 1
        assert "gain" not in str(report)
        sizes.append(report.bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert inspect(tmp_path / "out.nola").measured.keys() == {"nmse"}
    assert not any("the objective is the NMSE" in note for note in encode(source, nmse=0.1).notes)


def test_the_effective_error_of_several_parts_is_refused(tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "loha", "plain")
    for options in ({"objective": "effective"}, {"importance": {"*": 2.0}}):
        with pytest.raises(EncodeError, match=r"several parts .* are coded by the NMSE") as caught:
            encode(source, **options)
        assert caught.value.code == "option"
    plain = encode(adapter_file(tmp_path / "plain.safetensors", "plain"))
    assert plain.objective == "effective"


def test_a_sweep_of_several_parts_is_by_the_nmse(tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "lokr")
    report = sweep(source, errors=[0.3, 0.05])
    assert report.objective == "nmse"
    assert any("the objective is the NMSE" in note for note in report.notes)
    for point, limit in zip(report.points, (0.3, 0.05), strict=True):
        assert (point.effective_error, point.expectation) == (None, None)
        assert point.nmse is not None
        assert point.nmse <= limit


@pytest.mark.parametrize("kind", ["hada", "lokr"])
def test_peft_has_the_same_objective(kind: str) -> None:
    names = {"hada": ("hada_w1", "hada_w2"), "lokr": ("lokr_w2",)}[kind]
    rng = np.random.default_rng(0)
    start = "base_model.model.layers.0.q_proj."
    tensors = {
        f"{start}{name}_{side}": rng.standard_normal(shape).astype(np.float32)
        for name in names
        for side, shape in (("a", (48, 4)), ("b", (4, 32)))
    }
    if kind == "lokr":
        tensors[f"{start}lokr_w1"] = rng.standard_normal((4, 4)).astype(np.float32)
    _, report = encode_bytes(tensors, config={"peft_type": {"hada": "LOHA"}.get(kind, "LOKR"), "r": 4, "alpha": 4})
    assert (report.objective, report.expectation) == ("nmse", None)
    assert 0.01 < report.nmse <= 0.02


def test_no_verdict_of_several_parts_comes_from_an_effective_error(tmp_path: Path) -> None:
    """Files of older versions say one, which is too small."""
    encode(adapter_file(tmp_path / "in.safetensors", "lokr"), tmp_path / "out.nola")
    facts = inspect(tmp_path / "out.nola")
    older = replace(facts, measured={"nmse": 3.0, "effective_error": 0.0})
    assert "several parts" in find_difference(older)
    assert older.verdict.endswith("what it keeps of the task is not known")


@pytest.mark.parametrize(("seed", "target"), [(1, 0.5), (3, 0.35), (3, 0.25), (10, 0.35), (19, 0.25)])
def test_an_error_between_the_steps_of_few_units_is_reached(seed: int, target: float) -> None:
    """A slightly lower aim gives the same draft, which was once made until the target was refused."""
    rng = np.random.default_rng(seed)
    shapes = {"lokr_w1": (4, 4), "lokr_w2": (8, 8)}
    tensors = {
        f"base_model.model.{module}.{part}": rng.standard_normal(shape).astype(np.float32)
        for module in "ab"
        for part, shape in shapes.items()
    }
    _, report = encode_bytes(tensors, config={"peft_type": "LOKR", "r": 4, "alpha": 4}, nmse=target)
    assert 0.5 * target < report.nmse <= target


def test_an_error_of_several_parts_that_is_too_small_is_refused_as_measured(tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "loha")
    message = r"error 1e-09 cannot be reached: the finest quantizers leave \d"
    with pytest.raises(EncodeError, match=message) as caught:
        encode(source, nmse=1e-9)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("rate", [{"size": 6000}, {"num_basis": 200, "bits": 4}, {"size": 6000, "progressive": True}])
def test_every_rate_option(rate: dict[str, int], tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "plain", "loha", "lokr", "tucker")
    report = encode(source, tmp_path / "out.nola", **rate)
    assert report.nmse == pytest.approx(compare(source, tmp_path / "out.nola").nmse, rel=1e-6)
    again = read(decode(tmp_path / "out.nola", tmp_path / "o.safetensors"))
    assert again.metadata == {"ss_network_dim": "4"}
