"""The glossary is short and right about where things are, and the names that it replaces do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nola_forge import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"

REPLACED = {
    "climb": "rung",
    "default form": "component form",
    "digest": "decoded SHA-256",
    "factors_sha256": "decoded SHA-256",
    "fixed width": "factor form",
    "ladder": "rung",
    "paper form": "factor form",
    "paper's form": "factor form",
    "passed through": "carried tensor",
    "passthrough": "carried tensor",
    "--prng": "generator",
    "projected form": "factor form",
    "raw tensor": "carried tensor",
    "spread form": "component form",
    "task-space code": "fit",
    "weight-space code": "fit",
}
"""Earlier names that have no other meaning, and the terms that are used instead.

Other replaced names (format, container, split, partial ...) have good meanings too, so no test can look for them.
"""


def entries() -> list[list[str]]:
    """Return the cells of each entry: term, meaning, where, replaces."""
    rows = re.findall(r"^\|(.*)\|$", GLOSSARY.read_text(encoding="utf-8"), re.M)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return [row for row in cells if row[0] != "term" and not row[0].startswith("---")]


def readable_files() -> list[str]:
    """Return the files that users read: README, documents, the specification and the command line."""
    patterns = ("README.md", "docs/**/*.md", "spec/*.md", "nola_codec/cli/**/*.py")
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def replaced_names(text: str) -> list[str]:
    """Return the replaced names that occur in a text, whatever their case and line breaks."""
    plain = re.sub(r"\s+", " ", text)
    return [name for name in REPLACED if re.search(rf"(?<!\w){re.escape(name)}", plain, re.IGNORECASE)]


def test_at_most_40_entries_of_four_cells() -> None:
    assert 30 <= len(entries()) <= 40
    for row in entries():
        assert len(row) == 4, row
        assert row[0], row
        assert row[1].endswith("."), row
        assert len(row[1]) < 240, f"more than two plain sentences: {row[0]}"


def test_a_term_is_explained_once() -> None:
    terms = [term for row in entries() for term in row[0].split(", ")]
    assert len(set(terms)) == len(terms)


def test_places_exist() -> None:
    headings = {
        f"{page}#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for page in ("nola-v1.md", "conventions.md")
        for heading in re.findall(r"^#+ (.*)$", (ROOT / "spec" / page).read_text(encoding="utf-8"), re.M)
    }
    for term, _, where, _ in entries():
        folders = re.findall(r"`([^`]+)`", where)
        assert folders, term
        assert all((ROOT / folder).is_dir() for folder in folders), (term, folders)
        assert set(re.findall(r"spec/([^)]+#[^)]+)\)", where)) <= headings, (term, where)


def test_replaced_names_are_listed_in_the_glossary() -> None:
    replaces = {term: row[3].lower() for row in entries() for term in row[0].split(", ")}
    for name, term in REPLACED.items():
        assert name.lower().lstrip("-").replace("paper's", "paper") in replaces[term], name


@pytest.mark.parametrize("name", readable_files())
def test_replaced_names_do_not_occur(name: str) -> None:
    text = Path(ROOT / name).read_text(encoding="utf-8")
    if ROOT / name == GLOSSARY:
        text = "\n".join(" | ".join(row[:3]) for row in entries())
    assert replaced_names(text) == []


def test_replaced_names_are_found() -> None:
    assert replaced_names("A Ladder of the paper's\n  form") == ["ladder", "paper's form"]
    assert replaced_names("encode --prng philox") == ["--prng"]
    assert replaced_names("bladder, the package prng, a rung") == []
