"""Find and run the code blocks of a Markdown page, in order, as a reader would.

Blocks of ``python`` share one namespace. A block of ``console`` holds commands after ``$ `` and, below each, what it
prints; a block of ``bash`` is one script. Where output is printed, it must match; ``...`` in a line stands for any
text, a line of ``...`` alone for any lines. A block is left out only if the line above it gives the reason:
``<!-- not run: it takes hours -->``.

A command of nola-codec that needs nothing of the shell runs in the process of the test, where its libraries are loaded
already. Others run in a shell.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LANGUAGES = ("python", "console", "bash")
_PROGRESS = re.compile(r"\d+ (s|min \d\d s|h \d\d min): ")
"""A line of progress, which a slow machine prints after half a minute."""
_REASON = re.compile(r"<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page: The file.
        line: Number of the line after the fence, from 1.
        language: One of LANGUAGES.
        text: What stands between the fences.
        reason: Why it is not run; empty if it is run.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def place(self) -> str:
        """``README.md:12``."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in the languages that are run."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, fence, reason = 0, "", ""
    for number, line in enumerate(lines, 1):
        match = re.match(r"\s*(`{3,})(\w*)", line)
        if not fence and match:
            start, fence, language = number, match[1], match[2]
            marker = _REASON.search(lines[number - 2]) if number > 1 else None
            reason = marker[1] if marker else ""
        elif fence and line.strip() == fence:
            if language in LANGUAGES:
                found.append(Block(page, start + 1, language, "\n".join(lines[start : number - 1]) + "\n", reason))
            fence = ""
    assert not fence, f"{page.name}: the block that begins in line {start} has no end"
    return found


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that are printed below it."""
    command, printed = "", []
    continued = False
    for line in text.splitlines():
        if continued:
            command += "\n" + line
        elif line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], []
        else:
            assert command, f"a console block begins with {line!r}, not with a command"
            printed.append(line)
        continued = (continued or line.startswith("$ ")) and line.endswith("\\")
    if command:
        yield command, printed


def without_progress(printed: str) -> list[str]:
    """The lines of an output without those of progress."""
    return [line for line in printed.splitlines() if not _PROGRESS.match(line)]


def matches(expected: Sequence[str], found: Sequence[str]) -> bool:
    """True if the printed lines are those expected, with ``...`` for what may be anything."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part.rstrip()) for part in line.split("...")) + r"[ ]*\n"
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in found)) is not None


def own_command(script: str) -> tuple[list[str], str] | None:
    """The arguments of a command of nola-codec, and the file that its output goes to; None for what needs a shell.

    Commands for many files start processes that import the main module again, which must be theirs.
    """
    match = re.fullmatch(
        r"nola-codec (?!\w+-many)(?P<arguments>[^|&;<>$`*\n]+?)(?: > (?P<target>[\w./-]+))?\n?", script
    )
    if match is None or " - " in f"{match['arguments']} ":  # "-" is standard output, which must be a real file
        return None
    return shlex.split(match["arguments"], comments=True), match["target"] or ""


@dataclass
class Session:
    """What the blocks of one page share: a folder, a namespace of Python, and programs under their own names."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> None:
        """Run one block; raise AssertionError with its place if it does not do what the page says."""
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's own lines
            exec(compile(source, str(block.page), "exec"), self.names)
        elif block.language == "bash":
            self._shell(block, "set -e\n" + block.text)
        else:
            for command, expected in commands(block.text):
                found = self._shell(block, command)
                assert not expected or matches(expected, found), (
                    f"{block.place}: $ {command}\nthe page says\n  " + "\n  ".join(expected)
                    + "\nbut it prints\n  " + "\n  ".join(found)
                )  # fmt: skip

    def _shell(self, block: Block, script: str) -> list[str]:
        own = own_command(script.replace("\\\n", " "))
        if own is not None:
            return self._call(block, script, *own)
        programs = self.folder / ".programs"
        if not programs.is_dir():
            programs.mkdir()
            for name, arguments in (("nola-codec", "-m nola_codec"), ("python", "")):
                program = programs / name
                program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
                program.chmod(0o755)
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, f"{block.place}: exit status {done.returncode} from\n{script}\n{done.stdout}"
        return without_progress(done.stdout)

    def _call(self, block: Block, script: str, arguments: list[str], target: str) -> list[str]:
        """Run a command of nola-codec in this process."""
        from nola_codec.cli import main

        printed = io.StringIO()
        out = io.StringIO() if target else printed
        status: Any = 0
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with redirect_stdout(out), redirect_stderr(printed):
                main(arguments)
        except SystemExit as exit_:
            status = exit_.code or 0
        finally:
            os.chdir(before)
        if target:
            (self.folder / target).write_text(out.getvalue(), encoding="utf-8")
        assert status == 0, f"{block.place}: exit status {status} from\n{script}\n{printed.getvalue()}"
        return without_progress(printed.getvalue())
