"""Open a file of tensors of any type. The first bytes tell the type; the name and its suffix do not count.

The module of a type is loaded when such a file is met.
"""

from __future__ import annotations

import os

from nola_codec.errors import AdapterError
from nola_codec.stores.files import GGUF_MAGIC, ZIP_MAGIC, AnySource, display_name, is_pickle, open_stream
from nola_codec.stores.tensor_store import MemoryStore, TensorInfo, TensorStore

__all__ = ["MemoryStore", "TensorInfo", "TensorStore", "open_store"]


def open_store(source: AnySource, name: str | None = None) -> TensorStore:
    """Open safetensors, `.npz`, a PyTorch pickle or GGUF, and check all of its header.

    Args:
        source: A path, bytes or a binary stream. A stream is read from its position, and whole if it cannot seek.
        name: The file's name in messages.

    Raises:
        AdapterError: ``not-found``, ``unreadable``, ``empty-file``, ``lfs-pointer``, ``html-page``, ``nola-file``,
            ``archive``; ``zip`` for a zip archive that is neither `.npz` nor PyTorch's; and those of the class that
            reads the file.
    """
    name = name if name is not None else display_name(source)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and not source.seekable():
        source = source.read()
    head = _first_bytes(source, name)
    if head.startswith(GGUF_MAGIC):
        from nola_codec.stores.gguf_io import GgufFile

        return GgufFile(source, name=name)
    if head.startswith(ZIP_MAGIC):
        return _open_zip(source, name)
    if is_pickle(head):
        from nola_codec.stores.pickle_io import open_pickle

        return open_pickle(source, name=name)
    from nola_codec.stores.safetensors_io import open_safetensors

    return open_safetensors(source, name=name)


def _first_bytes(source: AnySource, name: str) -> bytes:
    stream, owned = open_stream(source, name)
    try:
        position = stream.tell()
        head = stream.read(16)
        stream.seek(position)
    except OSError as e:
        raise AdapterError(f"cannot be read: {e}", code="unreadable", where=name) from e
    finally:
        if owned:
            stream.close()
    return head


def _open_zip(source: AnySource, name: str) -> TensorStore:
    from nola_codec.stores.npz_io import NpzFile
    from nola_codec.stores.pickle_io import open_pickle
    from nola_codec.stores.zip_io import Archive

    archive = Archive(source, name=name)
    if archive.members and all(member.endswith(".npy") for member in archive.members):
        return NpzFile(archive, name=name)
    try:
        if any(member.endswith("data.pkl") for member in archive.members):
            return open_pickle(archive, name=name)
    finally:
        archive.close()
    message = "a zip archive that is neither .npz nor PyTorch's; unpack it and name the adapter in it"
    raise AdapterError(message, code="zip", where=name)
