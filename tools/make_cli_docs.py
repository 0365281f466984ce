"""Write docs/cli.md and docs/options.md from the code, or check that they are up to date.

    python tools/make_cli_docs.py [--check]

docs/cli.md has the help of every command, as it prints it; docs/options.md has every option of `encode`, `encode-delta`
and `sweep`, with its name in Python, its flag and its default.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import nola_codec
from nola_codec.api import keywords
from nola_codec.cli import COMMANDS, group
from nola_codec.cli.help import HELP_NAMES
from nola_codec.encoder.options import EncodeOptions

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 100
NOTE = "<!-- Written by tools/make_cli_docs.py; a test compares it with the code. -->"


def command_of(name: str) -> click.Command:
    """The command of a name."""
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def help_text(name: str = "") -> str:
    """The help that `nola-codec NAME -h` prints in a wide terminal."""
    settings: dict[str, Any] = {**HELP_NAMES, "terminal_width": WIDTH, "max_content_width": WIDTH}
    parent = click.Context(group, info_name="nola-codec", **settings)
    if not name:
        return group.get_help(parent)
    command = command_of(name)
    return command.get_help(click.Context(command, info_name=name, parent=parent, **settings))


def cli_page() -> str:
    """The text of docs/cli.md."""
    lines = [
        "# Commands", "", NOTE, "",
        "Results go to standard output; progress and messages go to standard error. `--json` prints one JSON document "
        "for programs. Outputs appear whole or not at all, and nothing is overwritten without `-f`.", "",
        "```", help_text(), "```",
    ]  # fmt: skip
    for name, summary in COMMANDS.items():
        lines += ["", f"## {name}", "", summary, "", "```", help_text(name), "```"]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def described_items(text: str, section: str) -> dict[str, str]:
    """Names and descriptions of a section of a docstring, such as "Args"."""
    _, _, found = text.partition(f"{section}:\n")
    found = re.split(r"^\w", found, maxsplit=1, flags=re.MULTILINE)[0]
    items = re.finditer(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", found, re.MULTILINE)
    return {item[1]: re.sub(r"\s+", " ", item[2]) for item in items}


def keyword_docs(typed: type) -> dict[str, str]:
    """Names and descriptions of the typed options; the classes of `keywords` share them."""
    classes = (keywords.CodingKeywords, keywords.RateKeywords, keywords.EncodeKeywords, typed)
    found: dict[str, str] = {}
    for documented in classes:
        found |= described_items(inspect.getdoc(documented) or "", "Attributes")
    return found


def flags(name: str) -> dict[str, str]:
    """The flags of a command, by the name of the option."""
    return {
        str(option.name): ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
        for option in command_of(name).params
        if isinstance(option, click.Option)
    }


def default_text(value: object) -> str:
    """A default as a table shows it."""
    if value is None or value is inspect.Parameter.empty or value is dataclasses.MISSING:
        return ""
    return f"`{value!r}`"


def table(function: Any, command: str, typed: type) -> Iterator[str]:
    """Rows of all options of a function: its own keywords, then the typed ones."""
    own = described_items(inspect.getdoc(function) or "", "Args")
    shown = flags(command)
    shown |= {"errors": shown["errors"]} if "errors" in shown else {}
    yield "| Python | flag | default | meaning |"
    yield "|---|---|---|---|"
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "options":
            continue
        flag = shown.get({"overwrite": "force"}.get(name, name), "")
        yield f"| `{name}` | {flag} | {default_text(parameter.default)} | {cell(own[name])} |"
    described = keyword_docs(typed)
    defaults = {field.name: field.default for field in dataclasses.fields(EncodeOptions)}
    for name in keywords.keyword_names(typed):
        yield f"| `{name}` | {shown.get(name, '')} | {default_text(defaults[name])} | {cell(described[name])} |"


def cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return text.replace("``", "`").replace("||", r"\|\|").replace(" | ", r" \| ")


def command_only(function: Any, command: str, typed: type) -> Iterator[str]:
    """Rows of the flags that have no keyword of the same name."""
    known = {*inspect.signature(function).parameters, *keywords.keyword_names(typed), "force", "help"}
    yield "| flag | meaning |"
    yield "|---|---|"
    for option in command_of(command).params:
        if isinstance(option, click.Option) and not option.hidden and option.name not in known:
            yield f"| {flags(command)[str(option.name)]} | {cell(option.help or '')} |"


def options_page() -> str:
    """The text of docs/options.md."""
    pages = (
        ("encode", nola_codec.encode, keywords.EncodeKeywords),
        ("encode-delta", nola_codec.encode_delta_bytes, keywords.DeltaKeywords),
        ("sweep", nola_codec.sweep, keywords.SweepKeywords),
    )
    lines = [
        "# Options of encoding", "", NOTE, "",
        "Each row is a keyword of the function in Python and the flag of the command that does the same. An empty "
        "default means that the option is not given.",
    ]  # fmt: skip
    for command, function, typed in pages:
        name = function.__name__.removesuffix("_bytes")
        lines += ["", f"## `nola_codec.{name}`, `nola-codec {command}`", "", *table(function, command, typed)]
        lines += ["", "Flags of the command alone:", ""]
        lines += command_only(function, command, typed)
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "options.md": options_page}


def main() -> None:
    """Write the pages, or compare them and end with status 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    check = parser.parse_args().check
    stale = False
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if not check:
            path.write_text(text, encoding="utf-8")
            continue
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != text:
            stale = True
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, "the code"))
    if stale:
        sys.exit("out of date: run python tools/make_cli_docs.py")


if __name__ == "__main__":
    main()
