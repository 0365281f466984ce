"""Every code block of the README and of docs/ does what the page says, in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from snippets import Block, Session, blocks, commands, matches, own_command

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/nola-codec/nola-codec"
# Pages that another test runs, because they need models of their own or register a dialect.
OWN_TEST = {
    "publish.md": "tests/docs/test_hub_doc.py",
    "checkpoints.md": "tests/docs/test_checkpoints_doc.py",
    "training.md": "tests/docs/test_training_doc.py",
    "live-models.md": "tests/docs/test_live_models_doc.py",
    "hub.md": "tests/docs/test_hub_doc.py",
    "add-a-dialect.md": "tests/unit/adapters/test_registry.py",
}
DOCS = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
PAGES = [ROOT / "README.md", *(page for page in DOCS if page.name not in OWN_TEST)]
OTHERS = [page for page in (ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md") if page.is_file()]
TEXTS = [ROOT / "README.md", *DOCS, *OTHERS]

# A source distribution has the pages, but not all that they link to.
needs_checkout = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="no examples/: not a whole checkout")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
@pytest.mark.filterwarnings("ignore")  # of the libraries that a page calls
def test_page_runs_as_printed(page: Path, folder: Path) -> None:
    session = Session(folder)
    for block in blocks(page):
        if not block.reason:
            session.run(block)


@pytest.mark.parametrize("page", [page for page in DOCS if page.name in OWN_TEST], ids=name_of)
def test_page_has_a_test_of_its_own(page: Path) -> None:
    assert page.name in (ROOT / OWN_TEST[page.name]).read_text(encoding="utf-8")


LEFT_OUT = [block for page in PAGES for block in blocks(page) if block.reason]


@pytest.mark.parametrize("block", LEFT_OUT, ids=[block.place for block in LEFT_OUT])
def test_block_left_out(block: Block) -> None:
    assert len(block.reason.split()) >= 3, f"{block.place}: say why it is not run"
    pytest.skip(block.reason)  # so that pytest lists it


@needs_checkout
@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(HOME):
            match = re.fullmatch(r"/(?:blob|raw|tree)/main/(.+)", target.removeprefix(HOME))
            path = ROOT / match[1] if match else ROOT
        elif re.match(r"[a-z]+:", target):
            continue
        else:
            assert page != ROOT / "README.md", f"{link}: the README's links are absolute, for package indexes"
            path = (page.parent / target) if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@needs_checkout
@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths with a folder of the package or of the repository in front: `encoder/search.py`, `tests/kat`."""
    package = ROOT / "nola_codec"
    tops = {path.name for top in (ROOT, package) for path in top.iterdir() if path.is_dir() and path.name[0] != "."}
    text = re.sub(r"```(console|bash|python)\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"(?<![\w./-])(\w+/[\w./-]*\w/?|\w+/(?=\W))", text)
    wanted = {path for path in named if path.split("/")[0] in tops - {"model", "demo"}}
    wanted |= {path for path in named if path.startswith("model/") and path.endswith(".py")}
    assert sorted(path for path in wanted if not ((ROOT / path).exists() or (package / path).exists())) == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_blocks_and_their_reasons(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n<!-- not run: needs a day -->\n```bash\nsleep 9\n```\n```\nnone\n```\n")
    found = blocks(page)
    assert [(b.language, b.line, b.text, b.reason) for b in found] == [
        ("python", 2, "x = 1\n", ""),
        ("bash", 6, "sleep 9\n", "needs a day"),
    ]


def test_commands_and_what_they_print() -> None:
    text = "$ echo a \\\n  b\na b\n$ true\n"
    assert list(commands(text)) == [("echo a \\\n  b", ["a b"]), ("true", [])]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("nola-codec encode 'my lora' -o a.nola", (["encode", "my lora", "-o", "a.nola"], "")),
        ("nola-codec inspect a.nola --json > a.json", (["inspect", "a.nola", "--json"], "a.json")),
        ("nola-codec inspect a.nola  # what it holds, -o is not needed", (["inspect", "a.nola"], "")),
        ("nola-codec encode a -o - > a.nola", None),
        ("nola-codec inspect a.nola | head", None),
        ("HF_HUB_OFFLINE=1 nola-codec pull a", None),
        ("nola-codec inspect *.nola", None),
        ("nola-codec encode-many loras -o files", None),
        ("echo a", None),
    ],
)
def test_what_needs_a_shell(script: str, found: object) -> None:
    assert own_command(script) == found


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (["a 1"], ["a 1"], True),
        (["a 1"], ["a 2"], False),
        (["a ... b"], ["a 17 b"], True),
        (["a ... b"], ["a 17 c"], False),
        (["a", "...", "z"], ["a", "b", "c", "z"], True),
        (["a", "...", "z"], ["a", "b"], False),
        (["a"], ["a", "b"], False),
    ],
)
def test_match(expected: list[str], found: list[str], same: bool) -> None:
    assert matches(expected, found) is same


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "assert 1 == 2"),
        ("console", "$ nola-codec inspect nothing.nola"),
        ("console", "$ echo a\nb"),
        ("bash", "false\ntrue\n"),
    ],
)
def test_a_wrong_block_fails(language: str, text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\n{text}\n```\n")
    (block,) = blocks(page)
    with pytest.raises(AssertionError):
        Session(tmp_path).run(block)


def test_blocks_of_a_page_share_their_names(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n```python\nassert x == 1\n```\n")
    session = Session(tmp_path)
    for block in blocks(page):
        session.run(block)
    assert session.names["x"] == 1
