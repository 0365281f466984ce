"""Check what `encode_many`, `decode_many` and `verify_many` are called with: sources, directories and options."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nola_codec.api.keywords import keyword_names
from nola_codec.container.limits import Limits
from nola_codec.errors import AdapterError, NolaError, mismatch
from nola_codec.fleet.finding import find_sources
from nola_codec.fleet.items import Source, Verb
from nola_codec.fleet.keywords import RunKeywords
from nola_codec.fleet.running import RunSettings
from nola_codec.fleet.source_manifest import read_source_manifest
from nola_codec.remote import is_url, shown_url

Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def gather_sources(
    sources: Sources,
    manifest: str | os.PathLike[str] | None,
    verb: Verb,
    option_names: Sequence[str],
    out: Path | None,
    *,
    may_be_empty: bool = False,
) -> list[Source]:
    """Return the sources of paths and of a manifest. Raises AdapterError."""
    patterns = as_list(sources)
    found = [] if manifest is None else read_source_manifest(Path(manifest), option_names)
    found += find_sources(patterns, verb, skip=out, may_be_empty=may_be_empty)
    if not found and not may_be_empty:
        raise AdapterError("no sources; give paths, globs, directories or a manifest", code="no-sources")
    return found


def require_directory(out: str | os.PathLike[str]) -> Path:
    """Return the destination as a path. Raises NolaError ``target-type`` for a URL, and for a file."""
    where = os.fspath(require_path(out, "destination"))
    if is_url(where):
        message = "expected a directory on this machine, where the journal can grow; copy it to the store afterwards"
        raise NolaError(message, code="target-type", where=shown_url(where))
    if os.path.exists(where) and not os.path.isdir(where):
        raise NolaError("expected a directory for the outputs, found a file", code="target-type", where=where)
    return Path(where)


def absolute(model: str | os.PathLike[str]) -> str:
    """Return a path that means the same in another process, or a URL."""
    path = os.fspath(model)
    return path if is_url(path) else os.path.abspath(path)


def reader_options(references: Sources | None, limits: Limits | None) -> dict[str, Any]:
    """Return options of `decode` and `verify` that no item has: what a file decodes to does not depend on them."""
    paths = [absolute(source) for source in as_list(references or ())]  # that mean the same in another process
    return {**({"references": paths} if paths else {}), **({} if limits is None else {"limits": limits})}


def as_list(sources: Sources) -> list[str | os.PathLike[str]]:
    """Return the paths of sources. Raises AdapterError ``source-type``."""
    given: object = sources
    listed = [given] if isinstance(given, str | os.PathLike) else given
    if isinstance(listed, bytes) or not isinstance(listed, Iterable):
        raise AdapterError(mismatch("sources", "paths, or a list of them", repr(given)), code="source-type")
    return [require_path(each, "source") for each in listed]


def require_path(path: object, what: str) -> str | os.PathLike[str]:
    """Return a path. Raises AdapterError ``source-type`` for another object."""
    if not isinstance(path, str | os.PathLike):
        raise AdapterError(mismatch(what, "a path", repr(path)), code="source-type")
    return path


def split_run(function: str, run: dict[str, Any]) -> tuple[RunSettings, str | None]:
    """Return the settings of a run, and the format of its manifest. Raises NolaError ``option``."""
    check_names(function, run, keyword_names(RunKeywords))
    file_format = run.pop("manifest_format", None)
    return RunSettings(**run), file_format


def check_names(function: str, options: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return options whose names are known. Raises NolaError ``option``, with the name that is nearest."""
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise NolaError(f"{function}() got an unexpected option {name!r}; {hint}", code="option")
    return options
