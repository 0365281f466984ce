"""Errors as one line for people: where, what was expected, what was found, and what to do next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TextIO

import click

from nola_codec.errors import DISK_FULL, NolaError, OutputExists
from nola_codec.rendering import escape, render_row

_LONGEST_MESSAGE = 800  # characters
_LISTED = 3  # items of a list that one line shows
_TEMPORARY_NAME = re.compile(r"\.([^/\\]+)\.[0-9a-f]{12}\.tmp")
_FILE_NAME = re.compile(r"\.(?:nola|safetensors|bin|pth?|ckpt|npz|gguf|jsonl?|csv|txt|parquet|zip)$", re.IGNORECASE)
STDOUT_NAME = "standard output"
_CUT_SHORT = "the file was cut short; copy or download it again"
_DAMAGED = "the file is damaged; copy or download it again"

USAGE_CODES = ("option", "target-type")
"""Codes of errors in what was typed, not in what was read: exit status 2."""

NEXT_STEPS = {
    "truncated": _CUT_SHORT,
    "header-checksum": _DAMAGED,
    "section-checksum": _DAMAGED,
    "content-checksum": _DAMAGED,
    "factors-checksum": "the file or this machine is at fault; `nola-codec selftest` checks the machine",
    "base-mismatch": "is this the right base model?",
    "no-directory": "make it first, or give another path",
    "unreachable": "allow more",
}
"""What to do next, by the code of an error whose message does not say it."""


def describe_error(error: NolaError) -> str:
    """Say what happened and what to do next, with the code in brackets unless the mistake is in what was typed."""
    if isinstance(error, OutputExists):
        return f"{error}; -f overwrites it" if error.code == OutputExists.default_code else str(error)
    if error.code in USAGE_CODES:
        return str(error)
    message = shorten_list(str(error))
    step = _missing_step(error.where) if error.code == "not-found" else NEXT_STEPS.get(error.code)
    if step and not message.endswith("?"):  # a message that ends with a question has said what to look at
        message += f"; {step}"
    return f"{message} [{error.code}]"


def _missing_step(name: str | None) -> str | None:
    """Return what to type in place of a name that is not there; None if there is nothing to say."""
    if name == "-":
        return "standard input is not read, since readers go back and forth in a file: give the name of one"
    return hub_hint(name)


def hub_hint(name: str | None) -> str | None:
    """Return what to type for a repository of the Hub, if a name that is no path looks like one; else None."""
    from nola_codec.integrations.hub.addresses import is_model_name

    name = (name or "").removesuffix("/config.json")  # the file that is read first of a model's directory
    if "/" not in name or not is_model_name(name) or _FILE_NAME.search(name) or Path(name).parent.exists():
        return None
    return f"a repository of the Hugging Face Hub is hf://{name}"


def describe_system_error(error: OSError) -> str:
    """Say what the system refused, under the name that the user gave, not that of a temporary file."""
    is_missing = isinstance(error, FileNotFoundError)
    reason = "no such file or directory" if is_missing else error.strerror or str(error)
    if error.errno in DISK_FULL:
        reason += "; free some space, or write to another disk"
    if error.filename is None:
        return reason
    name = _TEMPORARY_NAME.sub(lambda found: found[1], str(error.filename))
    hint = _missing_step(name) if is_missing else None
    return f"{name}: {reason}{f'; {hint}' if hint else ''}{' [not-found]' if is_missing else ''}"


def shorten_list(message: str) -> str:
    """Put a message that lists its items line by line on one line, with no more than a few of them."""
    head, colon, listed = message.partition(":\n  ")
    items = listed.split("\n  ")
    shown = "; ".join(items[:_LISTED])
    more = f"; and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{head}: {shown}{more}" if colon else message


def one_line(message: str) -> str:
    """Make a message one short line: names that strangers gave may hold new lines, terminal escapes, or a megabyte."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
    return escape(message)


def screen_width(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None for what is no terminal, where lines may have any length."""
    if not stream.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def break_lines(label: str, sentence: str, stream: TextIO) -> str:
    """Return a label and a sentence as one line; for a terminal as lines of at most 80 columns."""
    width = screen_width(stream)
    start = f"{label} " if label else ""
    if width is None:
        return f"{start}{escape(sentence)}"
    return render_row(label, sentence, len(start), min(80, width) - 1)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text of some lines on stdout, or on stderr; escapes that strangers put into names have no effect."""
    click.echo(escape(text, keep="\n\t"), err=err, nl=nl)
