"""`nola-codec compare --plot`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.errors import AdapterError
from nola_codec.reporting.comparison_plot import plot_comparison

pytest.importorskip("matplotlib")

Run = Callable[..., Any]


def texts(path: Path) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot(run: Run, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "losses.svg"
    done = run("compare", adapter, encoded, "--plot", out)
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(f"wrote  {out}\n")
    found = run("compare", adapter, encoded, "--json").json
    assert found["plot"] is None
    shown = texts(out)
    assert f"NMSE of delta_W, {found['nmse']:.4f} over all" in shown
    assert f"signal kept, {found['signal']:.1%} over all" in shown
    assert f"{encoded.name} against {adapter.name}" in shown
    for name in ("self_attn.q_proj", "self_attn.v_proj", "0", "1"):
        assert shown.count(name) >= 2
    before = out.read_bytes()
    refused = run("compare", adapter, encoded, "--plot", out)
    assert (refused.status, refused.out) == (2, "")
    assert run("compare", adapter, encoded, "--plot", out, "-f", "--json").json["plot"] == str(out)
    assert out.read_bytes() == before
    assert run("compare", adapter, encoded, "--plot", tmp_path / "losses.pdf").status == 2
    assert run("compare", adapter, encoded, "--plot", tmp_path / "losses.png").status == 0
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_strangers_are_no_formulas(adapter: Path, encoded: Path, tmp_path: Path) -> None:
    found = nola_codec.compare(adapter, encoded)
    name = "model.layers.0.$\\frac{1}{$\x1b" + "x" * 999
    tensors = tuple(replace(each, name=name, energy=0.0) for each in found.tensors[:1]) + found.tensors[1:]
    plot_comparison(replace(found, tensors=tensors, nmse=float("inf")), tmp_path / "a.svg", title="a$b$")
    shown = texts(tmp_path / "a.svg")
    assert "a$b$" in shown
    assert any(text.startswith("$\\frac{1}{$") and len(text) < 60 for text in shown)


def test_nothing_in_common(adapter: Path, tmp_path: Path) -> None:
    other = {
        "layers.9.w.lora_A.weight": np.ones((1, 8), np.float32),
        "layers.9.w.lora_B.weight": np.ones((8, 1), np.float32),
    }
    found = nola_codec.compare(adapter, other, scale=1.0)
    with pytest.raises(AdapterError) as caught:
        plot_comparison(found, tmp_path / "a.svg")
    assert caught.value.code == "nothing-to-compare"
    assert not (tmp_path / "a.svg").exists()
