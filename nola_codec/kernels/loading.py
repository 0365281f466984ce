"""Load the compiled library at its first use, choose the variant for this processor, and call its functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from nola_codec.errors import NolaError, mismatch
from nola_codec.kernels.compiling import FOLDER, LIBRARY_NAME, VARIANTS, sources_digest
from nola_codec.lazy import ctypes
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

VARIABLE = "NOLA_KERNELS"
_SETTINGS = ("", "on", "off", "require", *VARIANTS)

_CHOSEN: ContextVar[str | None] = ContextVar("nola_kernels", default=None)

Argument: TypeAlias = "npt.NDArray[Any] | int | float | None"


class Library:
    """The functions of the compiled library in one variant.

    Attributes:
        variant: "generic", "avx2" or "avx512".
    """

    def __init__(self, handle: ctypes.CDLL, variant: str) -> None:
        self.variant = variant
        self._handle = handle
        self._functions: dict[str, Any] = {}

    def call(self, name: str, *arguments: Argument) -> int:
        """Call a function of the library; other Python threads run meanwhile.

        Args:
            name: The name in the C sources, without the variant.
            arguments: C-contiguous arrays are passed as pointers and None as a null pointer, ints as 64 bits (modulo
                2^64), floats as double. The caller has checked what the function asks of them.

        Returns:
            What the function returns, an int64.

        Raises:
            ValueError: An array is not C-contiguous.
        """
        function = self._functions.get(name)
        if function is None:
            function = getattr(self._handle, f"{name}_{self.variant}")
            function.restype = ctypes.c_int64
            # A pointer has 64 bits here (compiling.py), and plain numbers cost less than an object for each argument.
            function.argtypes = [ctypes.c_double if isinstance(a, float) else ctypes.c_int64 for a in arguments]
            self._functions[name] = function
        return int(function(*[_pass(argument) for argument in arguments]))


def _pass(argument: Argument) -> int | float:
    if type(argument) is int:
        return argument
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise ValueError("a kernel was given an array that is not C-contiguous")
        return address_of(argument)
    if argument is None:
        return 0
    return argument if isinstance(argument, float) else int(argument)


def address_of(array: npt.NDArray[Any]) -> int:
    """Return where the elements of an array lie, which must stay alive while a kernel uses them."""
    if array.flags.writeable and array.size:
        # In half the time of `ctypes.data`; the types of NumPy do not say that an array is a buffer.
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    return array.ctypes.data


@dataclass(frozen=True)
class KernelStatus:
    """Which path computes on this machine.

    Attributes:
        library: The library, or None if NumPy computes.
        reason: One line that says why NumPy computes; empty with a library.
    """

    library: Library | None
    reason: str = ""


def library() -> Library | None:
    """Return the compiled library, or None where NumPy computes: kernels are off, not there, or stale.

    NOLA_KERNELS chooses: "off"; "require", which makes a missing library an error; or a variant, "generic", "avx2" or
    "avx512". The bits are the same in all cases.

    Raises:
        NolaError: ``kernels``: NOLA_KERNELS has another value, requires kernels that are not there, or names a variant
            that this processor cannot run.
    """
    return kernel_status().library


def kernel_status() -> KernelStatus:
    """Return which path computes, and why; errors are those of `library`."""
    chosen = _CHOSEN.get()
    return load(os.environ.get(VARIABLE, "") if chosen is None else chosen)


@contextmanager
def using(setting: str) -> Iterator[Library | None]:
    """Take another value than that of NOLA_KERNELS, on this thread and inside the block.

    Raises:
        NolaError: ``kernels``: As in `library`.
    """
    lib = load(setting).library
    token = _CHOSEN.set(setting)
    try:
        yield lib
    finally:
        _CHOSEN.reset(token)


@lru_cache(maxsize=len(_SETTINGS) + 1)
def load(setting: str) -> KernelStatus:
    """Return what a value of NOLA_KERNELS leads to; errors are those of `library`."""
    if setting not in _SETTINGS:
        raise NolaError(mismatch(f"environment variable {VARIABLE}", [s for s in _SETTINGS if s], setting),
                        code="kernels")  # fmt: skip
    if setting == "off":
        return KernelStatus(None, f"{VARIABLE}=off")
    status = _open(setting)
    if status.library is None and setting in ("require", *VARIANTS):
        raise NolaError(f"{VARIABLE}={setting}, but {status.reason}", code="kernels")
    return status


def _open(setting: str) -> KernelStatus:
    path = FOLDER / LIBRARY_NAME
    if not path.is_file():
        return KernelStatus(None, "the kernels were not compiled when the package was installed")
    try:
        handle = ctypes.CDLL(str(path))
        made_of, supports = handle.nola_sources_generic, handle.nola_supports_generic
    except (OSError, AttributeError) as e:
        return KernelStatus(None, f"{path} cannot be loaded: {e}")
    digest = ctypes.create_string_buffer(65)
    made_of(digest)
    wanted = sources_digest()
    if wanted is not None and digest.value.decode() != wanted:
        return KernelStatus(None, f"{path} is older than its sources; run `python tools/build_kernels.py`")
    usable = [v for number, v in enumerate(VARIANTS) if supports(ctypes.c_int64(number))
              and hasattr(handle, f"nola_sources_{v}")]  # fmt: skip
    if setting in VARIANTS and setting not in usable:
        return KernelStatus(None, f"this processor runs only {', '.join(usable)}")
    return KernelStatus(Library(handle, setting if setting in VARIANTS else usable[-1]))
