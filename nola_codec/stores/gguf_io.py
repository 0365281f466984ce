"""Read and write GGUF, the file format of llama.cpp (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

This module reads the header itself, and compares each count and length with the bytes that are left. The reader of the
`gguf` package trusts them, and may loop for ever. So the package is imported only for block-quantized tensors and for
writing.
"""

from __future__ import annotations

import importlib.util
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.stores.files import GGUF_MAGIC, AnySource, display_name, open_from_start
from nola_codec.stores.tensor_store import Closing, TensorInfo, no_such_tensor

__all__ = ["GgufFile", "dump_gguf"]


MAX_TENSORS = 500_000
_MAX_KEY_VALUES = 65_536
_MAX_NAME_BYTES = 65_535
_MAX_STRING_BYTES = 16_000_000
_MAX_ELEMENTS = 8_000_000  # for all arrays together; the largest vocabularies have about a million
_MAX_NESTING = 4
_MAX_DIMENSIONS = 8  # ggml itself allows 4
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32

_ARCHITECTURE = "general.architecture"
_ALIGNMENT = "general.alignment"

# The value types, by their numbers in the file: the name, and the NumPy dtype of one value.
_SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("UINT8", "<u1"), 1: ("INT8", "<i1"), 2: ("UINT16", "<u2"), 3: ("INT16", "<i2"), 4: ("UINT32", "<u4"),
    5: ("INT32", "<i4"), 6: ("FLOAT32", "<f4"), 7: ("BOOL", "|u1"), 10: ("UINT64", "<u8"), 11: ("INT64", "<i8"),
    12: ("FLOAT64", "<f8"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {number: name for number, (name, _) in _SCALARS.items()} | {_STRING: "STRING", _ARRAY: "ARRAY"}

# The tensor types that are plain arrays, by their numbers in the file.
_PLAIN: Mapping[int, str] = {
    0: "F32", 1: "F16", 30: "BF16", 28: "F64", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
}  # fmt: skip
_NUMBER_OF_DTYPE = {dtype: number for number, dtype in _PLAIN.items()}


@dataclass(frozen=True)
class _Tensor(TensorInfo):
    """A tensor in the file.

    Attributes:
        kind: The number of its type in the file.
        start, stop: The offsets of its bytes from the file's first byte.
    """

    kind: int
    start: int
    stop: int


class GgufFile(Closing):
    """A GGUF file with its header checked and its tensors unread.

    Attributes:
        name: The file's name, for messages.
        tensors: `TensorInfo` by name, in the order of the file. Shapes are as in PyTorch (GGUF writes them backwards).
            Block-quantized types are reported and read as F32.
        extra: ``{key: (type name, value)}`` with GGUF's names of types: ``("FLOAT32", 16.0)``,
            ``("STRING", "adapter")``. An array is ``("ARRAY", (element type name, [values]))``.
    """

    file_type = "gguf"
    metadata: Mapping[str, str] = MappingProxyType({})

    def __init__(self, source: AnySource, *, name: str | None = None) -> None:
        """Open and check a path, bytes or a binary stream.

        Raises:
            AdapterError: ``not-found``, ``unreadable``, ``bad-gguf``, ``truncated``, ``limit``, ``unknown-dtype``;
                ``missing-package`` for block-quantized tensors without `gguf`.
        """
        self.name = name if name is not None else display_name(source)
        self._file, self._owned = open_from_start(source, self.name)
        try:
            header = _HeaderReader(self._file, self.name)
            self.extra: Mapping[str, tuple[str, Any]] = MappingProxyType(header.read_key_values())
            self._tensors = header.read_tensors(_alignment(self.extra, self.name))
        except OSError as e:
            self.close()
            raise AdapterError(f"cannot be read: {e}", code="unreadable", where=self.name) from e
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._tensors)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def read(self, name: str) -> RawTensor:
        """Read one tensor. A block-quantized one is read as the float32 values that it stands for.

        Raises:
            AdapterError: ``no-such-tensor``, ``truncated``; ``unknown-dtype`` for blocks that `gguf` cannot unpack.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise no_such_tensor(self.name, name)
        where = f"{self.name}: {name}"
        self._file.seek(tensor.start)
        data = self._file.read(tensor.stop - tensor.start)
        if len(data) != tensor.stop - tensor.start:
            raise AdapterError(mismatch("bytes", tensor.stop - tensor.start, len(data)), code="truncated", where=where)
        if tensor.kind not in _PLAIN and data:
            data = _dequantize(data, tensor, where)
        return RawTensor(tensor.dtype, tensor.shape, data)


class _HeaderReader:
    """Reads a header once, from its start to its end, and never asks for more bytes than the file has."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._size = stream.seek(0, os.SEEK_END)
        self._position = stream.seek(0)
        self._elements = 0
        magic, version = self._take(4, "magic"), self._number(4, "version")
        if magic != GGUF_MAGIC:
            raise self._bad_gguf_error(mismatch("magic", GGUF_MAGIC, magic))
        if version not in (2, 3):
            big = " (a big-endian file, or damaged)" if version & 0xFFFF == 0 else ""
            raise self._bad_gguf_error(mismatch("GGUF version", "2 or 3", f"{version}{big}"))
        self._num_tensors, self._num_key_values = self._number(8, "tensor count"), self._number(8, "key-value count")
        for what, count, least, most in (
            ("tensors", self._num_tensors, 24, MAX_TENSORS),
            ("key-values", self._num_key_values, 13, _MAX_KEY_VALUES),
        ):
            self._require(count * least, f"{count} {what}")
            if count > most:
                raise AdapterError(f"{count} {what}, over {most}", code="limit", where=name)

    def read_key_values(self) -> dict[str, tuple[str, Any]]:
        """Return `GgufFile.extra`."""
        result: dict[str, tuple[str, Any]] = {}
        for _ in range(self._num_key_values):
            key = self._string("key", _MAX_NAME_BYTES)
            if key in result:
                raise self._bad_gguf_error(f"the key {key!r} occurs twice")
            kind = self._number(4, key)
            result[key] = (self._type_name(kind, key), self._value(kind, key, 0))
        return result

    def read_tensors(self, alignment: int) -> dict[str, _Tensor]:
        """Return the tensors by name; their data start at multiples of ``alignment`` bytes."""
        entries = [self._read_tensor_entry() for _ in range(self._num_tensors)]
        base = -(-self._position // alignment) * alignment
        result: dict[str, _Tensor] = {}
        for name, tensor in entries:
            where = f"{self._name}: {name}"
            if name in result:
                raise AdapterError("occurs twice", code="bad-gguf", where=where)
            if tensor.start % alignment:
                raise AdapterError(f"offset {tensor.start} is not aligned to {alignment}", code="bad-gguf", where=where)
            placed = _Tensor(tensor.dtype, tensor.shape, tensor.kind, base + tensor.start, base + tensor.stop)
            if placed.stop > max(self._size, base if placed.start == placed.stop else 0):
                raise AdapterError(mismatch("data", f"{placed.stop} bytes", self._size), code="truncated", where=where)
            result[name] = placed
        position = base
        for name, tensor in sorted(result.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start < position:
                raise AdapterError("overlaps the tensor before it", code="bad-gguf", where=f"{self._name}: {name}")
            position = tensor.stop
        return result

    def _read_tensor_entry(self) -> tuple[str, _Tensor]:
        name = self._string("name of a tensor", _MAX_NAME_BYTES)
        where = f"{self._name}: {name}"
        dimensions = self._number(4, name)
        if dimensions > _MAX_DIMENSIONS:
            message = mismatch("dimensions", f"at most {_MAX_DIMENSIONS}", dimensions)
            raise AdapterError(message, code="bad-gguf", where=where)
        shape = tuple(self._number(8, name) for _ in range(dimensions))[::-1]
        kind, start = self._number(4, name), self._number(8, name)
        dtype, nbytes = _stored_size(kind, shape, where)
        return name, _Tensor(dtype, shape, kind, start, start + nbytes)

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind == _STRING:
            return self._string(key, _MAX_STRING_BYTES)
        if kind != _ARRAY:
            return self._scalars(kind, 1, key)[0]
        if depth >= _MAX_NESTING:
            raise self._bad_gguf_error(f"{key!r}: arrays nested more than {_MAX_NESTING} deep")
        element, count = self._number(4, key), self._number(8, key)
        name = self._type_name(element, key)
        self._elements += count
        least = {_STRING: 8, _ARRAY: 12}.get(element) or np.dtype(_SCALARS[element][1]).itemsize
        self._require(count * least, f"{key!r}: {count} elements")
        if self._elements > _MAX_ELEMENTS:
            raise AdapterError(f"arrays of more than {_MAX_ELEMENTS} elements", code="limit", where=self._name)
        if element in (_STRING, _ARRAY):
            return name, [self._value(element, key, depth + 1) for _ in range(count)]
        return name, self._scalars(element, count, key)

    def _scalars(self, kind: int, count: int, key: str) -> list[Any]:
        code = np.dtype(_SCALARS[kind][1])
        values: list[Any] = np.frombuffer(self._take(count * code.itemsize, key), dtype=code).tolist()
        return [self._boolean(value, key) for value in values] if _SCALARS[kind][0] == "BOOL" else values

    def _boolean(self, value: int, key: str) -> bool:
        if value > 1:
            raise self._bad_gguf_error(f"{key!r}: {mismatch('boolean', '0 or 1', value)}")
        return bool(value)

    def _type_name(self, kind: int, key: str) -> str:
        if kind not in _TYPE_NAMES:
            raise self._bad_gguf_error(f"{key!r}: unknown value type {kind}")
        return _TYPE_NAMES[kind]

    def _string(self, what: str, limit: int) -> str:
        length = self._number(8, what)
        self._require(length, f"{what!r}: a string of {length} bytes")
        if length > limit:
            raise AdapterError(f"{what!r}: a string of {length} bytes, over {limit}", code="limit", where=self._name)
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as e:
            raise self._bad_gguf_error(f"{what!r}: not UTF-8") from e

    def _number(self, size: int, what: str) -> int:
        return int.from_bytes(self._take(size, what), "little")

    def _take(self, count: int, what: str) -> bytes:
        self._require(count, what)
        data = self._stream.read(count)
        if len(data) != count:  # the file shrank
            raise AdapterError(mismatch(what, f"{count} bytes", len(data)), code="truncated", where=self._name)
        self._position += count
        return data

    def _require(self, count: int, what: str) -> None:
        if count > self._size - self._position:
            message = mismatch(what, f"{count} bytes", f"{self._size - self._position} left")
            raise AdapterError(message, code="truncated", where=self._name)

    def _bad_gguf_error(self, message: str) -> AdapterError:
        return AdapterError(message, code="bad-gguf", where=self._name)


def dump_gguf(tensors: Mapping[str, RawTensor], extra: Mapping[str, Any], architecture: str) -> bytes:
    """Return a GGUF file as bytes. Key-values and tensors keep the order given, and equal input gives equal bytes.

    Args:
        tensors: Tensors by name, of F32, F16, BF16, F64 or signed integers, with at most four dimensions.
        extra: ``{key: (type name, value)}``, as in `GgufFile.extra`. It may hold ``general.architecture``, and it may
            set ``general.alignment``.
        architecture: The value of ``general.architecture``, which is written first.

    Raises:
        AdapterError: ``not-expressible`` for a tensor or value that GGUF cannot hold; ``missing-package`` without
            `gguf`.
    """
    gguf = _package("writing GGUF")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        try:
            if tuple(extra.get(_ARCHITECTURE, ("STRING", architecture))) != ("STRING", architecture):
                raise ValueError(mismatch(_ARCHITECTURE, repr(architecture), extra[_ARCHITECTURE]))
            writer.data_alignment = _alignment(extra, "")
            for key, (kind, value) in extra.items():
                if key != _ARCHITECTURE:
                    _add_key_value(gguf, writer, key, kind, value)
            for name, tensor in tensors.items():
                _add_tensor(gguf, writer, name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except (struct.error, TypeError, ValueError, KeyError, OverflowError, AttributeError) as e:
            # Key-values may come from a stranger's .nola file, which may give them values of any type.
            raise AdapterError(f"GGUF cannot hold this: {e}", code="not-expressible") from e
        finally:
            writer.close()
        return path.read_bytes()


def _add_key_value(gguf: Any, writer: Any, key: str, kind: str, value: Any) -> None:
    types = gguf.GGUFValueType
    if kind != "ARRAY":
        writer.add_key_value(key, value, types[kind])
        return
    element, values = value
    if not values or element == "ARRAY":
        message = "the gguf package cannot write empty or nested arrays"
        raise AdapterError(message, code="not-expressible", where=key)
    writer.add_key_value(key, list(values), types.ARRAY, sub_type=types[element])


def _add_tensor(gguf: Any, writer: Any, name: str, tensor: RawTensor) -> None:
    number = _NUMBER_OF_DTYPE.get(tensor.dtype)
    if number is None:
        raise AdapterError(f"GGUF has no dtype {tensor.dtype}", code="not-expressible", where=name)
    if len(tensor.shape) > 4:
        message = mismatch("dimensions", "at most 4", len(tensor.shape))
        raise AdapterError(message, code="not-expressible", where=name)
    # The writer gets integers of the right width and the number of the type; it would take uint8 for quantized blocks.
    size = DTYPE_BYTES[tensor.dtype]
    array = np.frombuffer(tensor.data, dtype=f"<i{size}").reshape(tensor.shape)
    writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType(number))


def _alignment(extra: Mapping[str, Any], where: str) -> int:
    kind, value = extra.get(_ALIGNMENT, ("UINT32", _DEFAULT_ALIGNMENT))
    if kind != "UINT32" or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        message = mismatch(_ALIGNMENT, f"a power of two up to {_MAX_ALIGNMENT}", f"{kind} {value}")
        raise AdapterError(message, code="bad-gguf", where=where)
    return int(value)


def _stored_size(kind: int, shape: tuple[int, ...], where: str) -> tuple[str, int]:
    """Return the dtype that `GgufFile.read` gives a tensor, and the tensor's size in the file in bytes."""
    if kind in _PLAIN:
        return _PLAIN[kind], math.prod(shape) * DTYPE_BYTES[_PLAIN[kind]]
    gguf = _package("block-quantized tensors")
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as e:
        raise AdapterError(f"unknown tensor type {kind}", code="unknown-dtype", where=where) from e
    row = shape[-1] if shape else 1
    if row % block:
        message = mismatch("row length", f"a multiple of {block}", row)
        raise AdapterError(message, code="bad-gguf", where=where)
    return "F32", math.prod(shape) // block * block_bytes


def _dequantize(data: bytes, tensor: _Tensor, where: str) -> bytes:
    gguf = _package("block-quantized tensors")
    kind = gguf.GGMLQuantizationType(tensor.kind)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(math.prod(tensor.shape[:-1]), -1)
    try:
        with np.errstate(all="ignore"):  # a stranger's scales may overflow; the dialect checks that values are finite
            values = gguf.quants.dequantize(rows, kind)
    except NotImplementedError as e:
        raise AdapterError(f"blocks of type {kind.name} cannot be unpacked", code="unknown-dtype", where=where) from e
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _package(what: str) -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise AdapterError(f"{what} needs gguf: pip install 'nola-codec[gguf]'", code="missing-package")
    import gguf

    return gguf
