"""Find the sources of a run: paths, globs, and directories that hold many adapters or `.nola` files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nola_codec.adapters.folders import has_adapter, is_training_state
from nola_codec.adapters.sources import CONFIG_NAME, is_weights_name
from nola_codec.errors import AdapterError
from nola_codec.fleet.finding_urls import find_urls
from nola_codec.fleet.items import Source, Verb
from nola_codec.fleet.naming import make_safe, without_ending
from nola_codec.remote import is_url
from nola_codec.stores.tensor_files import SUFFIXES

_NOLA = ".nola"
_MODEL_FILES = ("config.json", "model_index.json", "model.safetensors.index.json")


def find_sources(
    patterns: Iterable[str | os.PathLike[str]], verb: Verb, skip: Path | None = None, *, may_be_empty: bool = False
) -> list[Source]:
    """Return the sources that paths, globs and directories stand for, each once, in order.

    A directory that is an adapter is one source, and what lies in it is not looked at: the checkpoints of its training
    are no adapters of their own. In any other directory all adapters are found, at any depth: directories as tools save
    them, and lone files of tensors. Hidden directories and whole models are left out.

    A URL is one source, whatever it means. With wildcards it is all that it matches, if its protocol can list files.

    Args:
        patterns: Paths and URLs, or globs with ``*``, ``?``, ``[...]`` and ``**``.
        verb: What is done with the sources: ``encode`` looks for adapters, the others for `.nola` files.
        skip: The destination, which is not looked into.
        may_be_empty: True if a pattern may stand for nothing.

    Raises:
        AdapterError: ``no-sources``: A glob matches nothing, or a directory holds nothing of use.
        RemoteError, MissingPackage: A URL with wildcards cannot be listed.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        text = os.fspath(pattern)
        some = False
        expanded = find_urls(text) if is_url(text) else _expand(text, verb, None if skip is None else skip.resolve())
        for source in expanded:
            found.setdefault(source.path, source)
            some = True
        if not some and not may_be_empty:
            what = "adapters" if verb == "encode" else ".nola files"
            raise AdapterError(
                f"no {what} found; give a directory or a glob that has some", code="no-sources", where=text
            )
    return list(found.values())


def _expand(text: str, verb: Verb, skip: Path | None) -> Iterator[Source]:
    if not glob.has_magic(text) or os.path.lexists(text):
        yield from _in_path(Path(text), Path(text), verb, skip)
        return
    root = _fixed_part(text)
    for match in sorted(glob.glob(text, recursive=True)):
        path = Path(match)
        if verb == "encode" and is_weights_name(path.name) and _is_adapter(path.parent):
            path = path.parent  # so that `**/adapter_model.safetensors` and the directory are the same source
        if path.is_dir() or _is_source_file(path, verb) or "**" not in text:
            yield from _in_path(path, root, verb, skip)


def _fixed_part(pattern: str) -> Path:
    """Return the directory of a glob before its first wildcard; names are relative to it."""
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic])


def _in_path(path: Path, root: Path, verb: Verb, skip: Path | None) -> Iterator[Source]:
    """Yield what a path stands for; `root` is what names are relative to, or the path itself."""
    if not path.is_dir() or (verb == "encode" and _is_adapter(path)):
        yield _source(path, root)
    else:
        inner = path if root == path else root
        yield from _walk(path, inner, verb, skip, seen=set())


def _walk(folder: Path, root: Path, verb: Verb, skip: Path | None, *, seen: set[tuple[int, int]]) -> Iterator[Source]:
    found = folder.stat()
    identity = (found.st_dev, found.st_ino)  # links may lead in circles
    if identity in seen or (skip is not None and folder.resolve() == skip):
        return
    seen.add(identity)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # it may not be read; as a source it becomes a failed row, and stops no other
        yield _source(folder, root)
        return
    names = {entry.name for entry in entries}
    is_model = verb == "encode" and CONFIG_NAME not in names and any(name in names for name in _MODEL_FILES)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if path.is_dir():  # not `entry.is_dir`, for which a link to itself is an error
            if verb == "encode" and _is_adapter(path):
                yield _source(path, root)
            else:
                yield from _walk(path, root, verb, skip, seen=seen)
        elif not is_model and _is_source_file(path, verb) and (path.is_file() or not path.exists()):
            yield _source(path, root)  # no pipe, which would be waited for; a link to nothing becomes a failed row


def _is_adapter(folder: Path) -> bool:
    """Return True for the directory of one adapter, and False for a folder of lone files, one of which has its name."""
    try:
        if not has_adapter(folder):
            return False
        names = os.listdir(folder)
    except OSError:
        return False  # `_walk` makes it a failed row
    return CONFIG_NAME in names or sum(_is_source_file(Path(name), "encode") for name in names) == 1


def _is_source_file(path: Path, verb: Verb) -> bool:
    if verb != "encode":
        return path.suffix == _NOLA
    return path.suffix.lower() in SUFFIXES and not is_training_state(path.name)


def _source(path: Path, root: Path) -> Source:
    """Return a source that is named after its place below `root`, or after its own last part."""
    absolute = Path(os.path.abspath(path))
    relative = Path(os.path.abspath(path)).relative_to(os.path.abspath(root)) if root != path else Path()
    name = relative.as_posix() if relative.parts else absolute.name
    return Source(path=str(absolute), name=make_safe(without_ending(name)))
