"""The table of dialects, and what asks it: reading, writing, and the deltas of an adapter of any dialect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from nola_codec.adapters.adapter_delta import AdapterDelta, split_deltas
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.diffusers import DIFFUSERS, DIFFUSERS_OLD
from nola_codec.adapters.dialects.gguf import GGUF
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.kohya import KOHYA
from nola_codec.adapters.dialects.loralib import LORALIB
from nola_codec.adapters.dialects.mlx import MLX
from nola_codec.adapters.dialects.numbered import CLONEOFSIMO, SAM_LORA
from nola_codec.adapters.dialects.parameters import PARAMETERS
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.adapters.dialects.weight_changes import WEIGHT_CHANGES
from nola_codec.adapters.sources import AdapterSource, open_source
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import AnySource

ENTRY_POINTS = "nola_codec.dialects"
"""The group of entry points in which an installed package names its dialects, each a `Dialect` object."""

_BUILT_IN: tuple[Dialect, ...] = (
    PEFT, GGUF, KOHYA, DIFFUSERS, DIFFUSERS_OLD, MLX, CLONEOFSIMO, SAM_LORA, LORALIB, WEIGHT_CHANGES, PARAMETERS,
)  # fmt: skip
_known: dict[str, Dialect] = {dialect.name: dialect for dialect in _BUILT_IN}
_loaded: set[str] = set()

DIALECTS: Mapping[str, Dialect] = MappingProxyType(_known)
"""The dialects that are known so far, by name, in the order in which they are asked about a source."""


class _UnknownDialect(Dialect):
    """The dialect of a file whose dialect is not known here: it can be inspected, and nothing else."""

    name = ""
    title = "an unknown dialect"

    def detect(self, source: AdapterSource) -> bool:
        return False

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        raise AdapterError("the dialect is not known", code="foreign-dialect", where=source.where)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        raise AdapterError("the dialect is not known", code="foreign-dialect")


UNKNOWN: Dialect = _UnknownDialect()
"""Stands for a dialect that is not known here."""


class OfDialect(Protocol):
    """An `Adapter`, the `Header` of a file, or whatever else names its dialect and configuration."""

    @property
    def dialect(self) -> str:
        """The name of the dialect."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The configuration."""


def register_dialect(dialect: Dialect) -> None:
    """Make a dialect known for the rest of the process. It is asked about a source after those known before.

    Raises:
        ValueError: The name is taken by another dialect.
        TypeError: It is no `Dialect` object.
    """
    if not isinstance(dialect, Dialect):
        raise TypeError(mismatch("dialect", "an object of a subclass of Dialect", repr(dialect)))
    if _known.setdefault(dialect.name, dialect) is not dialect:
        raise ValueError(f"there is a dialect {dialect.name!r} already")


def find_dialect(name: str) -> Dialect | None:
    """Return a dialect by its name, or None. Entry points are loaded where no dialect known so far has the name.

    Raises:
        AdapterError: ``bad-dialect``: an installed package's dialect cannot be loaded.
    """
    if name not in _known:
        _load_entry_points()
    return _known.get(name)


def dialect_of(source: OfDialect, where: str = "") -> Dialect:
    """Return the dialect object that serves an adapter or a file.

    Raises:
        AdapterError: ``foreign-dialect`` for a dialect that is not known here; ``bad-dialect``.
    """
    found = find_dialect(source.dialect)
    if found is None:
        raise AdapterError(f"this version does not write {source.dialect!r}", code="foreign-dialect", where=where)
    return found.variant(source.config)


def read(source: AnySource, *, config: Mapping[str, Any] | None = None, carry_unknown: bool = False) -> Adapter:
    """Read an adapter of any known dialect.

    Args:
        source: A directory, a file, bytes or a binary stream.
        config: The adapter's configuration, for bytes and streams; goes before any configuration found.
        carry_unknown: Carry tensors that the dialect does not know, exact, instead of refusing them.

    Raises:
        AdapterError: ``foreign-dialect`` with the name of the dialect the keys look like, ``empty-adapter`` when
            they look like none, ``bad-dialect``, or an error of the dialect.
    """
    with open_source(source, config=config) as opened:
        found = _detect(opened)
        if found is None:
            _load_entry_points()
            found = _detect(opened)
        if found is not None:
            return found.variant(opened.config).read_source(opened, carry_unknown=carry_unknown)
        looks_like = describe_keys(opened.file.tensors)
        if looks_like is None:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=opened.where)
        message = f"keys look like {looks_like}; this version reads {PEFT.name}"
        raise AdapterError(message, code="foreign-dialect", where=opened.where)


def write(adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter in its own dialect; see that dialect's `write`.

    Raises:
        AdapterError: ``foreign-dialect`` for a dialect not known here, or an error of the dialect.
    """
    return dialect_of(adapter, str(out)).write(adapter, out, dtype=dtype, overwrite=overwrite)


def deltas(adapter: Adapter) -> list[AdapterDelta]:
    """Return all deltas of an adapter, in the order of their names.

    Raises:
        AdapterError: ``foreign-dialect``, and those of the dialect's `combined_deltas`.
    """
    return split_deltas(adapter, dialect_of(adapter).combined_deltas(adapter))


def _detect(source: AdapterSource) -> Dialect | None:
    return next((dialect for dialect in _known.values() if dialect.detect(source)), None)


def _load_entry_points() -> None:
    """Register the dialects of installed packages, each once. Raises AdapterError ``bad-dialect``."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _loaded:
            continue
        try:
            register_dialect(point.load())
        except Exception as e:  # a stranger's package may raise anything
            message = f"the entry point {point.name} of {ENTRY_POINTS} is no dialect: {e}"
            raise AdapterError(message, code="bad-dialect", where=point.value) from e
        _loaded.add(point.value)
