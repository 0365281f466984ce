"""Every error the package raises on purpose, each with a stable code.

A code is part of the contract (`spec/nola-v1.md`, "Reject table"): a reader in another language rejects the same
files for the same reason. The command line turns an error into an exit status in one place, `nola_codec.cli`.
"""

from __future__ import annotations

from importlib.util import find_spec


class NolaError(Exception):
    """Root of all errors of this package.

    Attributes:
        code: Stable identifier in kebab-case, for programs.
        where: The file, section, tensor or option that is at fault, or an empty string.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, where: str = "") -> None:
        self.code = code or self.default_code
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)

    def within(self, outer: str) -> NolaError:
        """The same error, with the file or the step it happened in put before it."""
        where = f"{outer}: {self.where}" if self.where else outer
        message = str(self)
        if self.where and message.startswith(self.where + ": "):
            message = message[len(self.where) + 2 :]
        return type(self)(message, code=self.code, where=where)


class FormatError(NolaError):
    """A `.nola` file that a conforming reader must refuse. Codes are listed in the specification."""

    default_code = "format"


class ChecksumMismatch(FormatError):
    """Stored and computed checksums differ: the bytes were altered, or a decoder is not exact."""

    default_code = "checksum"


class AdapterError(NolaError):
    """An adapter or a base model that cannot be read, is inconsistent, or does not fit its partner."""

    default_code = "adapter"


class EncodeError(NolaError):
    """A request to the encoder that cannot be met: an unreachable size, an invalid option."""

    default_code = "encode"


class OutputExists(NolaError):
    """The output is already there and overwriting was not asked for."""

    default_code = "output-exists"


def mismatch(what: str, wanted: object, found: object) -> str:
    """One phrasing for all mismatches: ``what: expected X, found Y``."""
    return f"{what}: expected {wanted}, found {found}"


class MissingPackage(NolaError, ImportError):
    """A part of this package was used that needs a package which is not installed. Codes are ``needs-<package>``."""

    default_code = "needs-package"


def require_package(user: str, package: str, extra: str, *, instead: str = "") -> None:
    """Check that a package is installed, without importing it.

    Args:
        user: The part of nola-codec that needs the package, for the message.
        package: The name under which the package is imported.
        extra: The extra of nola-codec that installs it.
        instead: A clause that says what works without it.

    Raises:
        MissingPackage: ``needs-<package>``: it is not installed.
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
        MissingPackage: ``needs-torch``: it is not installed.
    """
    require_package(user, "torch", "torch", instead=instead)
