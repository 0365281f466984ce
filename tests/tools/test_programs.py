"""Every program and module under tools/ can be imported, and every program explains itself with `--help`."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
FILES = {path.relative_to(TOOLS).as_posix(): path for path in sorted(TOOLS.rglob("*.py"))}
GUARD = 'if __name__ == "__main__":'
PROGRAMS = [name for name, path in FILES.items() if GUARD in path.read_text(encoding="utf-8")]
MODULES = [name for name in FILES if name not in PROGRAMS]


def tool_modules() -> dict[str, ModuleType]:
    """The imported modules that lie under tools/, by their names."""
    found = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    return {name: sys.modules[name] for name, file in found.items() if file.startswith(f"{TOOLS}{os.sep}")}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file under tools/ profits from what an earlier one imported, or from a folder it put on the path."""
    before = tool_modules()
    outside = [entry for entry in sys.path if TOOLS not in (Path(entry).resolve(), *Path(entry).resolve().parents)]
    for name in before:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", outside)
    yield
    for name in tool_modules():
        del sys.modules[name]
    sys.modules.update(before)


def run(path: Path, name: str) -> None:
    """Run a file as Python does when it is named on the command line: its folder comes first on the path."""
    folder = path.parent.parent if (path.parent / "__init__.py").is_file() else path.parent
    sys.path.insert(0, str(folder))
    runpy.run_path(str(path), run_name=name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(FILES[name]), "--help"])
    with pytest.raises(SystemExit) as ended:
        run(FILES[name], "__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: {Path(name).name}" in printed
    assert "--help" in printed


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported(name: str) -> None:
    run(FILES[name], "module_of_tools")
