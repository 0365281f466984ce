"""Find the `.nola` file of an adapter by its name.

A name comes with a request from outside. So it may have letters, digits and ``. _ - + = :`` alone, in up to four parts
with slashes between them, and no part begins with a dot. Such a name cannot leave a directory, and it has no meaning in
a URL but that of a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nola_codec.errors import AdapterError, NolaError

SUFFIX = ".nola"

_PART = r"[A-Za-z0-9][A-Za-z0-9._+=-]*(?::[A-Za-z0-9._+=-]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,3}}")
_MAX_LENGTH = 200


def check_name(name: str) -> None:
    """Refuse a name that could mean anything but an adapter in a source.

    Raises:
        AdapterError: ``adapter-name``.
    """
    if len(name) <= _MAX_LENGTH and _NAME.fullmatch(name) and ".." not in name:
        return
    message = (
        f"expected the name of an adapter: at most {_MAX_LENGTH} letters, digits and . _ - + = :, in up to four parts "
        f"with / between them, found {name[:80]!r}"
    )
    raise AdapterError(message, code="adapter-name")


class Source:
    """A place where adapters are looked for by name."""

    def find(self, name: str) -> Path | None:
        """Return the path of the `.nola` file of a checked name, or None if this source has none.

        Raises:
            AdapterError, NolaError: The source may have it, but it cannot be had.
        """
        raise NotImplementedError

    def is_remote(self) -> bool:
        """Return True if `find` may ask a server."""
        return False


class DirectorySource(Source):
    """A directory of files: the adapter ``team/task`` is ``team/task.nola`` in it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Take a directory.

        Raises:
            NolaError: ``adapter-source``: there is no such directory.
        """
        self.directory = Path(directory).expanduser()
        if not self.directory.is_dir():
            raise NolaError("no such directory of adapters", code="adapter-source", where=str(directory))

    def __repr__(self) -> str:
        return str(self.directory)

    def find(self, name: str) -> Path | None:
        """Return the path of the file, or None.

        Raises:
            AdapterError: ``adapter-name``: the file is a link that leads out of the directory.
        """
        path = self.directory / file_name(name)
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise AdapterError("a link that leads out of the directory of adapters", code="adapter-name", where=name)
        return path


def open_sources(sources: Sequence[str | os.PathLike[str]]) -> tuple[Source, ...]:
    """Return the sources that paths of directories mean.

    Raises:
        NolaError: ``adapter-source``: there are none, or one of them cannot be.
    """
    if not sources:
        raise NolaError("expected at least one directory or URL to look for adapters in", code="adapter-source")
    return tuple(_open_source(source) for source in sources)


def _open_source(source: str | os.PathLike[str]) -> Source:
    return DirectorySource(source)


def file_name(name: str) -> str:
    return name if name.endswith(SUFFIX) else name + SUFFIX
