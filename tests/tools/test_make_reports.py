"""The reports of docs/reports/: small pages, and a program that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

import nola_codec

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "reports").glob("*.html"))

needs_checkout = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="no examples/: not a whole checkout")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_reports

    return make_reports


def test_the_pages(tool: ModuleType) -> None:
    assert [page.stem for page in PAGES] == sorted(report.name for report in tool.REPORTS)
    sizes = [page.stat().st_size for page in PAGES]
    assert max(sizes) < 2_000_000
    assert sum(sizes) < 4_000_000
    described = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"(reports/{page.name})" in described
        text = page.read_text(encoding="utf-8")
        assert f"<h1>{page.stem}.nola</h1>" in text
        assert "<script" not in text


@needs_checkout
def test_one_is_made_again(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOLA_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr("sys.argv", ["make_reports.py", "gptneo125m_movies", "-o", str(tmp_path)])
    tool.main()
    (page,) = tmp_path.glob("*.html")
    assert "Size against error" in page.read_text(encoding="utf-8")


@needs_checkout
def test_missing_data_are_named(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOLA_DATA", str(tmp_path / "nothing"))
    names = ["sd15_catundchat", "smollm2_full"]
    monkeypatch.setattr("sys.argv", ["make_reports.py", *names, "-o", str(tmp_path), "--cache", str(tmp_path)])
    tool.main()
    printed = capsys.readouterr()
    for name in names:
        assert f"left out {name}" in printed.err
    assert list(tmp_path.glob("*.html")) == []


@needs_checkout
def test_an_evaluation_of_another_file_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    report = next(each for each in tool.REPORTS if each.is_measured)
    document = json.loads((ROOT / "docs" / "reports" / f"{report.name}.json").read_text(encoding="utf-8"))
    for each in document["measured"]:
        each["content_sha256"] = ""
    (tmp_path / f"{report.name}.json").write_text(json.dumps(document))
    with pytest.raises(nola_codec.EncodeError, match="no file with the content SHA-256"):
        tool.make(report, ROOT / "examples" / report.name, tmp_path, evaluate=False)
