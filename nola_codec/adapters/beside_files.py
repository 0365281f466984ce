"""Carry the tensors of files that lie beside an adapter and belong to it, and give them back as such files.

A carried tensor has the key ``beside:<file>:<key>``. In a decoded directory it is in a file of the same name again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import SUFFIXES, write_tensors

_KEY = re.compile(r"beside:(?P<file>[^:/\\\0]+):(?P<key>.*)", re.DOTALL)
# The names that the decoded adapter itself needs.
_TAKEN = re.compile(r"\.*|adapter_(?:model|config)\..*", re.IGNORECASE)


def is_beside(key: str) -> bool:
    """Return True if a carried tensor is of a file beside the adapter."""
    return _KEY.fullmatch(key) is not None


def read_beside(directory: Path, names: Iterable[str]) -> dict[str, RawTensor]:
    """Read all tensors of files beside an adapter, by the keys that they are carried under.

    Raises:
        AdapterError: Those of `open_store` and `read_carried`.
    """
    from nola_codec.adapters.dialects.pairs import read_carried
    from nola_codec.stores.open_store import open_store

    carried: dict[str, RawTensor] = {}
    for name in names:
        with open_store(directory / name) as store:
            carried |= {f"beside:{name}:{key}": read_carried(store, key) for key in store.tensors}
    return carried


def split_beside(raw: Mapping[str, RawTensor]) -> tuple[dict[str, RawTensor], dict[str, dict[str, RawTensor]]]:
    """Return the carried tensors of the adapter itself, and those of files beside it, by the name of the file.

    Raises:
        AdapterError: ``bad-name``: a `.nola` file of a stranger has a name that is no tensor file's, or the adapter's.
    """
    own: dict[str, RawTensor] = {}
    files: dict[str, dict[str, RawTensor]] = {}
    for key, tensor in raw.items():
        match = _KEY.fullmatch(key)
        if match is None:
            own[key] = tensor
            continue
        name = match["file"]
        if _TAKEN.fullmatch(name) or not name.lower().endswith(SUFFIXES):
            raise AdapterError("is not a name of a file beside an adapter", code="bad-name", where=key)
        files.setdefault(name, {})[match["key"]] = tensor
    return own, files


def write_beside(directory: Path, files: Mapping[str, Mapping[str, RawTensor]]) -> None:
    """Write the files of `split_beside` into the directory of an adapter; raise what `write_tensors` raises."""
    for name, tensors in files.items():
        write_tensors(directory / name, tensors, {"format": "pt"})


def require_no_beside(files: Mapping[str, Mapping[str, RawTensor]], path: Path) -> None:
    """Raise AdapterError ``needs-directory`` if an adapter that goes to a lone file has files beside it."""
    if files:
        message = f"a lone file has no place for the tensors of {', '.join(files)}; write a directory"
        raise AdapterError(message, code="needs-directory", where=str(path))
