"""The files, functions and classes that the pages and the packages' docstrings name are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nola_codec.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nola_codec"
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(p for p in (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md") if p.is_file()),
]
INTERNAL = [page for page in PAGES if page.name in ("architecture.md", "add-a-dialect.md", "glossary.md")]
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)

SUFFIXES = (".py", ".md", ".json", ".nola")
OTHERS = {"model", "report", "task", "torch", "numpy"}
"""First words of dotted names in the pages that are variables of an example or other packages, not modules."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The names that a module defines, imports or exports; methods and attributes as `Class.name` too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        found |= set(names_of(node))
        if isinstance(node, ast.ClassDef):
            members = {name for item in node.body for name in names_of(item)}
            members |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_self(n.value)}
            found |= members | {f"{node.name}.{name}" for name in members}
    return frozenset(found)


def names_of(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        if isinstance(node.value, ast.Dict):  # names that a package imports when they are first used
            yield from (key.value for key in node.value.keys if isinstance(key, ast.Constant))  # type: ignore[misc]


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@cache
def modules() -> dict[str, list[Path]]:
    """The files of each module by its last name; a package's is its `__init__.py`."""
    found: dict[str, list[Path]] = {"nola_codec": [PACKAGE / "__init__.py"]}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(path.parent.name if path.stem == "__init__" else path.stem, []).append(path)
    return found


@cache
def classes() -> frozenset[str]:
    return frozenset(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )


def exists(dotted: str) -> bool:
    """True if `module.name`, `package.module.name`, `package.module` or `Class.member` is in the package."""
    *first, last = dotted.split(".")
    owner = first[-1]
    if owner in classes():
        return any(f"{owner}.{last}" in defined_in(path) for path in PACKAGE.rglob("*.py"))
    if any(last in defined_in(path) for path in modules().get(owner, ())):
        return True
    return any(path.parent.name == owner or path.parent.parent.name == owner for path in modules().get(last, ()))


def dotted_names(text: str) -> list[str]:
    """`a.b` in backticks, alone or called, whose first word is a module, a package or a class of nola-codec."""
    found = re.findall(r"`((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*)(?:\([^`]*\))?`", text)
    known = (modules().keys() | classes()) - OTHERS
    return [name for name in found if name.split(".")[0] in known and not name.endswith(SUFFIXES)]


def stages(text: str) -> list[tuple[str, str]]:
    """(function, file) of each line of a picture that has a function on the left and a file on the right."""
    return re.findall(r"^ +\| +([A-Za-z_]\w*) .* (\w[\w/]*\.py)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_dotted_names_exist(page: Path) -> None:
    assert [name for name in dotted_names(page.read_text(encoding="utf-8")) if not exists(name)] == []


@pytest.mark.parametrize("page", INTERNAL, ids=name_of)
def test_functions_and_classes_exist(page: Path) -> None:
    """Names of code in backticks, such as `write_file` or `EncodeJob`, occur in the code; replaced ones may not."""
    text = page.read_text(encoding="utf-8")
    if page.name == "glossary.md":
        text = re.sub(r"\|[^|\n]*\|$", "", text, flags=re.MULTILINE)  # the column of earlier names
    text = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    named = set(re.findall(r"`(_?[a-z]\w*_\w+|[A-Z]+[a-z]\w*|_[A-Z_]+)`", text))
    code = "\n".join(path.read_text(encoding="utf-8") for top in ("nola_codec", "tests") for path in files_of(top))
    words = set(re.findall(r"\w+", code))
    assert sorted(named - words - {"Sesame"}) == []


def files_of(top: str) -> list[Path]:
    return sorted(path for path in (ROOT / top).rglob("*.py") if path != Path(__file__))


def test_each_function_of_a_picture_is_in_the_file_beside_it() -> None:
    found = stages((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(found) > 30
    assert [(function, file) for function, file in found if function not in defined_in(PACKAGE / file)] == []


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_says_which_file_is_which(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    if package.name == "cli":  # a command is in the file of its name
        files -= {path.name for path in package.glob("*.py") if path.read_text().startswith('"""`nola-codec ')}
    named = set(re.findall(r"\b\w+\.py\b", text))
    assert sorted(files - named) == []
    assert sorted(path for path in re.findall(r"\b[\w/]+\.py\b", text) if not is_file_of(path, package)) == []


def is_file_of(path: str, package: Path) -> bool:
    return (package / path).is_file() or (PACKAGE / path).is_file()


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("nola_codec.encode", True),
        ("nola_codec.encodes", False),
        ("contract.Dialect", True),
        ("pipeline.encode_adapter", True),
        ("pipeline.encode_adapters", False),
        ("adapters.registry", True),
        ("Dialect.detect", True),
        ("Dialect.detects", False),
    ],
)
def test_a_wrong_name_is_found(name: str, there: bool) -> None:
    assert exists(name) is there


def test_the_readme_names_the_version() -> None:
    assert f"**Status: {__version__}.**" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_wrong_picture_is_found() -> None:
    assert stages("     |  open_job      the order            encoder/job.py\n") == [("open_job", "encoder/job.py")]
    assert stages("  Container   header\n     |\n     |  write  all of it\n") == []
    assert "open_jobs" not in defined_in(PACKAGE / "encoder" / "job.py")
