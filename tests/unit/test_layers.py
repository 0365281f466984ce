"""The layers of docs/architecture.md hold, and the check that says so would notice if they did not."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A file of the package, a line added at its end, and the contract that the line breaks.
OFFENCES = {
    "upward": ("errors.py", "from nola_codec.model import header\n", "Imports go strictly downward"),
    "sideways": ("quant/__init__.py", "import nola_codec.entropy\n", "Imports go strictly downward"),
    "unplaced": ("helpers.py", "", "Imports go strictly downward"),
    "lazy torch": ("container/__init__.py", "def f():\n    import torch\n", "No torch below the decoder"),
    "click": ("fit/__init__.py", "import click\n", "click is the command line's alone"),
}


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"], cwd=root, capture_output=True, text=True, timeout=60
    )


def test_layers_are_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("offence", OFFENCES)
def test_a_broken_layer_is_noticed(offence: str, tmp_path: Path) -> None:
    name, line, contract = OFFENCES[offence]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "nola_codec", tmp_path / "nola_codec", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "nola_codec" / name).open("a", encoding="utf-8") as file:
        file.write("\n" + line)
    result = lint(tmp_path)
    assert result.returncode == 1
    assert "BROKEN" in next(row for row in result.stdout.splitlines() if contract in row), result.stdout


def test_the_root_is_asked_for_its_version_alone() -> None:
    """import-linter sees that a module imports the root, not which name; the root's names lead to the top layers."""
    asked = [
        (path.relative_to(ROOT).as_posix(), alias.name)
        for path in (ROOT / "nola_codec").rglob("*.py")
        if path.relative_to(ROOT / "nola_codec").parts[0] not in ("cli", "integrations")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module, node.level) == ("nola_codec", 0)
        for alias in node.names
        if not (ROOT / "nola_codec" / alias.name).is_dir() and not (ROOT / "nola_codec" / f"{alias.name}.py").is_file()
    ]
    assert {name for _, name in asked} <= {"__version__"}, asked


def test_torch_and_click_stay_unloaded_below_the_decoder() -> None:
    code = (
        "import importlib, sys\n"
        "names = 'errors model stores checkpoints arrays prng basis quant entropy container fit adapters'\n"
        "for name in names.split():\n"
        "    importlib.import_module('nola_codec.' + name)\n"
        "print(sorted({'torch', 'click'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")
