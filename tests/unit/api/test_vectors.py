"""Vector records through `inspect`, `compare`, `verify` and the writers that have no place for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nola_forge import golden

import nola_codec
from nola_codec import adapters
from nola_codec.api.decoding import decode_contents, read_adapter
from nola_codec.api.inspecting import inspect
from nola_codec.errors import AdapterError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.nola"
    path.write_bytes(golden("vectors"))
    return path


def test_inspect_lists_vectors(file: Path) -> None:
    facts = inspect(file)
    rows = {t.name: t for t in facts.tensors if t.record == "vector"}
    assert set(rows) == {
        "scale", "unchanged", "odd#1.bias", *(f"model.layers.{i}.norm.weight.diff" for i in range(3)),
        *(f"model.layers.{i}.up.weight.diff" for i in range(2)),
    }  # fmt: skip
    assert rows["model.layers.1.up.weight.diff"].shape == (24, 40)
    assert rows["model.layers.1.up.weight.diff"].coefficients == 960
    assert (rows["scale"].shape, rows["unchanged"].units) == ((), 0)
    assert rows["odd#1.bias"].dtype == "F16"
    assert facts.parameters == 4 * 2 * (24 + 40) + 3 * 36 + 2 * 960 + 7 + 1 + 15 + 3


def test_compare_by_nmse(file: Path) -> None:
    decoded = read_adapter(file)
    assert nola_codec.compare(file, file).nmse == 0
    vectors = {v.name: v.values for v in decoded.vectors}
    with nola_codec.load(file) as opened:
        for name, values in vectors.items():
            assert np.array_equal(opened.vector(name).numpy(), values)
    paper = file.with_name("paper.nola")
    paper.write_bytes(golden("vectors-paper"))
    found = nola_codec.compare(file, paper)
    other = {v.name: v.values for v in read_adapter(paper).vectors}
    rows = {t.name: t.nmse for t in found.tensors}
    for name, values in vectors.items():
        energy = float(np.square(values, dtype=np.float64).sum())
        error = float(np.square(values.astype(np.float64) - other[name]).sum())
        assert rows[name] == pytest.approx(error / energy if energy else 0.0)
    assert found.only_in_a == found.only_in_b == ()


def test_a_vector_that_one_lacks_or_shapes_otherwise(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec.api import comparing

    whole = read_adapter(file)
    lacking = replace(whole, vectors=whole.vectors[1:])
    bent = replace(whole, vectors=(*whole.vectors[:-1], replace(whole.vectors[-1], values=np.zeros(2, np.float32))))
    sources = {"whole": whole, "lacking": lacking, "bent": bent}
    monkeypatch.setattr(comparing, "read_adapter", lambda name, **_: sources[name])
    assert comparing.compare("whole", "lacking").only_in_a == (whole.vectors[0].name,)
    with pytest.raises(AdapterError) as caught:
        comparing.compare("whole", "bent")
    assert caught.value.code == "shape"


def test_peft_has_no_place_for_vectors(file: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "dir", tmp_path / "lone.safetensors"):
        with pytest.raises(AdapterError) as caught:
            nola_codec.decode(file, out)
        assert caught.value.code == "not-expressible"
        assert not out.exists()
    with pytest.raises(AdapterError) as caught:
        adapters.write(read_adapter(file), tmp_path / "dir")
    assert caught.value.code == "not-expressible"


def test_merging_into_a_module_says_that_it_cannot(file: Path) -> None:
    with pytest.raises(AdapterError) as caught, nola_codec.load(file) as opened:
        opened.merge_into(torch.nn.Linear(2, 2))
    assert caught.value.code == "merge-vectors"


def test_an_unknown_vector(file: Path) -> None:
    with nola_codec.load(file) as opened, pytest.raises(AdapterError) as caught:
        opened.vector("nothing")
    assert caught.value.code == "unknown-name"


def test_a_file_without_modules_is_refused_for_its_vectors() -> None:
    """And not for the scaling that it does not say, which is that of no module."""
    with pytest.raises(AdapterError) as caught:
        decode_contents(golden("drawn"), "peft")
    assert caught.value.code == "not-expressible"
