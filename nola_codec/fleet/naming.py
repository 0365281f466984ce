"""Give every source an output of its own, under a name that is safe on every file system.

Names come from people that we do not know: from directories, from URLs and from manifests. No name leaves the
destination, and no two outputs differ by upper and lower case alone, or by two ways to write one letter in Unicode.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from nola_codec.errors import NolaError
from nola_codec.fleet.items import Source
from nola_codec.rendering import list_first
from nola_codec.stores.tensor_files import SUFFIXES

_MOST_BYTES = 180  # of a part of a name, which leaves room for a suffix: file systems allow 255
_MOST_PARTS = 32
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"\\|?*\ud800-\udfff]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no files on Windows, with any suffix
_HASH_DIGITS = 8
_LISTED = 5
_ENDINGS = (*SUFFIXES, ".nola")
RESERVED = ("manifest.jsonl", "manifest.parquet")
"""Names in a destination that are not outputs."""


def without_ending(name: str) -> str:
    """Return a name without the suffix of a file of tensors or a `.nola` file.

    >>> without_ending("a/b.safetensors")
    'a/b'
    """
    lower = name.lower()
    ending = next((suffix for suffix in _ENDINGS if lower.endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def make_safe(name: str) -> str:
    """Return a name without characters and parts that a file system may refuse; a safe name is not changed.

    >>> make_safe("a/../b:c"), make_safe(".hidden/x")
    ('a/_/b_c', '_hidden/x')
    """
    parts = [part for part in name.split("/") if part] or ["_"]
    return "/".join(_safe_part(part) for part in parts[-_MOST_PARTS:])


def _safe_part(part: str) -> str:
    safe = _UNSAFE.sub("_", part).rstrip(". ")
    if safe.startswith("."):
        safe = f"_{safe[1:]}"
    if _DEVICE.fullmatch(safe):
        safe = f"_{safe}"
    if len(safe.encode("utf-8")) > _MOST_BYTES:
        head = safe.encode("utf-8")[: _MOST_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore")
        safe = f"{head}-{_hash(part)}"
    return safe or "_"


def require_safe(name: str, where: str) -> str:
    """Return the name that a user gave an output, as it is.

    Raises:
        NolaError: ``output-name``: The name is absolute, leaves the destination, or has characters that file systems
            refuse.
    """
    if not name or PurePosixPath(name).is_absolute() or make_safe(name) != name or name in RESERVED:
        message = f"expected the name of an output, a relative path without .. or special characters, found {name!r}"
        raise NolaError(message, code="output-name", where=where)
    return name


def name_outputs(sources: Sequence[Source], ending: str, owners: Mapping[str, str | None]) -> list[str]:
    """Return the output of each source, relative to the destination.

    A name that the user gave stays. Any other name stays if no other source wants it or has it already, by the manifest
    of earlier runs. Else it gets the first digits of a hash of the path of the source, so that the names do not depend
    on the order of the sources.

    Args:
        sources: The sources; no two of them are equal.
        ending: What the name of each output ends with, such as ``.nola``; empty for directories.
        owners: The source of each output of earlier runs, or None if it is gone and its output is free.

    Raises:
        NolaError: ``output-name``: Two outputs that the user named are the same.
    """
    wanted = [f"{source.name}{'' if source.is_named and _ends(source.name, ending) else ending}" for source in sources]
    _require_different([name for name, source in zip(wanted, sources, strict=True) if source.is_named])
    taken = {_key(name): path for name, path in owners.items() if path is not None}
    count = Counter(_key(name) for name in wanted)
    # An output that is the directory of another one: a directory that is replaced would take the other one along.
    inner = {str(parent) for name in (*count, *taken) for parent in PurePosixPath(name).parents}
    named = [
        _choose(name, source, ending, count=count, taken=taken, inner=inner)
        for name, source in zip(wanted, sources, strict=True)
    ]
    _require_different(named)
    return named


def _choose(
    name: str, source: Source, ending: str, *, count: Counter[str], taken: Mapping[str, str], inner: set[str]
) -> str:
    key = _key(name)
    if source.is_named or taken.get(key) == source.path:
        return name
    other = f"{name.removesuffix(ending)}-{_hash(source.path)}{ending}"
    is_free = count[key] == 1 and key not in taken and key not in inner and name not in RESERVED
    return name if is_free and taken.get(_key(other)) != source.path else other


def _key(name: str) -> str:
    """Return what two names have in common that are one name to a file system, such as those of Windows and macOS."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _ends(name: str, ending: str) -> bool:
    return name.casefold().endswith(ending)


def _require_different(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(_key(name) for name in names).items() if count > 1]
    if twice:
        message = f"several sources have the same output: {list_first(twice, _LISTED)}; give each a name of its own"
        raise NolaError(message, code="output-name")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
