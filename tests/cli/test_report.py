"""`nola-codec report` as a user meets it: the figures, and the page that shows them."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nola_forge import GOLDEN, golden_names
from safetensors.numpy import load_file, save_file

import nola_codec
from nola_codec.container.limits import Limits
from nola_codec.errors import FormatError
from nola_codec.reporting.curve import curve_sizes
from nola_codec.reporting.page import render_page
from nola_codec.reporting.places import make_grid

Run = Callable[..., Any]
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = '</title></svg><script src="https://evil.example/x.js">alert(1)</script>\u202e\x1b[2J&'


class Page(HTMLParser):
    """What a page holds; it fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(path: Path) -> Page:
    """Check that a page is whole, needs nothing from outside, and can be read without seeing it."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert all(not key.startswith("on") and key not in ("href", "src") for _, own in page.tags for key in own)
    assert "url(" not in text
    assert "@import" not in text
    ids = [own["id"] for _, own in page.tags if "id" in own]
    assert len(ids) == len(set(ids))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") == "true" or (
            svg["role"] == "img" and set(str(svg["aria-labelledby"]).split()) <= set(ids)
        )
    assert len(page.named("table")) == len(page.named("caption"))
    assert all(own["scope"] in ("col", "row") for own in page.named("th"))
    regions = [own["aria-label"] for own in page.named("div") if own.get("role") == "region"]
    assert len(regions) == len(set(regions))
    assert len(page.named("h1")) == 1
    assert not re.search(r"\bnan\b|\binf\b", " ".join(page.text))
    return page


def test_the_page_of_a_file(run: Run, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run("report", encoded, "-o", out)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"wrote  {out}\n")
    page = check_page(out)
    facts = run("inspect", encoded, "--json").json
    text = "".join(page.text)
    for shown in (facts["content_sha256"], facts["decoded_sha256"], facts["generator"], "nobody/model"):
        assert shown in text
    assert "What was kept" not in text
    before = out.read_bytes()
    assert run("report", encoded, "-o", out).status == 2
    assert run("report", encoded, "-o", out, "-f").status == 0
    assert out.read_bytes() == before  # the same file gives the same page


def test_figures_are_those_of_inspect_and_compare(run: Run, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    found = run("report", encoded, "--against", adapter, "-o", out, "--json").json
    facts = run("inspect", encoded, "--json").json
    compared = run("compare", adapter, encoded, "--json").json
    assert found["facts"] == facts
    assert found["losses"]["comparison"] == {key: value for key, value in compared.items() if key not in ("ok", "plot")}
    parts = found["bytes_by_part"]
    assert sum(parts.values()) == facts["bytes"] == encoded.stat().st_size
    assert parts["prelude"] + parts["header"] == facts["bytes_by_part"]["header"]
    for groups in (found["grid"]["types"], found["grid"]["layers"]):
        assert sum(group["sums"]["bytes"] for group in groups) == pytest.approx(parts["coefficients"])
        assert sum(group["sums"]["coefficients"] for group in groups) == facts["coefficients"]
        assert sum(group["weights"] for group in groups) == 4
    assert {group["name"] for group in found["grid"]["types"]} == {"self_attn.q_proj", "self_attn.v_proj"}
    losses = found["losses"]["grid"]
    error, energy = (sum(group["sums"][key] for group in losses["types"]) for key in ("error", "energy"))
    assert error / energy == pytest.approx(compared["nmse"])
    page = check_page(out)
    cells = [own for own in page.named("rect") if re.fullmatch(r"s[0-8]", own.get("class") or "")]
    assert len(cells) == 3 * 4 + 3 * 9  # three heat maps of four weights, and their scales
    assert f"{compared['nmse']:.4f}" in "".join(page.text)


def test_a_sweep_is_that_of_sweep(run: Run, adapter: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "b.nola", tmp_path / "report.html"
    run("encode", adapter, "-o", file, "--size", "1000B", "--seed", "7", "-q")
    found = run("report", file, "--against", adapter, "--sweep", "-o", out, "--json").json
    size = file.stat().st_size
    points = found["curve"]["points"]
    assert [each["target"] for each in points] == curve_sizes(size, 2 * found["facts"]["parameters"])
    swept = nola_codec.sweep(adapter, sizes=[each["target"] for each in points], seed=7)
    for point, own in zip(points, swept.points, strict=True):
        assert (point["bytes"], point["nmse"], point["problem"]) == (own.bytes, own.nmse, own.problem)
    page = check_page(out)
    text = "".join(page.text)
    assert "none: size " in text  # an eighth of the file cannot be reached
    assert sum(own.get("class") == "mark own" for own in page.named("path")) == 2  # in the drawing and its legend
    assert [own.get("class") for own in page.named("tr")].count("own") == 1
    for peer in found["curve"]["peers"]:
        assert f"{peer['bytes']:,}" in text
    again = run("report", file, "--against", adapter, "--json").json
    assert again["curve"] is None


def test_a_sweep_follows_the_objective_of_the_file(adapter: Path, encoded: Path) -> None:
    curve = nola_codec.report(encoded, against=adapter, sweep=True).curve
    assert curve is not None
    assert curve.error == "nmse"
    assert {each.effective_error for each in curve.points} == {None}


def test_a_stream_is_read_once(adapter: Path, encoded: Path) -> None:
    data = (adapter / "adapter_model.safetensors").read_bytes()
    found = nola_codec.report(encoded, against=io.BytesIO(data), scale=2.0, sweep=True)
    again = nola_codec.report(encoded, against=data, scale=2.0, sweep=True)
    assert found.curve is not None
    assert again.curve is not None
    assert found.curve.peers == again.curve.peers
    assert [point.bytes for point in found.curve.points] == [point.bytes for point in again.curve.points]


def test_a_sweep_of_a_file_that_differs_says_so(adapter: Path, encoded: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    key = "base_model.model.classifier"
    save_file({f"{key}.lora_A.weight": rng.standard_normal((4, 48)).astype(np.float32),
               f"{key}.lora_B.weight": rng.standard_normal((64, 4)).astype(np.float32)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    factors, _ = nola_codec.encode_bytes(tmp_path, num_basis=32)
    curve = nola_codec.report(factors, against=tmp_path, sweep=True).curve
    assert curve is not None
    assert any("factor form" in note for note in curve.notes)
    difference, _ = nola_codec.encode_bytes(adapter, size="1500B", reference=encoded)
    curve = nola_codec.report(difference, against=adapter, references=encoded, sweep=True).curve
    assert curve is not None
    assert any("stand alone" in note for note in curve.notes)


def test_spectra_are_the_singular_values(adapter: Path, encoded: Path) -> None:
    report = nola_codec.report(encoded, against=adapter)
    assert report.losses is not None
    original, decoded = nola_codec.read_adapter(adapter), nola_codec.read_adapter(encoded)
    assert len(report.losses.spectra) == 4
    for spectrum in report.losses.spectra:
        for source, values in ((original, spectrum.original), (decoded, spectrum.decoded)):
            (module,) = (each for each in source.modules if each.name == spectrum.name)
            whole = np.linalg.svd(module.scaling * module.lora_B.astype(float) @ module.lora_A, compute_uv=False)
            assert values == pytest.approx(whole[: len(values)].tolist(), rel=1e-6, abs=1e-9)


def test_another_adapter_than_the_original_is_doubted(run: Run, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("report", encoded, "--against", adapter, "-o", page)
    assert re.search(r"^It keeps \d+\.\d\d% of the signal of the original, over 4 deltas \(NMSE 0\.", done.out, re.M)
    assert (done.err, "Note: " in page.read_text()) == ("", False)
    weights = adapter / "adapter_model.safetensors"
    tensors, rng = load_file(weights), np.random.default_rng(1)
    save_file({key: rng.standard_normal(each.shape).astype(np.float32) for key, each in tensors.items()}, weights)
    done = run("report", encoded, "--against", adapter, "-o", page, "-f")
    assert "of the signal of the original, which its own error does not explain" in done.err
    assert "Note: the file has" in page.read_text()
    save_file({key: each for key, each in tensors.items() if "layers.0" in key}, weights)
    done = run("report", encoded, "--against", adapter, "-o", page, "-f")
    assert "share 2 weights; 0 are only in the original and 2 only in the file" in done.err
    assert "Note: the file and the original share 2 weights" in page.read_text()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<!doctype html><html></html>", "a web page"),
        ("hello", "text that is no JSON object"),
        ("[1]", "text that is no JSON object"),
        ("", "an empty file"),
    ],
)
def test_a_wrong_file_for_the_evaluation(content: str, found: str, run: Run, encoded: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text(content)
    done = run("report", encoded, "--json", "--eval", tmp_path / "wrong")
    assert done.status == 3
    expected = "evaluation: expected what `nola-codec eval --json` printed, found"
    assert done.err == f"nola-codec: {tmp_path / 'wrong'}: {expected} {found} [evaluation]\n"


def test_a_verdict_says_what_it_rests_on(adapter: Path, encoded: Path, tmp_path: Path) -> None:
    """The sentences that an encode would print of the same file; none where no such file was measured."""
    effective, report = nola_codec.encode_bytes(adapter, size="1500B")
    found = nola_codec.report(effective)
    assert report.expectation is not None
    assert found.verdict.endswith(report.expectation.outlook)
    assert (found.expected, found.is_beyond) == (dict(report.expectation.kept), report.expectation.is_beyond)
    least, report = nola_codec.encode_bytes(adapter, error=0.7)
    assert nola_codec.report(least).is_beyond
    assert "no file with as much error" in nola_codec.report(least).reason
    assert "no effective error" in nola_codec.report(encoded).reason
    shutil.copytree(adapter, tmp_path / "vit")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "ViTForImageClassification"}
    (tmp_path / "vit" / "adapter_config.json").write_text(json.dumps(config))
    image, report = nola_codec.encode_bytes(tmp_path / "vit", size="1500B")
    assert nola_codec.report(image).expected is report.expectation is None
    assert "image model" in nola_codec.report(image).reason
    again, _ = nola_codec.encode_bytes(adapter, size="1500B", reference=effective)
    difference = nola_codec.report(again, references=effective)
    assert difference.facts.reference is not None
    assert "earlier version" in difference.reason


def test_costs_add_up(encoded: Path) -> None:
    report = nola_codec.report(encoded)
    facts, costs = nola_codec.inspect(encoded), report.costs
    coded = [each for each in facts.tensors if each.coefficients is not None]
    assert [(each.name, each.coefficients) for each in costs.records] == [(e.name, e.coefficients) for e in coded]
    ideal = sum(each.ideal_bits for each in costs.records)
    assert ideal == pytest.approx(sum(each.ideal_bits for each in costs.quantizers))
    assert ideal / 8 < sum(each.stored_bytes for each in costs.records)  # no code is shorter than the ideal one
    assert sum(sum(each.counts) for each in costs.histograms) == facts.coefficients
    for each in costs.histograms:
        assert each.zeros <= each.counts[len(each.counts) // 2]


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "hostile"
    source.mkdir()
    tensors = {
        f"base_model.model.{HOSTILE}.{layer}.{HOSTILE}.lora_{side}.weight": rng.standard_normal(shape).astype(
            np.float32
        )
        for layer in range(2)
        for side, shape in (("A", (4, 48)), ("B", (64, 4)))
    }
    save_file(tensors, source / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": HOSTILE, HOSTILE: [HOSTILE] * 99}
    (source / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(source, tmp_path / "a.nola", nmse=0.3)
    nola_codec.report(tmp_path / "a.nola", tmp_path / "report.html", against=source)
    page = check_page(tmp_path / "report.html")
    assert "<script src=" in "".join(page.text)  # as text
    assert not {"\x1b", "\u202e"} & set("".join(page.text))


@pytest.mark.parametrize("name", [f"{name}.nola" for name in golden_names() if "reference" not in name])
def test_any_kind_of_file_has_a_report(name: str, tmp_path: Path) -> None:
    report = nola_codec.report(GOLDEN / name, tmp_path / "report.html", references=GOLDEN)
    check_page(tmp_path / "report.html")
    assert sum(report.bytes_by_part.values()) == report.facts.bytes
    stored = sum(each.stored_bytes for each in report.costs.records)
    assert stored == pytest.approx(report.bytes_by_part["coefficients"] if report.costs.records else 0)


def test_a_page_of_many_weights_is_small(adapter: Path, encoded: Path) -> None:
    """The largest page there can be, but for its texts: each cell of three heat maps has a weight."""
    report = nola_codec.report(encoded, against=adapter)
    assert report.losses is not None
    names = [
        f"base_model.model.model.layers.{layer}.block.a_long_type{kind}" for layer in range(100) for kind in range(30)
    ]
    figures, losses = {"bytes": 1234.5, "coefficients": 9e9, "ideal_bits": 9.0}, {"energy": 1.0, "error": 0.123}
    grid = make_grid(((name, figures) for name in names), {"bits_each": lambda sums: 0.25})
    rates = {"nmse": lambda sums: sums["error"], "signal": lambda sums: 0.9, "energy_share": lambda sums: 0.1}
    lost = make_grid(((name, losses) for name in names), rates)
    text = render_page(replace(report, grid=grid, losses=replace(report.losses, grid=lost)))
    page = Page(text)
    assert "7 other types" in "".join(page.text)
    assert "5 other layers" in "".join(page.text)
    assert len(text) < 2_000_000


def test_wrong_usage(run: Run, encoded: Path, adapter: Path, tmp_path: Path) -> None:
    for arguments in (
        (encoded,),
        (encoded, "-o", tmp_path),
        (encoded, "--scale", "2", "--json"),
        (encoded, "--sweep", "--json"),
        (encoded, "--against", encoded, "--sweep", "--json"),
        (encoded, "-o", encoded, "-f"),
    ):
        done = run("report", *arguments)
        assert (done.status, done.out) == (2, ""), arguments
    assert run("report", adapter, "--json").status == 3
    assert run("report", encoded, "-o", tmp_path / "no" / "report.html").status == 3


def test_limits_hold(encoded: Path) -> None:
    with pytest.raises(FormatError) as caught:
        nola_codec.report(encoded, limits=Limits(coefficients=5))
    assert caught.value.code == "limit"


def test_a_damaged_file_is_refused(encoded: Path, tmp_path: Path) -> None:
    data = bytearray(encoded.read_bytes())
    data[-1] ^= 1
    with pytest.raises(FormatError):
        nola_codec.report(bytes(data), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_same_report_gives_the_same_page(encoded: Path) -> None:
    assert render_page(nola_codec.report(encoded)) == render_page(nola_codec.report(encoded))
