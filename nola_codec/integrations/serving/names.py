"""The names of adapters that a request from outside may have.

They have letters, digits and ``. _ - + = :`` alone, in up to four parts with slashes between them, and no part begins
with a dot. Such a name cannot leave a directory, and it has no meaning in a URL but that of a path.
"""

from __future__ import annotations

import re

from nola_codec.errors import AdapterError

SUFFIX = ".nola"

_PART = r"[A-Za-z0-9][A-Za-z0-9._+=-]*(?::[A-Za-z0-9._+=-]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,3}}")
_MAX_LENGTH = 200


def is_name(text: str) -> bool:
    """Return True for a text that may be the name of an adapter."""
    return len(text) <= _MAX_LENGTH and _NAME.fullmatch(text) is not None and ".." not in text


def check_name(name: str) -> None:
    """Refuse a name that could mean anything but an adapter in a source.

    Raises:
        AdapterError: ``adapter-name``.
    """
    if not is_name(name):
        message = (
            f"expected the name of an adapter: at most {_MAX_LENGTH} letters, digits and . _ - + = :, in up to four "
            f"parts with / between them, found {name[:80]!r}"
        )
        raise AdapterError(message, code="adapter-name")


def file_name(name: str) -> str:
    """Return the path of the file of an adapter in a source."""
    return name if name.endswith(SUFFIX) else name + SUFFIX
