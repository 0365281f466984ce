"""Find the reference of a file by its hash: in what the caller gives, or beside the file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from nola_codec.arrays import Arrays
from nola_codec.container.limits import Limits
from nola_codec.container.prelude import MAGIC
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import CHUNK_ELEMENTS
from nola_codec.decoder.prediction import KnownRecords, Reference, missing_reference
from nola_codec.errors import AdapterError, FormatError, NolaError
from nola_codec.model.header import Header, ReferenceEntry
from nola_codec.remote import is_url, local_copies
from nola_codec.stores.tensor_files import is_tensor_file

Resolver: TypeAlias = "Callable[[ReferenceEntry], Source | None]"
"""A function that returns the reference of an entry (its `sha256` names it), or None if it has none."""
References: TypeAlias = "Source | Sequence[Source] | Resolver | None"
"""The places to take references from: files, folders, bytes, or a function. None looks beside the file."""

_MOST_FILES = 10_000
"""Greatest number of files of a folder whose headers are read."""
_MOST_ADAPTERS = 100
"""Greatest number of adapters of a folder whose tensors are read."""


def open_decoder(
    container: Container, xp: Arrays, references: References = None, chunk_elements: int = CHUNK_ELEMENTS
) -> Decoder:
    """Return a decoder of an open file, and find the reference of the file if it is coded against one.

    The files of the references stay open as long as the file.

    Args:
        container: The open file.
        xp: The arrays that records are made of.
        references: The places to look in; None stands for the folder of the file. The reference of a reference is
            also looked for in the folder of the latter.
        chunk_elements: The same as in `Decoder`.

    Raises:
        AdapterError: ``source-type``: A place is no path, bytes or binary stream.
        FormatError: ``reference``: The reference is not there, or what is there is another one.
        FormatError, ChecksumMismatch: A file is damaged.
    """
    entry = container.header.reference
    if entry is None:
        return Decoder(container, xp, chunk_elements)
    places = references if callable(references) else _Places(_listed(references), _folder_of(container))
    search = _Search(entry, places, container.limits, Path(container.name))
    found = search.find_file() if entry.files else search.find_adapter(xp)
    if found is None:
        raise missing_reference(entry, search.advice()).within(container.name)
    if isinstance(found, Container):
        container.close_too(found)
        found = open_decoder(found, xp, _deeper(places, found), chunk_elements)
    return Decoder(container, xp, chunk_elements, found)


def chain_files(header: Header) -> int:
    """Return the number of `.nola` files that must be decoded before one whose reference has this header."""
    return 1 + (0 if header.reference is None else header.reference.files)


@dataclass(frozen=True)
class _Places:
    """Where to look: what the caller gave, and the folder of the file, or None for bytes and URLs."""

    given: tuple[Source, ...] | None
    folder: Path | None


@dataclass
class _Search:
    """One search for one reference.

    Attributes:
        entry: What the header says of the reference.
        places: Where to look.
        limits: The limits for files.
        own: The path of the file whose reference it is.
        looked: The number of files or adapters that were opened.
        damaged: The name of a file that is the reference by its header, and whose content SHA-256 is wrong.
    """

    entry: ReferenceEntry
    places: _Places | Resolver
    limits: Limits
    own: Path
    looked: int = 0
    damaged: str = ""

    def find_file(self) -> Container | None:
        """Return the reference, a `.nola` file, opened at the rung that has the hash; None if it is not there."""
        for source, is_given in self._sources():
            try:
                if isinstance(source, str | os.PathLike) and not is_url(str(source)) and not _is_nola(Path(source)):
                    continue
                self.looked += 1
                container = open_container(source, self.limits)
            except (NolaError, OSError):
                if is_given:
                    raise
                continue
            hashes = [rung.decoded_sha256 for rung in container.header.rungs]
            fits = (
                self.entry.sha256 in hashes and chain_files(container.header) <= self.entry.files
            )  # so that chains end
            if fits and (is_url(container.name) or self._is_whole(container, is_given)):
                container.select(hashes.index(self.entry.sha256))
                return container
            container.close()
        return None

    def _is_whole(self, container: Container, is_given: bool) -> bool:
        """Return True if the content SHA-256 of a file is right; raise an error if it is not, and the caller gave it.

        A file that lies in a folder may be damaged while another one there is good.
        """
        try:
            container.check_content()
        except FormatError as error:
            self.damaged = container.name
            if is_given:
                container.close()
                raise error.within(container.name) from error
            return False
        return True

    def find_adapter(self, xp: Arrays) -> Reference | None:
        """Return the reference, an adapter that was never coded; None if it is not there."""
        from nola_codec.adapters.reading import read
        from nola_codec.references.exact import exact_records, hash_records

        for source, is_given in self._sources():
            try:
                if isinstance(source, str | os.PathLike) and _is_nola(Path(source)):
                    continue
                self.looked += 1
                with local_copies(source if isinstance(source, str) else None) as (copy,):
                    records = exact_records(read(source if copy is None else copy))
            except (NolaError, OSError):
                if is_given:
                    raise
                continue
            if hash_records(records) == self.entry.sha256:
                return KnownRecords(records, xp)
        return None

    def advice(self) -> str:
        """Return what to do about a reference that was not found."""
        if self.damaged:
            return f"{self.damaged} is it, and is damaged: get it again"
        there = {0: "nothing is there that could be it", 1: "the one that is there is another one"}
        found = there.get(self.looked, f"none of the {self.looked} that are there is it")
        if callable(self.places):
            return f"the function for references returned another one or none ({found})"
        if self.places.given is not None:
            return f"of what was given, {found}"
        return f"beside the file, {found}; give it, or the folder that has it (--reference, or `references` in Python)"

    def _sources(self) -> Iterator[tuple[Source, bool]]:
        """Yield (what may be the reference, True if the caller gave it itself), the likeliest first."""
        from nola_codec.adapters.folders import has_adapter

        if callable(self.places):
            source = self.places(self.entry)
            if source is not None:
                yield _require_source(source), True
            return
        if self.places.given is None:
            if self.places.folder is not None:
                yield from ((path, False) for path in self._in_folder(self.places.folder))
            return
        for source in self.places.given:
            folder = Path(source) if isinstance(source, str | os.PathLike) and not is_url(str(source)) else None
            if folder is not None and folder.is_dir() and not (self.entry.files == 0 and has_adapter(folder)):
                yield from ((path, False) for path in self._in_folder(folder))
            else:
                yield source, True

    def _in_folder(self, folder: Path) -> Iterator[Path]:
        """Yield the files or the adapters of a folder, first the one that has the name of the entry."""
        from nola_codec.adapters.folders import has_adapter

        named = folder / self.entry.name
        if self.entry.name and named != self.own and _is_there(named):
            yield named
        if self.entry.files:
            others = sorted(folder.glob("*.nola"))[:_MOST_FILES]
        else:
            others = sorted(path for path in folder.iterdir() if has_adapter(path) or is_tensor_file(path))
            others = others[:_MOST_ADAPTERS]
        yield from (path for path in others if path not in (named, self.own))


def _listed(references: References) -> tuple[Source, ...] | None:
    """Return the given places as a tuple, or None if none are given."""
    if references is None:
        return None
    given = tuple(references) if isinstance(references, list | tuple) else (references,)
    return tuple(_require_source(source) for source in given)


def _require_source(source: object) -> Source:
    """Return what may be a reference. Raises AdapterError ``source-type`` for another object."""
    is_stream = hasattr(source, "seek") and not isinstance(source, io.TextIOBase)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or is_stream:
        return cast("Source", source)
    found = type(source).__qualname__
    message = f"references: expected paths, bytes, binary streams or a function, found {found}"
    raise AdapterError(message, code="source-type")


def _deeper(places: _Places | Resolver, found: Container) -> References:
    """Return the places for the reference of a reference: the same ones, and the folder of the reference."""
    if callable(places):
        return places
    beside = _folder_of(found)
    return None if places.given is None else (*places.given, *(() if beside is None else (beside,)))


def _folder_of(container: Container) -> Path | None:
    """Return the folder of an open file, or None for bytes, streams without a path, and URLs."""
    path = Path(container.name)
    return None if is_url(container.name) or not path.is_file() else path.parent


def _is_there(path: Path) -> bool:
    """Return True if a path exists; the name comes from a header, and can be one that no file may have."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_nola(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC
