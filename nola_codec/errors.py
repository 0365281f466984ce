"""Every error that the package raises on purpose, each with a stable code.

A code is part of the contract (`spec/nola-v1.md`, "Reject table"), so that a reader in another language refuses the
same files for the same reason. The command line turns an error into an exit status in one place, `nola_codec.cli`.
"""

from __future__ import annotations

import errno
from importlib.util import find_spec

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a system that has no room for more: a full disk, a used-up quota, a file at its limit."""


class NolaError(Exception):
    """The root of all errors of this package.

    Attributes:
        code: A stable identifier in kebab-case, for programs.
        where: The file, section, tensor or option at fault; an empty string if there is none.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, where: str = "") -> None:
        self.code = code or self.default_code
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)

    def within(self, outer: str) -> NolaError:
        """Return the same error with a file or a step put before `where`: the place in which it happened."""
        where = f"{outer}: {self.where}" if self.where else outer
        message = str(self)
        if self.where and message.startswith(self.where + ": "):
            message = message[len(self.where) + 2 :]
        return type(self)(message, code=self.code, where=where)


class FormatError(NolaError):
    """A `.nola` file that a conforming reader must refuse. The specification lists the codes."""

    default_code = "format"


class ChecksumMismatch(FormatError):
    """A stored checksum differs from the computed one: bytes were altered, or the decoder is not exact."""

    default_code = "checksum"


class AdapterError(NolaError):
    """An adapter or a base model that cannot be read, is inconsistent, or does not fit its partner."""

    default_code = "adapter"


class MissingFile(AdapterError, FileNotFoundError):
    """A `.nola` file that is not there. It is a `FileNotFoundError` too, as Python has it for any path."""

    default_code = "not-found"


class EncodeError(NolaError):
    """A request to the encoder that cannot be met: an unreachable size, an invalid option."""

    default_code = "encode"


class HubError(NolaError):
    """A repository of a model hub that cannot be found, reached, read or written. No message holds a token."""

    default_code = "hub"


class OutputExists(NolaError):
    """An output that is already there, when overwriting was not asked for."""

    default_code = "output-exists"


class RemoteError(NolaError):
    """A URL that cannot be read or written: it is not there, may not be read, or its server fails."""

    default_code = "remote"


class OutOfMemory(NolaError, MemoryError):
    """There was not enough memory for what a file declares."""

    default_code = "memory"


def mismatch(what: str, wanted: object, found: object) -> str:
    """Return the text of a mismatch, always as ``what: expected X, found Y``."""
    return f"{what}: expected {wanted}, found {found}"


class MissingPackage(NolaError, ImportError):
    """Another package that a part of this one needs, and that is not installed. Codes are ``needs-<package>``."""

    default_code = "needs-package"


def require_package(user: str, package: str, extra: str, *, instead: str = "") -> None:
    """Check that a package is installed, without importing it.

    Args:
        user: The part of nola-codec that needs the package, as the subject of a sentence.
        package: The name under which the package is imported.
        extra: The extra of nola-codec that installs it.
        instead: A clause that says what works without it.

    Raises:
        MissingPackage: ``needs-<package>``: The package is not installed.
    """
    if find_spec(package) is None:
        message = f"{user} needs {package}: pip install 'nola-codec[{extra}]'"
        raise MissingPackage(f"{message}; {instead}" if instead else message, code=f"needs-{package}")


def require_torch(user: str, *, instead: str = "") -> None:
    """Check that torch is installed, without importing it.

    Args:
        user: The part of nola-codec that needs torch, as the subject of a sentence.
        instead: A clause that says what works without it.

    Raises:
        MissingPackage: ``needs-torch``: torch is not installed.
    """
    require_package(user, "torch", "torch", instead=instead)
