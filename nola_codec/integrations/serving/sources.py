"""Where adapters are looked for by name: directories, URLs, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nola_codec.errors import AdapterError, NolaError
from nola_codec.integrations.serving.names import file_name, is_name
from nola_codec.remote import is_url, shown_url

HUB = "hf://"


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


class UrlSource(Source):
    """A URL that names are appended to: the adapter ``team/task`` is ``<prefix>/team/task.nola``."""

    def __init__(self, prefix: str) -> None:
        """Take the prefix, as fsspec writes URLs.

        Raises:
            NolaError: ``adapter-source``: it has a query or a fragment, or is a chain of URLs: a name could not follow.
        """
        self.prefix = prefix.rstrip("/")
        if any(mark in prefix for mark in ("?", "#", "::")):
            message = f"expected a URL without ?, # and ::, since names follow it, found {shown_url(prefix)}"
            raise NolaError(message, code="adapter-source")

    def __repr__(self) -> str:
        return shown_url(self.prefix)

    def find(self, name: str) -> Path | None:
        """Return a local copy of the file, or None if the server has none. Errors are those of `remote.fetch`."""
        from nola_codec.remote import fetch

        try:
            return fetch(f"{self.prefix}/{file_name(name)}")
        except NolaError as error:
            if error.code == "not-found":
                return None
            raise

    def is_remote(self) -> bool:
        """Return True."""
        return True


class HubSource(Source):
    """Repositories of the Hugging Face Hub.

    With ``hf://`` the name of an adapter is that of a repository, ``owner/repo``; with ``hf://owner`` it is ``repo``.
    The repository has one `.nola` file, or the name goes on with the path of one: ``owner/repo/task``. With
    ``hf://owner/repo`` it is the path of a file in that repository.
    """

    def __init__(self, prefix: str) -> None:
        """Take ``hf://``, ``hf://owner`` or ``hf://owner/repo``.

        Raises:
            NolaError: ``adapter-source``.
        """
        place = prefix.removeprefix(HUB).strip("/")
        self.parts = tuple(place.split("/")) if place else ()
        if len(self.parts) > 2 or (place and not is_name(place)):
            message = f"expected hf://, hf://OWNER or hf://OWNER/REPO, found {prefix!r}"
            raise NolaError(message, code="adapter-source")

    def __repr__(self) -> str:
        return HUB + "/".join(self.parts)

    def find(self, name: str) -> Path | None:
        """Return the path of the file in the cache of the Hub, or None. Errors are those of `integrations.hub.pull`."""
        parts = (*self.parts, *name.split("/"))
        if len(parts) < 2 or ":" in name:
            return None
        from nola_codec.integrations.hub import pull

        file = file_name("/".join(parts[2:])) if parts[2:] else None
        try:
            return pull("/".join(parts[:2]), file).path
        except NolaError as error:
            if error.code in ("not-found", "no-file"):
                return None
            raise

    def is_remote(self) -> bool:
        """Return True."""
        return True


def open_sources(sources: Sequence[str | os.PathLike[str]]) -> tuple[Source, ...]:
    """Return the sources that paths of directories, URLs and ``hf://...`` mean.

    Raises:
        NolaError: ``adapter-source``: there are none, or one of them cannot be.
    """
    if not sources:
        raise NolaError("expected at least one directory or URL to look for adapters in", code="adapter-source")
    return tuple(_open_source(source) for source in sources)


def _open_source(source: str | os.PathLike[str]) -> Source:
    if isinstance(source, str) and source.startswith(HUB):
        return HubSource(source)
    if is_url(source):
        return UrlSource(str(source))
    return DirectorySource(source)
