"""Write tensors to a file, whole or not at all. The suffix of the path names the type of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_file

__all__ = ["SUFFIXES", "is_tensor_file", "write_tensors"]

_FILE_TYPES: Mapping[str, str] = {
    ".safetensors": "safetensors", ".npz": "npz", ".bin": "pickle", ".pt": "pickle", ".pth": "pickle", ".gguf": "gguf",
}  # fmt: skip

SUFFIXES = tuple(_FILE_TYPES)
"""The suffixes of files that `write_tensors` writes, in lower case."""


def is_tensor_file(path: str | os.PathLike[str]) -> bool:
    """Return True if the suffix of a path is one of `SUFFIXES`; an output path without one is a directory."""
    return Path(path).suffix.lower() in _FILE_TYPES


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file; an existing one is replaced. Equal input gives equal bytes.

    Args:
        path: The path, with one of `SUFFIXES` in upper or lower case.
        tensors: The tensors by name.
        metadata: Strings that only safetensors can hold. Other types of files leave out the entry ``format``, which
            says who wrote the file, and refuse all others.
        extra: Typed key-values, ``{key: (type name, value)}``. Only GGUF can hold them, and it needs
            ``general.architecture`` among them.

    Returns:
        The path.

    Raises:
        AdapterError: ``not-expressible`` for another suffix, for metadata or key-values that the type of file cannot
            hold, and for a dtype that it does not have; ``missing-package``.
        OSError: The directory cannot be written.
    """
    target = Path(path)
    file_type = _FILE_TYPES.get(target.suffix.lower())
    where = str(target)
    if file_type is None:
        message = mismatch("suffix", ", ".join(SUFFIXES), target.suffix or "none")
        raise AdapterError(message, code="not-expressible", where=where)
    if extra and file_type != "gguf":
        message = f"{target.suffix} has no place for typed key-values, such as {next(iter(extra))}"
        raise AdapterError(message, code="not-expressible", where=where)
    if file_type == "safetensors":
        from nola_codec.stores.safetensors_writer import write_file

        return write_file(target, tensors, metadata)
    lost = sorted((metadata or {}).keys() - {"format"})
    if lost:
        message = f"{target.suffix} has no place for metadata, such as {lost[0]}; write .safetensors"
        raise AdapterError(message, code="not-expressible", where=where)
    data = _dump(file_type, tensors, extra or {}, where)
    with atomic_file(target) as stream:
        stream.write(data)
    return target


def _dump(file_type: str, tensors: Mapping[str, RawTensor], extra: Mapping[str, Any], where: str) -> bytes:
    """Return the bytes of a file; the module of its type is loaded here."""
    if file_type == "npz":
        from nola_codec.stores.npz_io import dump_npz

        return dump_npz(tensors)
    if file_type == "pickle":
        from nola_codec.stores.pickle_io import dump_pickle

        return dump_pickle(tensors)
    kind, architecture = extra.get("general.architecture", (None, None))
    if kind != "STRING" or not isinstance(architecture, str):
        raise AdapterError(
            "GGUF needs general.architecture: `decode --format gguf --base MODEL` makes one",
            code="not-expressible",
            where=where,
        )
    from nola_codec.stores.gguf_io import dump_gguf

    return dump_gguf(tensors, extra, architecture)
