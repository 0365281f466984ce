"""Errors as one line for people: where, what was expected, what was found, and what to do next."""

from __future__ import annotations

import re

from nola_codec.errors import NolaError, OutputExists

_LONGEST_MESSAGE = 800  # characters
_LISTED = 3  # items of a list that one line shows
_TEMPORARY_NAME = re.compile(r"\.([^/\\]+)\.[0-9a-f]{12}\.tmp")
_DAMAGED = "the file is damaged; copy or download it again"

USAGE_CODES = ("option", "target-type")
"""Codes of errors in what was typed, not in what was read: exit status 2."""

NEXT_STEPS = {
    "truncated": "the file was cut short; copy or download it again",
    "prelude-checksum": _DAMAGED,
    "header-checksum": _DAMAGED,
    "section-checksum": _DAMAGED,
    "content-checksum": _DAMAGED,
    "factors-checksum": "the file or this machine is at fault; `nola-codec selftest` checks the machine",
    "base-mismatch": "is this the right base model?",
    "no-directory": "make it first, or give another path",
    "unreachable": "allow more bytes, or a larger error",
}
"""What to do next, by the code of an error whose message does not say it."""


def describe_error(error: NolaError) -> str:
    """Say what happened and what to do next, with the code in brackets unless the mistake is in what was typed."""
    if isinstance(error, OutputExists):
        return f"{error}; -f overwrites it" if error.code == OutputExists.default_code else str(error)
    if error.code in USAGE_CODES:
        return str(error)
    step = NEXT_STEPS.get(error.code)
    return f"{shorten_list(str(error))}{f'; {step}' if step else ''} [{error.code}]"


def describe_system_error(error: OSError) -> str:
    """Say what the system refused, under the name that the user gave, not that of a temporary file."""
    if isinstance(error, FileNotFoundError):
        reason = "no such file or directory"
    else:
        reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    return f"{_TEMPORARY_NAME.sub(lambda found: found[1], str(error.filename))}: {reason}"


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
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
