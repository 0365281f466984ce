"""Read safetensors files, also those of strangers; `safetensors_writer` writes them.

Layout (https://huggingface.co/docs/safetensors): the length of the header (8 bytes, little-endian), a JSON header, and
the bytes of the tensors without holes. The `safetensors` package reads a file that is taken whole (`open_safetensors`).
Our own code does what the package cannot do:

- It checks limits before it allocates memory, and says what is wrong with a file (`SafetensorsFile`).
- It reads single tensors of a stream or of a shard larger than memory, in any dtype, without a framework.
- It writes a file tensor by tensor, so that a shard larger than memory can be written (`SafetensorsWriter`).
- It writes the same bytes each time. The package writes metadata in the order of a hash table, which differs from
  process to process. It orders tensors of one width by dtype, where we order them by name. Its raw interface takes
  bytes up to version 0.7, and addresses from 0.8 on. If there is one entry of metadata, and only one dtype of each
  width, both write the same bytes.

The tests compare both, on good and on bad files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import safetensors

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.stores.files import (
    AnySource,
    describe_foreign_bytes,
    display_name,
    is_unicode,
    open_stream,
)
from nola_codec.stores.tensor_store import Closing, MemoryStore, TensorInfo, TensorStore, no_such_tensor

__all__ = [
    "DTYPE_BITS",
    "SafetensorsFile",
    "StoredTensor",
    "TensorInfo",
    "num_bytes",
    "open_safetensors",
]

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
MAX_TENSORS = 500_000
MAX_DIMENSIONS = 16
WHOLE_BYTES = 1 << 24
"""The size of a file up to which `open_safetensors` reads it whole, which takes three times its size of memory."""

# The last row has dtypes that occur in base checkpoints, but not in adapters; such tensors are only copied.
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {name: 8 * size for name, size in DTYPE_BYTES.items()}
    | {"F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
)


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """The place of a tensor: ``start`` and ``stop`` are offsets in bytes into the data that follow the header.

    Example: ``StoredTensor("F32", (8, 576), 0, 18432)``.
    """

    start: int
    stop: int


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the size of a tensor in bytes.

    Raises:
        AdapterError: ``unknown-dtype``; ``bad-tensor`` if the elements do not fill whole bytes.
    """
    if dtype not in DTYPE_BITS:
        raise AdapterError(f"unknown dtype {dtype!r}", code="unknown-dtype")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    if bits % 8:
        raise AdapterError(f"{dtype} {list(shape)} does not fill whole bytes", code="bad-tensor")
    return bits // 8


def open_safetensors(source: AnySource, *, name: str | None = None) -> TensorStore:
    """Open a file whose tensors will all be read.

    The header is checked here first. Then the safetensors package reads the whole file at once. A file of more than
    `WHOLE_BYTES`, or with dtypes that not all versions of the package know, is read tensor by tensor instead.

    Raises:
        AdapterError: Those of `SafetensorsFile`; ``bad-header`` for a file that the package refuses.
    """
    file = SafetensorsFile(source, name=name)
    if file.size > WHOLE_BYTES or any(info.dtype not in DTYPE_BYTES for info in file.tensors.values()):
        return file
    with file:
        return MemoryStore(file.read_all(), name=file.name, metadata=file.metadata)


class SafetensorsFile(Closing):
    """A safetensors file with its header checked and its tensors unread.

    All checks are made before any tensor is read: lengths, JSON, dtypes, shapes, no holes, no overlaps, no trailing
    bytes. Use it as a context manager. A stream given by the caller stays open.

    Attributes:
        name: The file's name, for messages.
        size: The size of the file in bytes.
        tensors: `StoredTensor` by name, in the order of their bytes.
        metadata: The ``__metadata__`` entry of the header, which maps str to str.

    Example:
        >>> data = dump({"w": RawTensor("F32", (1,), bytes(4))}, {"format": "pt"})
        >>> with SafetensorsFile(data) as file:
        ...     file.read("w").shape, file.metadata
        ((1,), {'format': 'pt'})
    """

    file_type = "safetensors"
    extra: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, source: AnySource, *, name: str | None = None) -> None:
        """Open and check a path, bytes or a binary stream.

        A stream is read from its position. If it cannot seek, it is read whole.

        Raises:
            AdapterError: ``not-found``, ``unreadable``, ``empty-file``, ``lfs-pointer``, ``html-page``, ``pickle``,
                ``zip``, ``truncated``, ``bad-header``, ``limit``, ``unknown-dtype``, ``bad-tensor``, ``bad-offsets``.
        """
        self.name = name if name is not None else display_name(source)
        self._file, self._owned = open_stream(source, self.name)
        try:
            self._origin = self._file.tell()
            self.size = size = self._file.seek(0, os.SEEK_END) - self._origin
            header, self._data_start = self._read_header(size)
            self.metadata = self._check_metadata(header.pop("__metadata__", None))
            self.tensors: Mapping[str, StoredTensor] = MappingProxyType(self._check_tensors(header, size))
        except OSError as e:
            self.close()
            raise AdapterError(f"cannot be read: {e}", code="unreadable", where=self.name) from e
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def read(self, name: str) -> RawTensor:
        """Read the bytes of one tensor as they are stored.

        Raises:
            AdapterError: ``no-such-tensor``; ``truncated`` if the file shrank since it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise no_such_tensor(self.name, name)
        return RawTensor(info.dtype, info.shape, self.read_start(name, info.stop - info.start))

    def read_start(self, name: str, most: int) -> bytes:
        """Read the first bytes of a tensor, at most so many. Raises AdapterError ``truncated`` as `read` does."""
        info = self.tensors[name]
        count = min(most, info.stop - info.start)
        self._file.seek(self._origin + self._data_start + info.start)
        data = self._file.read(count)
        if len(data) != count:
            raise AdapterError(mismatch("bytes", count, len(data)), code="truncated", where=f"{self.name}: {name}")
        return data

    def read_all(self) -> dict[str, RawTensor]:
        """Read all tensors at once with the safetensors package, in the order of their bytes.

        Raises:
            AdapterError: ``truncated`` if the file shrank since it was opened; ``bad-header`` for a file that the
                package refuses.
        """
        self._file.seek(self._origin)
        data = self._file.read(self.size)
        if len(data) != self.size:
            raise AdapterError(mismatch("bytes", self.size, len(data)), code="truncated", where=self.name)
        try:
            read = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as e:
            raise AdapterError(f"the safetensors package refuses it: {e}", code="bad-header", where=self.name) from e
        found = {key: info["data"] for key, info in read}
        del data, read  # each tensor is in memory once, or twice while it is copied
        return {key: RawTensor(info.dtype, info.shape, bytes(found.pop(key))) for key, info in self.tensors.items()}

    def offset(self, name: str) -> int:
        """Return the position of a tensor's first byte in the file or stream."""
        return self._origin + self._data_start + self.tensors[name].start

    def header_bytes(self) -> bytes:
        """Return the bytes before the tensors as they are stored: the length and the header."""
        self._file.seek(self._origin)
        return self._file.read(self._data_start)

    def _read_header(self, size: int) -> tuple[dict[str, Any], int]:
        self._file.seek(self._origin)
        head = self._file.read(min(size, 512))
        foreign = describe_foreign_bytes(head)
        if foreign is not None:
            raise AdapterError(foreign.message, code=foreign.code, where=self.name)
        if size < 8:
            message = "not a safetensors file: " + mismatch("header length", "8 bytes", f"{size}")
            raise AdapterError(message, code="truncated", where=self.name)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] not in (b"{", b""):
            what = "JSON text, not a file of tensors" if head.lstrip()[:1] in (b"{", b"[") else "no JSON header"
            raise AdapterError(f"not a safetensors file: {what}", code="bad-header", where=self.name)
        if length > MAX_HEADER_BYTES:
            raise AdapterError(f"header of {length} bytes, over {MAX_HEADER_BYTES}", code="limit", where=self.name)
        if 8 + length > size:
            raise AdapterError(mismatch("header", f"{length} bytes", size - 8), code="truncated", where=self.name)
        self._file.seek(self._origin + 8)
        try:
            text = self._file.read(length).decode("utf-8")
            header = json.loads(text, object_pairs_hook=_require_unique, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as e:
            raise AdapterError(f"header is not valid JSON: {e}", code="bad-header", where=self.name) from e
        if not isinstance(header, dict):
            raise AdapterError("header is not a JSON object", code="bad-header", where=self.name)
        if not is_unicode("".join(header)):  # JSON can spell half of a surrogate pair, which UTF-8 cannot
            raise AdapterError("a name in the header is not Unicode", code="bad-header", where=self.name)
        if len(header) > MAX_TENSORS:
            raise AdapterError(f"{len(header)} tensors, over {MAX_TENSORS}", code="limit", where=self.name)
        return header, 8 + length

    def _check_metadata(self, metadata: Any) -> dict[str, str]:
        if metadata is None:
            return {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise AdapterError("__metadata__ is not a map of strings", code="bad-header", where=self.name)
        if not is_unicode("".join((*metadata, *metadata.values()))):
            raise AdapterError("__metadata__ is not Unicode", code="bad-header", where=self.name)
        return metadata

    def _check_tensors(self, header: dict[str, Any], size: int) -> dict[str, StoredTensor]:
        infos = {name: self._check_tensor(name, entry) for name, entry in header.items()}
        # An empty tensor starts where the next one starts, so `stop` decides which of the two is first.
        ordered = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)))
        position = 0
        for name, info in ordered.items():
            if info.start != position:
                what = "hole" if info.start > position else "overlap"
                message = f"{what} in the data: {mismatch('start', position, info.start)}"
                raise AdapterError(message, code="bad-offsets", where=f"{self.name}: {name}")
            position = info.stop
        available = size - self._data_start
        if position > available:
            raise AdapterError(mismatch("data", f"{position} bytes", available), code="truncated", where=self.name)
        if position < available:
            message = f"{available - position} bytes after the last tensor"
            raise AdapterError(message, code="bad-offsets", where=self.name)
        return ordered

    def _check_tensor(self, name: str, entry: Any) -> StoredTensor:
        where = f"{self.name}: {name}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise AdapterError("expected dtype, shape and data_offsets", code="bad-header", where=where)
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            raise AdapterError(f"unknown dtype {dtype!r}", code="unknown-dtype", where=where)
        if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
            raise AdapterError("shape is not a short list of sizes", code="bad-header", where=where)
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise AdapterError("data_offsets is not [start, stop]", code="bad-header", where=where)
        try:
            wanted = num_bytes(dtype, tuple(shape))
        except AdapterError as e:
            raise e.within(where) from e
        if wanted != offsets[1] - offsets[0]:
            message = mismatch(f"{dtype} {shape}", f"{wanted} bytes", offsets[1] - offsets[0])
            raise AdapterError(message, code="bad-tensor", where=where)
        return StoredTensor(dtype, tuple(shape), offsets[0], offsets[1])


def _require_unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs twice")
        result[key] = value
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _are_sizes(value: Any) -> bool:
    # `type` and not isinstance, since a bool is an int in Python. The bound of 2^63 keeps products of sizes cheap.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
