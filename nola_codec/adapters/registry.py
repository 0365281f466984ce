"""The table of dialects, and functions that use it: read, write and split an adapter of any dialect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
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
from nola_codec.adapters.dialects.mistral import MISTRAL
from nola_codec.adapters.dialects.mlx import MLX
from nola_codec.adapters.dialects.numbered import CLONEOFSIMO, SAM_LORA
from nola_codec.adapters.dialects.parameters import PARAMETERS
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.adapters.dialects.refused_keys import find_refusal
from nola_codec.adapters.dialects.torchtune import TORCHTUNE
from nola_codec.adapters.dialects.weight_changes import WEIGHT_CHANGES
from nola_codec.adapters.folders import carry_beside, find_adapter, open_adapter
from nola_codec.adapters.gathered import require_gathered
from nola_codec.adapters.plain_keys import with_plain_keys
from nola_codec.adapters.scales import apply_scale, require_scale
from nola_codec.adapters.sources import AdapterSource, Readable
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor

ENTRY_POINTS = "nola_codec.dialects"
"""The group of entry points in which an installed package names its dialects, each a `Dialect` object."""

_BUILT_IN: tuple[Dialect, ...] = (
    PEFT, GGUF, KOHYA, MISTRAL, DIFFUSERS, DIFFUSERS_OLD, MLX, TORCHTUNE, CLONEOFSIMO, SAM_LORA, LORALIB,
    WEIGHT_CHANGES, PARAMETERS,
)  # fmt: skip
_known: dict[str, Dialect] = {dialect.name: dialect for dialect in _BUILT_IN}
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


def find_dialect(name: str) -> Dialect | None:
    """Return a dialect by its name, or None. If no registered dialect has the name, entry points are loaded first.

    Raises:
        AdapterError: ``bad-dialect``: a dialect of an installed package cannot be loaded.
    """
    if name not in _known:
        _load_entry_points()
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


def read(
    source: Readable,
    *,
    config: Mapping[str, Any] | None = None,
    carry_unknown: bool = False,
    scale: float | None = None,
    must_use_scale: bool = True,
) -> Adapter:
    """Read an adapter of any known dialect.

    Args:
        source: A directory, a file, bytes, a binary stream or tensors in memory.
        config: The adapter's configuration, such as for bytes and streams. It is used in place of a configuration file.
        carry_unknown: True to carry tensors that the dialect does not know; False to refuse them.
        scale: The scaling for an adapter that does not say it: in a tensor, its metadata or a configuration.
        must_use_scale: True to refuse an adapter that says another scaling; False to leave that as it is.

    Raises:
        AdapterError: ``option``: the adapter says its scaling, and it is not `scale`; ``foreign-dialect``: the keys
            look like those of a dialect that is not read, which the message names; ``empty-adapter``: the keys look
            like no dialect; ``bad-dialect``; those of `find_adapter`, `with_plain_keys` and `require_gathered`; or an
            error of the dialect.
    """
    scale = None if scale is None else require_scale(scale)
    place = find_adapter(source)
    with open_adapter(place, config=config, scale=scale) as stored:
        opened, notes = with_plain_keys(stored, keep_frozen=carry_unknown)
        require_gathered(opened)
        found = _detect(opened)
        if found is None:
            _load_entry_points()
            found = _detect(opened)
        if found is not None:
            adapter = found.variant(opened.config).read_source(opened, carry_unknown=carry_unknown)
            adapter = carry_beside(adapter, place, carry=carry_unknown)
            adapter = replace(adapter, notes=(*place.notes, *notes, *adapter.notes))
            return adapter if scale is None else apply_scale(adapter, scale, opened.where, must_use=must_use_scale)
        refusal = find_refusal(opened.file.tensors, opened.where)
        if refusal is not None:
            raise refusal
        looks_like = describe_keys(opened.file.tensors)
        if looks_like is None:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=opened.where)
        message = f"the keys look like {looks_like}, which this version cannot read in this form"
        raise AdapterError(message, code="foreign-dialect", where=opened.where)


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
            message = f"the entry point {point.name} of {ENTRY_POINTS} cannot be loaded as a dialect: {e}"
            raise AdapterError(message, code="bad-dialect", where=point.value) from e
        _loaded.add(point.value)
