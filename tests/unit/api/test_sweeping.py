"""A sweep's points are the files that `encode` writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nola_codec
from nola_codec.api import plotting
from nola_codec.api.sweeping import default_sizes
from nola_codec.encoder import pipeline


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Six linear layers of rank 8 whose spectra differ in strength and decay."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "adapter"
    directory.mkdir()
    tensors = {}
    for layer in range(3):
        for name, out in (("q_proj", 192), ("v_proj", 96)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            decay = (layer + 1) * (0.5 + 0.1 * layer) ** np.arange(8)
            tensors[key + ".lora_A.weight"] = rng.standard_normal((8, 128)).astype(np.float32)
            tensors[key + ".lora_B.weight"] = (rng.standard_normal((out, 8)) * decay).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    return directory


@pytest.mark.parametrize("objective", [pytest.param("nmse", marks=pytest.mark.slow), "effective"])
def test_sizes_are_those_of_encode(adapter: Path, objective: str) -> None:
    sizes = ["2KB", 4000]
    report = nola_codec.sweep(adapter, sizes=sizes, objective=objective)
    assert (report.by, report.objective) == ("size", objective)
    assert [p.target for p in report.points] == [2000, 4000]
    for size, point in zip(sizes, report.points, strict=True):
        own = nola_codec.encode(adapter, size=size, objective=objective)
        assert (point.bytes, point.ratio, point.nmse) == (own.bytes, own.ratio, own.nmse)
        assert point.effective_error == own.effective_error
        assert (point.effective_error is None) == (objective == "nmse")
        assert point.problem == ""
    assert report.source_bytes == own.source_bytes
    assert report.parameters == own.parameters


def test_the_canonical_form_is_made_once(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    whole = pipeline.make_canonical_form
    monkeypatch.setattr(pipeline, "make_canonical_form", lambda *a, **k: made.append(1) or whole(*a, **k))
    nola_codec.sweep(adapter, errors=[0.3, 0.1, 0.03])
    assert len(made) == 1


def test_errors(adapter: Path) -> None:
    targets = (0.2, 0.05, 0.004)
    by_nmse, by_error = nola_codec.sweep(adapter, nmse=targets), nola_codec.sweep(adapter, errors=targets)
    assert (by_nmse.by, by_nmse.objective) == ("nmse", "nmse")
    assert (by_error.by, by_error.objective) == ("error", "effective")  # the default of encode
    for target, plain, effective in zip(targets, by_nmse.points, by_error.points, strict=True):
        assert plain.nmse is not None
        assert effective.effective_error is not None
        assert 0 < plain.nmse <= target
        assert 0 < effective.effective_error <= target
        assert nola_codec.encode(adapter, error=target).bytes == effective.bytes


def test_a_report_prints_as_a_table(adapter: Path) -> None:
    lines = str(nola_codec.sweep(adapter, sizes=[20, 3000])).splitlines()
    assert lines[0].split() == ["target", "file", "vs", "fp16", "eff.", "error", "NMSE", "gain", "kept"]
    assert lines[1].split() == ["20", "B", "none"]
    assert lines[2].startswith("3.0 KB")
    assert lines[3].startswith("none: size 20 bytes cannot be reached")


def test_a_target_out_of_reach_is_a_point_that_says_so(adapter: Path) -> None:
    report = nola_codec.sweep(adapter, sizes=[20, 3000])
    none, some = report.points
    assert "size 20 bytes cannot be reached" in none.problem
    assert (none.bytes, none.nmse, none.ratio) == (None, None, None)
    assert some.problem == ""
    assert some.bytes is not None
    assert some.bytes <= 3000


def test_the_default_sizes(adapter: Path) -> None:
    report = nola_codec.sweep(adapter)
    assert len(report.points) >= 2
    assert not any(p.problem for p in report.points)
    sizes = [p.bytes for p in report.points]
    assert sizes == sorted(sizes)
    errors = [p.nmse for p in report.points]
    assert errors == sorted(errors, reverse=True)
    assert report.points[-1].target <= max(report.parameters / 2, 3 * report.points[0].target)


@pytest.mark.parametrize(
    ("least", "fp16", "sizes"),
    [
        (1700, 590_000, [5000, 10_000, 20_000, 50_000, 100_000]),
        (6234, 4_000_000, [6300, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000]),
        (800, 3000, [800, 1000, 2000]),
        (801, 3000, [810, 1000, 2000]),
        (900, 26_000, [900, 1000, 2000, 5000]),
        (700, 40_000, [2000, 5000, 10_000]),
        (1, 0, [1, 2]),
    ],
)
def test_default_sizes(least: int, fp16: int, sizes: list[int]) -> None:
    assert default_sizes(least, fp16) == sizes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": [1000], "errors": [0.1]}, "choose one of sizes, errors"),
        ({"nmse": [0.1], "objective": "effective"}, "use errors with another objective"),
        ({"sizes": []}, "no targets"),
        ({"sizes": ["5XB"]}, "5XB"),
        ({"sizes": [0]}, "positive"),
        ({"errors": [0.1, 1.5]}, "between 0 and 1"),
        ({"objective": "beauty"}, "beauty"),
        ({"size": 1000}, "leave out size"),
        ({"num_basis": 10}, "leave out num_basis"),
        ({"sizes": [1000], "bogus": 1}, "sweep() got an unexpected"),
        ({"sizes": [1000], "sead": 1}, "did you mean 'seed'?"),
        ({"sizes": [1000], "rank": "many"}, "rank: expected an integer, found 'many'"),
    ],
    ids=str,
)
def test_refusals_come_before_any_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(nola_codec.EncodeError) as caught:
        nola_codec.sweep(tmp_path / "nowhere", **options)
    assert words in str(caught.value)
    assert caught.value.code == "option"


def test_progress_names_its_stages(adapter: Path) -> None:
    stages: list[str] = []
    nola_codec.sweep(adapter, errors=[0.1], progress=lambda stage, done, total: stages.append(stage))
    assert {"decomposing", "file 1 of 1: planning", "file 1 of 1: draft 1"} <= set(stages)


@pytest.mark.parametrize("objective", ["nmse", "effective"])
def test_a_plot(adapter: Path, tmp_path: Path, objective: str) -> None:
    pytest.importorskip("matplotlib")
    report = nola_codec.sweep(adapter, sizes=[20, 2000], objective=objective)
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        out = tmp_path / name
        nola_codec.plot_sweep(report, out, title="a name")
        assert out.read_bytes().startswith(head)
        with pytest.raises(nola_codec.OutputExists):
            nola_codec.plot_sweep(report, out)
        first = out.read_bytes()
        nola_codec.plot_sweep(report, out, title="a name", overwrite=True)
        assert out.read_bytes() == first
        if name.endswith("svg"):
            words = first.decode()
            assert "a name" in words
            assert ("NMSE of delta_W" in words) == (objective == "nmse")


def test_a_plot_without_matplotlib(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = nola_codec.sweep(adapter, sizes=[2000])
    real = plotting.importlib.util.find_spec
    monkeypatch.setattr(
        plotting.importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else real(name, *a)
    )
    with pytest.raises(nola_codec.EncodeError, match=r"pip install 'nola-codec\[plot\]'") as caught:
        nola_codec.plot_sweep(report, tmp_path / "a.png")
    assert caught.value.code == "missing-package"
    with pytest.raises(nola_codec.EncodeError, match=r"ends in \.png or \.svg"):
        nola_codec.plot_sweep(report, tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == [adapter]
    assert "matplotlib" not in {name.partition(".")[0] for name in vars(sys.modules["nola_codec.api.sweeping"])}
