"""Dialects of LoRA files, and the base models they belong to. NumPy only.

A dialect has a `name`, `detect`, `read_source`, `tensors`, `composites` and `write`; `read` finds the one that knows a
source. What the tensors lie in (safetensors, npz, pickle, GGUF) is another matter: `stores`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.dialects import delta, kohya, parameters, peft
from nola_codec.adapters.dialects.diffusers import DIFFUSERS, DIFFUSERS_OLD
from nola_codec.adapters.dialects.foreign import describe_keys
from nola_codec.adapters.dialects.gguf import GGUF
from nola_codec.adapters.dialects.lycoris import Composite
from nola_codec.adapters.dialects.mlx import MLX
from nola_codec.adapters.dialects.plain import PLAIN
from nola_codec.adapters.sources import AdapterSource, open_source
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import AnySource

__all__ = [
    "DIALECTS",
    "AnySource",
    "CodingRules",
    "Dialect",
    "coding_rules",
    "dialect_of",
    "read",
    "with_exact_vectors",
    "with_rank",
    "write",
]


class Dialect(Protocol):
    """What a dialect's module or object offers."""

    @property
    def name(self) -> str:
        """Its id, in a `.nola` file and on the command line."""

    @property
    def title(self) -> str:
        """For messages."""

    def detect(self, source: AdapterSource) -> bool:
        """Whether the source is in this dialect, by its configuration and keys alone."""

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read an opened source whole."""

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """All tensors under their keys, factors rounded to ``dtype``."""

    def composites(self, adapter: Adapter) -> tuple[Composite, ...]:
        """The deltas that are made of several coded parts."""

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write an adapter back, in the same dialect."""


# mypy takes a module for an object of its own type, which has what the protocol asks for.
_ALL: tuple[Dialect, ...] = (peft, GGUF, kohya, DIFFUSERS, DIFFUSERS_OLD, MLX, *PLAIN, delta, parameters)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _ALL})
"""In the order in which they are asked."""


def read(source: AnySource, *, config: Mapping[str, Any] | None = None, carry_unknown: bool = False) -> Adapter:
    """Read an adapter of any known dialect.

    Args:
        source: A directory, a file, bytes or a binary stream.
        config: The adapter's configuration, for bytes and streams; goes before any configuration found.
        carry_unknown: Carry tensors that the dialect does not know, exact, instead of refusing them.

    Raises:
        AdapterError: ``foreign-dialect`` with the name of the dialect the keys look like, ``empty-adapter`` when
            they look like none, or an error of the dialect.
    """
    with open_source(source, config=config) as opened:
        for dialect in DIALECTS.values():
            if dialect.detect(opened):
                return dialect.read_source(opened, carry_unknown=carry_unknown)
        looks_like = describe_keys(opened.file.tensors)
        if looks_like is None:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=opened.where)
        message = f"keys look like {looks_like}; this version reads {peft.name}"
        raise AdapterError(message, code="foreign-dialect", where=opened.where)


def dialect_of(name: str, where: str = "") -> Dialect:
    """A dialect by its name. Raises AdapterError ``foreign-dialect`` for one not known here."""
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise AdapterError(f"this version does not write {name!r}", code="foreign-dialect", where=where)
    return dialect


def coding_rules(adapter: Adapter) -> CodingRules:
    """Say how an adapter may be coded; a dialect with nothing to say allows everything but another rank."""
    if adapter.dialect == peft.name:
        return peft.coding_rules(adapter)
    reason = f"another rank would change what alpha / r means in the dialect {adapter.dialect}; leave out rank"
    return CodingRules(factor_rank_reason=reason)


def with_exact_vectors(adapter: Adapter, note: str) -> Adapter:
    """Return an adapter without modules as one that carries all its vectors exactly as they came, with a note."""
    tensors = dialect_of(adapter.dialect).tensors(adapter)
    return replace(adapter, raw=tensors, vectors=(), notes=(*adapter.notes, note))


def with_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter with a configuration for factors of another rank, where its `coding_rules` allow it."""
    return peft.with_rank(adapter, rank)


def write(adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter in its own dialect; see that dialect's `write`.

    Raises:
        AdapterError: ``foreign-dialect`` for a dialect not known here, or an error of the dialect.
    """
    return dialect_of(adapter.dialect, str(out)).write(adapter, out, dtype=dtype, overwrite=overwrite)
