"""The site of the documentation: it builds, its links lead somewhere, and it asks nothing of other hosts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="no mkdocs.yml: not a whole checkout")


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("material")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", root / "mkdocs.yml", "--site-dir", out]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    specification = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Links(HTMLParser):
    """What a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag in ("script", "img", "iframe", "source", "video"):
            self.loaded.append(found.get("src", ""))
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect", "preload", "prefetch"):
            self.loaded.append(found.get("href", ""))


def test_every_page_of_docs_is_in_it(site: Path) -> None:
    wanted = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in wanted if not (site / page).is_file()] == []
    for page in ("index.html", "spec/nola-v1.html", "changelog.html", "contributing.html", "search/search_index.json"):
        assert (site / page).is_file(), page


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    outside = []
    for page in site.rglob("*.html"):
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        outside += [link for link in links.loaded if re.match(r"(https?:)?//", link)]
    for sheet in site.rglob("*.css"):
        outside += re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text(encoding="utf-8"))
    assert outside == []
    assert "api.github.com" not in (site / "index.html").read_text(encoding="utf-8")


FAULTS = {
    "glossary.md": "\n[nothing](nothing.md), [no heading](cli.md#no-such-heading), [no file](../tools/nothing.py)\n",
    "forgotten.md": "# A page that mkdocs.yml does not name\n",
}


def test_a_fault_fails_the_build(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("docs", "spec"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "tools").mkdir()
    shutil.copyfile(ROOT / "tools" / "site_pages.py", tmp_path / "tools" / "site_pages.py")
    for name in ("nola_codec", "examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page, text in FAULTS.items():
        with (tmp_path / "docs" / page).open("a", encoding="utf-8") as stream:
            stream.write(text)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line or line.startswith("  -")]
    for fault in ("'nothing.md'", "#no-such-heading", "nothing.py", "forgotten.md"):
        assert any(fault in line for line in warnings), (fault, done.stderr)
    assert len(warnings) <= len(FAULTS["glossary.md"].split("](")) + 3


HOME = "https://github.com/nola-codec/nola-codec"


@pytest.mark.parametrize(
    ("source", "place", "link", "wanted"),
    [
        ("docs/a.md", "a.md", "cli.md#encode", "cli.md#encode"),
        ("docs/a.md", "a.md", "../spec/nola-v1.md#file", "spec/nola-v1.md#file"),
        ("docs/tutorials/a.md", "tutorials/a.md", "../cli.md", "../cli.md"),
        ("docs/tutorials/a.md", "tutorials/a.md", "../../spec/nola-v1.md", "../spec/nola-v1.md"),
        ("docs/a.md", "a.md", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/a.md", "a.md", "../examples/README.md", f"{HOME}/blob/main/examples/README.md"),
        ("docs/a.md", "a.md", "experiments", f"{HOME}/tree/main/docs/experiments"),
        ("README.md", "index.md", f"{HOME}/blob/main/docs/cli.md", "cli.md"),
        ("README.md", "index.md", f"{HOME}/raw/main/docs/curve.svg", "curve.svg"),
        ("README.md", "index.md", f"{HOME}/issues", f"{HOME}/issues"),
        ("CONTRIBUTING.md", "contributing.md", "docs/cli.md", "cli.md"),
        ("spec/nola-v1.md", "spec/nola-v1.md", "reference_decoder.py", f"{HOME}/blob/main/spec/reference_decoder.py"),
        ("spec/nola-v1.md", "spec/nola-v1.md", "#file", "#file"),
        ("docs/a.md", "a.md", "nothing.md", "nothing.md"),
        ("docs/a.md", "a.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_of_the_repository_in_the_site(
    source: str, place: str, link: str, wanted: str, pages: ModuleType
) -> None:
    assert pages.fit_links(f"[a]({link}) b", source, place) == f"[a]({wanted}) b"


def test_code_keeps_its_links(pages: ModuleType) -> None:
    text = "```markdown\n[a](../spec/nola-v1.md)\n```\n[a](../spec/nola-v1.md)\n"
    assert pages.fit_links(text, "docs/a.md", "a.md") == text.replace("```\n[a](../", "```\n[a](")
