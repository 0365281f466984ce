"""docs/cli.md and docs/options.md say what the code says, and leave nothing out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from nola_codec.api import keywords
from nola_codec.cli import COMMANDS, group

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli_docs", ROOT / "tools" / "make_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "options.md"])
def test_a_page_is_up_to_date(name: str, tool: ModuleType) -> None:
    assert set(tool.PAGES) == {"cli.md", "options.md"}
    made = tool.PAGES[name]()
    assert made == (ROOT / "docs" / name).read_text(encoding="utf-8"), "run python tools/make_cli_docs.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {name}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert COMMANDS[name] in section
    command = group.get_command(click.Context(group), name)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            for flag in (*option.opts, *option.secondary_opts):
                assert re.search(rf"(^|[ /]){re.escape(flag)}\b", section, re.MULTILINE), flag


def test_every_option_of_encode_is_described() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert not [row for row in rows.values() if re.search(r"\|\s*\|$", row)], "a row without a meaning"
    for name in keywords.keyword_names(keywords.EncodeKeywords):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rows[name])]
        assert len(cells) == 6
        assert len(cells[4]) > 20, name
