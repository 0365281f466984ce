"""`AdapterCache`: from the name of an adapter to a directory that a server loads, decoded once for all processes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nola_codec import adapters
from nola_codec.adapters import find_dialect
from nola_codec.adapters.registry import UNKNOWN
from nola_codec.api.checking import check_content
from nola_codec.api.opened import stored_dtype
from nola_codec.container.limits import Limits
from nola_codec.container.reader import open_container
from nola_codec.disk_cache import DiskCache
from nola_codec.errors import AdapterError, NolaError, mismatch
from nola_codec.integrations.serving.base_checks import (
    BaseCheck,
    check_shapes,
    is_same_model,
    model_state,
    names_of_model,
)
from nola_codec.integrations.serving.layouts import LAYOUT_REVISION, LAYOUTS, Layout, largest_rank, read_for_server
from nola_codec.integrations.serving.names import check_name
from nola_codec.integrations.serving.numbers import number_of
from nola_codec.integrations.serving.sources import Source, open_sources
from nola_codec.references.finding import References
from nola_codec.stores.files import read_json

KIND = f"served-{LAYOUT_REVISION}"
_HOME = "adapter"
_FITS = "fits"
MAX_ADAPTER_BYTES = 4 << 30
"""The most bytes that one adapter may take in bfloat16, unless the caller says otherwise: 4 GiB."""


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that a server can load.

    Attributes:
        name: The name that it was asked for by.
        path: A directory of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``. It stays as long as the
            `AdapterCache` that gave it is not closed.
        int_id: A number from 1 to 2^31 - 1 that names the content; the same in all processes that share the cache.
        content_sha256: The content SHA-256 of the `.nola` file, hexadecimal.
        base_model: The base model that the adapter names, or None.
        rank: The largest rank of its modules.
        bytes: The size of the `.nola` file.
        notes: Sentences for a log.
    """

    name: str
    path: Path
    int_id: int
    content_sha256: str
    base_model: str | None
    rank: int
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """A file and what its header says. `state` changes when the file does."""

    path: Path
    state: tuple[int, ...]
    content_sha256: str
    base_model: str | None
    bytes: int


class AdapterCache:
    """Adapters by name, decoded into directories of PEFT that all processes of a machine share.

    The directories lie in a `DiskCache` under the content SHA-256 of their files, so equal files are decoded once,
    whatever they are called. What was given out is held until `close`, since a server may load it again at any time.
    All methods may be called from any thread.

    Attributes:
        sources: Where names are looked for, in this order.
        cache: The cache on disk.
        layout: The layout of the directories.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        *,
        cache: DiskCache | None = None,
        layout: Layout = "trimmed",
        dtype: Literal["bf16", "f16", "f32"] = "bf16",
        max_rank: int | None = None,
        base_check: BaseCheck = "strict",
        base_names: Sequence[str] = (),
        max_adapter_bytes: int = MAX_ADAPTER_BYTES,
        refresh_seconds: float = 60,
        references: References = None,
        limits: Limits | None = None,
    ) -> None:
        """Take the places to look in, and what the server can load.

        Args:
            sources: Directories, URLs that names are appended to, and ``hf://``, ``hf://owner`` or ``hf://owner/repo``.
            cache: The cache on disk; None is the user's cache, without a limit.
            layout: ``trimmed`` for servers that read ``rank_pattern`` and ``alpha_pattern``; ``uniform`` for those that
                read ``r`` and ``lora_alpha`` alone.
            dtype: The dtype of the factors.
            max_rank: The largest rank that the server loads; None is no limit.
            base_check: What is done about an adapter that names another base model, or none: ``strict`` refuses it,
                ``warn`` adds a note. Factors that do not fit the weights are refused in any case.
            base_names: Further names of the base model.
            max_adapter_bytes: The most bytes that one adapter may take in bfloat16.
            refresh_seconds: How long what a remote source answered is trusted before it is asked again.
            references: Where the earlier versions are that files need which were encoded against one: files and
                folders. None looks beside each file.
            limits: What a file may declare; as in `nola_codec.load`.

        Raises:
            NolaError: ``adapter-source``; ``option``: another layout, dtype or check.
        """
        for option, value, known in (("layout", layout, LAYOUTS), ("base_check", base_check, ("strict", "warn"))):
            if value not in known:
                raise NolaError(mismatch(option, " or ".join(known), repr(value)), code="option")
        self.sources: tuple[Source, ...] = open_sources(sources)
        self.cache = DiskCache() if cache is None else cache
        self.layout, self._dtype = layout, dtype
        self._stored_dtype = stored_dtype(dtype)
        self._max_rank, self._max_adapter_bytes = max_rank, max_adapter_bytes
        self._base_check, self._base_names = base_check, tuple(base_names)
        self._refresh_seconds, self._references, self._limits = refresh_seconds, references, limits
        self._guard = threading.Lock()
        self._facts: dict[Path, _Found] = {}
        self._answers: dict[tuple[Source, str], tuple[float, Path]] = {}
        self._served: dict[str, ServedAdapter] = {}
        self._holds = contextlib.ExitStack()
        self._held: set[tuple[str, str]] = set()

    def resolve(self, name: str, base_model: str | None = None) -> ServedAdapter:
        """Return an adapter by its name, decoded and checked.

        Args:
            name: The name: ``task`` or ``team/task``.
            base_model: The model that is served, as the server names it; None skips the check of the base.

        Raises:
            AdapterError: ``adapter-name``: the name is none that may be asked for; ``not-found``: no source has it;
                ``base-mismatch``: it is of another base model; ``rank-limit``; ``limit``: it is too large;
                ``not-expressible``: PEFT's dialect has no place for it; ``not-nola``.
            FormatError, ChecksumMismatch: The file is damaged.
            NolaError: Those of the disk cache and of remote sources.
        """
        check_name(name)
        found = self._find(name)
        notes = self._check_base_name(name, found, base_model)
        served = self._serve(name, found)
        if self._max_rank is not None and served.rank > self._max_rank:
            message = mismatch("rank", f"at most {self._max_rank}", served.rank)
            raise AdapterError(f"{message}, the limit of the server", code="rank-limit", where=name)
        if base_model is not None:
            notes += self._check_base_shapes(name, served, Path(base_model), named=not notes)
        return replace(served, notes=notes)

    def close(self) -> None:
        """Let go of everything that was given out, so that it may leave the cache."""
        with self._guard:
            self._holds.close()
            self._held.clear()
            self._served.clear()

    def __enter__(self) -> AdapterCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, name: str) -> _Found:
        """Return the file of a name and its facts, which are read again when the file changes."""
        for source in self.sources:
            path = self._ask(source, name)
            if path is not None:
                stat = path.stat()
                state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
                known = self._facts.get(path)
                if known is None or known.state != state:
                    known = self._facts[path] = _read_facts(path, state, self._limits)
                return known
        places = ", ".join(map(repr, self.sources))
        raise AdapterError(f"no such adapter; it was looked for in {places}", code="not-found", where=name)

    def _ask(self, source: Source, name: str) -> Path | None:
        """Return what a source has under a name; a remote source is asked again only after `refresh_seconds`."""
        if not source.is_remote():
            return source.find(name)
        now = time.monotonic()
        asked, path = self._answers.get((source, name), (-math.inf, None))
        if path is None or now - asked >= self._refresh_seconds or not path.is_file():
            path = source.find(name)
            if path is not None:
                self._answers[source, name] = (now, path)
        return path

    def _check_base_name(self, name: str, found: _Found, base_model: str | None) -> tuple[str, ...]:
        if base_model is None:
            return ()
        names = names_of_model(base_model, self._base_names)
        if found.base_model is not None and any(is_same_model(found.base_model, other) for other in names):
            return ()
        told = "names no base model" if found.base_model is None else f"is an adapter of {found.base_model}"
        message = f"the file {told}, and the server has {base_model}"
        if self._base_check == "strict":
            raise AdapterError(message, code="base-mismatch", where=name)
        return (message,)

    def _check_base_shapes(self, name: str, served: ServedAdapter, model: Path, *, named: bool) -> tuple[str, ...]:
        """Compare the factors with the weights of the model if its directory is at hand, once for all processes."""
        state = model_state(model)
        if state is None:
            return ()
        key = hashlib.sha256(f"{served.content_sha256}\n{state}".encode()).hexdigest()

        def build(directory: Path) -> None:
            told = check_shapes(served.path, model, name)
            (directory / _FITS).write_text("yes" if told else "unknown", encoding="ascii")

        told = (self.cache.make("adapter-fit", key, build) / _FITS).read_text(encoding="ascii")
        return () if named or told == "unknown" else ("its factors fit the weights of the model that is served",)

    def _serve(self, name: str, found: _Found) -> ServedAdapter:
        key = f"{found.content_sha256}-{self.layout}-{self._dtype}"
        with self._guard:
            known = self._served.get(key)
        self._hold(KIND, key)
        path = self.cache.make(KIND, key, lambda made: self._decode(found.path, found.content_sha256, made)) / _HOME
        if known is None:
            config = read_json(path / "adapter_config.json")
            number = number_of(self.cache, found.content_sha256, self._hold)
            known = ServedAdapter(
                name, path, number, found.content_sha256, found.base_model, largest_rank(config), found.bytes
            )
            with self._guard:
                self._served[key] = known
        return replace(known, name=name, base_model=found.base_model)

    def _decode(self, source: Path, content_sha256: str, directory: Path) -> None:
        with open_container(source, self._limits) as container:
            if container.prelude.content_sha256.hex() != content_sha256:
                message = "the file changed while it was read; ask again"
                raise AdapterError(message, code="changed", where=str(source))
            check_content(container)
            adapter = read_for_server(container, self.layout, self._max_adapter_bytes, self._references)
        adapters.write(adapter, directory / _HOME, dtype=self._stored_dtype)

    def _hold(self, kind: str, key: str) -> None:
        with self._guard:
            if (kind, key) in self._held:
                return
        hold = self.cache.hold(kind, key)
        hold.__enter__()  # it may wait for a process that is making the entry
        with self._guard:
            self._holds.push(hold)
            self._held.add((kind, key))


def _read_facts(path: Path, state: tuple[int, ...], limits: Limits | None) -> _Found:
    with open_container(path, limits) as container:
        header = container.header
        dialect = find_dialect(header.dialect) or UNKNOWN
        base_model = dialect.base_model(header.config or {}, header.metadata)
        return _Found(path, state, container.prelude.content_sha256.hex(), base_model, container.file_length)
