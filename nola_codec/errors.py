"""Every error the package raises on purpose, each with a stable code.

A code is part of the contract (`spec/nola-v1.md`, "Reject table"): a reader in another language rejects the same
files for the same reason. The command line turns an error into an exit status in one place, `nola_codec.cli`.
"""

from __future__ import annotations

import importlib.util


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


class MissingPackage(NolaError, ImportError):
    """A package is not installed that only some functions need."""

    default_code = "missing-package"


def require_torch(purpose: str, *, instead: str = "") -> None:
    """Say in one line that PyTorch is needed, where it is not installed.

    Args:
        purpose: What needs it, as the subject of a sentence.
        instead: What works without it, as a clause.

    Raises:
        MissingPackage: ``needs-torch``.
    """
    if importlib.util.find_spec("torch") is None:
        message = f"{purpose} needs torch: pip install 'nola-codec[torch]'"
        raise MissingPackage(f"{message}; {instead}" if instead else message, code="needs-torch")


def expected(what: str, wanted: object, found: object) -> str:
    """One phrasing for all mismatches: ``what: expected X, found Y``."""
    return f"{what}: expected {wanted}, found {found}"
