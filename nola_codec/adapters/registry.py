"""The table of dialects, and functions that use it: write and split an adapter of any dialect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from nola_codec.adapters.adapter_delta import AdapterDelta, split_deltas
from nola_codec.adapters.contract import Dialect
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import LazyTable
from nola_codec.model.adapter import Adapter

if TYPE_CHECKING:
    from nola_codec.adapters.sources import AdapterSource
    from nola_codec.model.tensors import RawTensor

ENTRY_POINTS = "nola_codec.dialects"
"""The group of entry points in which an installed package names its dialects, each a `Dialect` object."""

_BUILT_IN: Mapping[str, str] = {
    "peft": "peft:PEFT",
    "gguf": "gguf:GGUF",
    "kohya": "kohya:KOHYA",
    "mistral": "mistral:MISTRAL",
    "diffusers": "diffusers:DIFFUSERS",
    "diffusers-old": "diffusers:DIFFUSERS_OLD",
    "mlx": "mlx:MLX",
    "torchtune": "torchtune:TORCHTUNE",
    "cloneofsimo": "numbered:CLONEOFSIMO",
    "sam_lora": "numbered:SAM_LORA",
    "loralib": "loralib:LORALIB",
    "delta": "weight_changes:WEIGHT_CHANGES",
    "parameters": "parameters:PARAMETERS",
}
"""The file of `dialects/` and the object of each dialect, by the dialect's name. A file is loaded when it is needed."""
_known: LazyTable[Dialect] = LazyTable("nola_codec.adapters.dialects", _BUILT_IN)
_loaded: set[str] = set()

DIALECTS: Mapping[str, Dialect] = MappingProxyType(_known)
"""The known dialects by name, in the order in which their `detect` is called."""


class _UnknownDialect(Dialect):
    """A stand-in for a dialect that is not known here. A file in it can only be inspected."""

    name = ""
    title = "an unknown dialect"

    def detect(self, source: AdapterSource) -> bool:
        return False

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        raise AdapterError("the dialect is not known", code="foreign-dialect", where=source.where)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        raise AdapterError("the dialect is not known", code="foreign-dialect")


UNKNOWN: Dialect = _UnknownDialect()
"""The stand-in for a dialect that is not known here."""


class OfDialect(Protocol):
    """An object that has a dialect and a configuration: an `Adapter`, or the `Header` of a file."""

    @property
    def dialect(self) -> str:
        """The name of the dialect."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The adapter's configuration, or None."""


def register_dialect(dialect: Dialect) -> None:
    """Register a dialect for the rest of the process. Its `detect` is called after those of earlier dialects.

    Raises:
        ValueError: Another dialect has the same name.
        TypeError: The argument is not a `Dialect` object.
    """
    if not isinstance(dialect, Dialect):
        raise TypeError(mismatch("dialect", "an object of a subclass of Dialect", repr(dialect)))
    if _known.setdefault(dialect.name, dialect) is not dialect:
        raise ValueError(f"there is a dialect {dialect.name!r} already")


def find_dialect(name: object) -> Dialect | None:
    """Return a dialect by its name, or None. If no registered dialect has the name, entry points are loaded first.

    Raises:
        AdapterError: ``bad-dialect``: a dialect of an installed package cannot be loaded.
    """
    if not isinstance(name, str):
        return None
    if name not in _known:
        load_entry_points()
    return _known.get(name)


def dialect_of(source: OfDialect, where: str = "") -> Dialect:
    """Return the dialect object for an adapter or a file.

    Raises:
        AdapterError: ``foreign-dialect`` for a dialect that is not known here; ``bad-dialect``.
    """
    found = find_dialect(source.dialect)
    if found is None:
        raise AdapterError(f"this version does not write {source.dialect!r}", code="foreign-dialect", where=where)
    return found.variant(source.config)


def write(adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter in its own dialect; see `Dialect.write`.

    Raises:
        AdapterError: ``foreign-dialect`` for a dialect that is not known here, or an error of the dialect.
    """
    return dialect_of(adapter, str(out)).write(adapter, out, dtype=dtype, overwrite=overwrite)


def deltas(adapter: Adapter) -> list[AdapterDelta]:
    """Return all deltas of an adapter, in the order of their names.

    Raises:
        AdapterError: ``foreign-dialect``, and those of the dialect's `combined_deltas`.
    """
    return split_deltas(adapter, dialect_of(adapter).combined_deltas(adapter))


def load_entry_points() -> None:
    """Register the dialects of installed packages, each once. Raises AdapterError ``bad-dialect``."""
    from importlib.metadata import entry_points  # slow to load, and only unknown dialects need it

    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _loaded:
            continue
        try:
            register_dialect(point.load())
        except Exception as e:  # a stranger's package may raise anything
            message = f"the entry point {point.name} of {ENTRY_POINTS} cannot be loaded as a dialect: {e}"
            raise AdapterError(message, code="bad-dialect", where=point.value) from e
        _loaded.add(point.value)
