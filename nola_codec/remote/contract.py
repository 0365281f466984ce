"""`RemoteFile`: what every protocol offers of a file that can be read, and the errors that a second try may mend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nola_codec.errors import RemoteError
from nola_codec.remote.addresses import shown_url


class TransientError(Exception):
    """A failure that may be gone a moment later: a lost connection, a busy server, a body that ended early.

    Attributes:
        error: The error for the user, if the failure stays.
        wait: The seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, error: RemoteError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class RemoteFile(Protocol):
    """A file behind a URL. The first answer fixes its version; bytes of another version are an error.

    Attributes:
        name: The URL without secrets, for messages.
        has_ranges: False after an answer that gave the whole file although a part was asked for.
    """

    name: str
    has_ranges: bool

    @property
    def size(self) -> int | None:
        """The length in bytes; None until the first answer, and for a server that does not tell it."""

    @property
    def tag(self) -> str:
        """A mark that changes with the bytes, such as an ETag; empty if there is none."""

    def stream(self, start: int, stop: int | None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `stop` (None: the end), in one try.

        Fewer bytes come if the file ends before, and more if the server has no ranges: then all up to the end.

        Raises:
            TransientError: Another try may succeed.
            RemoteError: It may not: ``not-found``, ``forbidden``, ``remote-changed`` and others.
        """

    def close(self) -> None:
        """Give up connections."""


class VersionPin:
    """The size and the tag of a file, fixed by the first answer."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.tag = ""
        self._is_fixed = False

    def fix(self, name: str, size: int | None, tag: str) -> None:
        """Fix the version, or compare it with the one that is fixed. Raises RemoteError ``remote-changed``."""
        if not self._is_fixed:
            self.size, self.tag, self._is_fixed = size, tag, True
            return
        has_other_size = None not in (size, self.size) and size != self.size
        if has_other_size or (tag and self.tag and tag != self.tag):
            raise changed(name)
        if self.size is None:
            self.size = size


class VersionedFile:
    """The part of a `RemoteFile` that all protocols share: its name, and the version that the first answer fixes.

    Attributes:
        name, has_ranges: As in `RemoteFile`.
    """

    def __init__(self, url: str) -> None:
        """Name a file; nothing is asked yet."""
        self.name = shown_url(url)
        self.has_ranges = True
        self._url = url
        self._pin = VersionPin()

    @property
    def size(self) -> int | None:
        """The length in bytes; None while it is not known."""
        return self._pin.size

    @property
    def tag(self) -> str:
        """The ETag, the date of the last change, or what else marks a version; empty if there is nothing."""
        return self._pin.tag


def changed(name: str) -> RemoteError:
    """Return the error for a file that was replaced while it was read."""
    message = "the file was replaced by another one while it was read; run the command again"
    return RemoteError(message, code="remote-changed", where=name)
