"""Read and write `.npz`: a zip archive of NumPy arrays, as `numpy.savez` and MLX's `mx.savez` write it.

NumPy's own reader is not used. It allocates memory before it compares an array's shape with the bytes that are there,
and it can load pickled objects. The header of an array is a Python literal of three entries, which is checked here.
"""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.stores.files import AnySource, is_unicode
from nola_codec.stores.tensor_store import Closing, TensorInfo, no_such_tensor
from nola_codec.stores.zip_io import Archive

__all__ = ["NpzFile", "dump_npz"]

_NPY_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000  # NumPy's own limit for headers it does not trust
_MAX_DIMENSIONS = 32

# MLX writes bfloat16 as two bytes of type "void" (`mlx/dtype.cpp`), and so does NumPy with the dtypes of ml_dtypes. A
# void of one byte would be a float8, but the file does not say which float8.
_DTYPE_OF_DESCR: Mapping[str, str] = {
    "f4": "F32", "f2": "F16", "V2": "BF16", "f8": "F64", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u1": "U8", "b1": "BOOL", "u2": "U16", "u4": "U32", "u8": "U64",
}  # fmt: skip
_DESCR_OF_DTYPE = {dtype: descr for descr, dtype in _DTYPE_OF_DESCR.items()}


@dataclass(frozen=True)
class _Array(TensorInfo):
    """An array in the archive.

    Attributes:
        member: The name of the member of the archive.
        start: The offset of the array's first byte in the unpacked member.
        big_endian: True if the values are stored with the most significant byte first.
        fortran_order: True if the first index varies fastest.
    """

    member: str
    start: int
    big_endian: bool
    fortran_order: bool


class NpzFile(Closing):
    """An `.npz` file, with the header of every array checked and the values unread.

    Attributes:
        name: The file's name, for messages.
        tensors: `TensorInfo` by name, without the suffix `.npy`.
    """

    file_type = "npz"
    metadata: Mapping[str, str] = MappingProxyType({})
    extra: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, source: AnySource | Archive, *, name: str | None = None) -> None:
        """Open and check a path, bytes, a binary stream or an `Archive`; the archive is closed with this file.

        Raises:
            AdapterError: ``bad-npz``, ``unknown-dtype``, ``object-array``, ``truncated``, and those of `Archive`.
        """
        self._archive = source if isinstance(source, Archive) else Archive(source, name=name)
        self.name = name if name is not None else self._archive.name
        try:
            arrays = {member.removesuffix(".npy"): self._check_member(member) for member in self._archive.members}
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(arrays)
        self._arrays = arrays

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def read(self, name: str) -> RawTensor:
        """Read one array. The result is little-endian and row-major, however the array is stored.

        Raises:
            AdapterError: ``no-such-tensor``, ``bad-zip``.
        """
        array = self._arrays.get(name)
        if array is None:
            raise no_such_tensor(self.name, name)
        data = self._archive.read(array.member)[array.start :]
        size = DTYPE_BYTES[array.dtype]
        if data and ((array.big_endian and size > 1) or (array.fortran_order and len(array.shape) > 1)):
            values = np.frombuffer(data, dtype=f"{'>' if array.big_endian else '<'}u{size}")
            ordered = values.reshape(array.shape[::-1]).T if array.fortran_order else values
            data = ordered.astype(f"<u{size}").tobytes()
        return RawTensor(array.dtype, array.shape, data)

    def _check_member(self, member: str) -> _Array:
        where = f"{self.name}: {member}"
        if not member.endswith(".npy") or member == ".npy":
            raise AdapterError("not an array (.npy)", code="bad-npz", where=where)
        head = self._archive.read(member, 12)
        if not head.startswith(_NPY_MAGIC) or len(head) < 12:
            raise AdapterError("not an array: no NumPy header", code="bad-npz", where=where)
        # Version 1 has two bytes for the header's length. Version 2 has four. Version 3 also allows UTF-8 in it.
        version = head[6]
        if version not in (1, 2, 3):
            raise AdapterError(mismatch("NumPy array version", "1 to 3", version), code="bad-npz", where=where)
        start = 10 if version == 1 else 12
        length = int.from_bytes(head[8:start], "little")
        if length > _MAX_HEADER_BYTES:
            raise AdapterError(f"array header of {length} bytes, over {_MAX_HEADER_BYTES}", code="limit", where=where)
        text = self._archive.read(member, start + length)[start:]
        if len(text) != length:
            raise AdapterError(mismatch("array header", f"{length} bytes", len(text)), code="truncated", where=where)
        descr, fortran_order, shape = _parse_header(text, where)
        dtype = _dtype_of(descr, where)
        held = self._archive.members[member] - start - length
        if held != math.prod(shape) * DTYPE_BYTES[dtype]:
            wanted = f"{math.prod(shape) * DTYPE_BYTES[dtype]} bytes"
            code = "truncated" if held < math.prod(shape) * DTYPE_BYTES[dtype] else "bad-npz"
            raise AdapterError(mismatch(f"{dtype} {list(shape)}", wanted, held), code=code, where=where)
        return _Array(dtype, shape, member, start + length, descr.startswith(">"), fortran_order)


def dump_npz(tensors: Mapping[str, RawTensor]) -> bytes:
    """Return an `.npz` file as bytes: uncompressed arrays, in the order of their names. Equal input gives equal bytes.

    BF16 is written as MLX writes and reads it (two bytes of type void); NumPy shows such an array as ``V2``. Older
    versions of MLX have no float64, and read F64 wrongly.

    Raises:
        AdapterError: ``not-expressible`` for float8, for a name that a zip archive cannot hold, and for one that leads
            out of its folder.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(tensors):
            tensor = tensors[name]
            if tensor.dtype not in _DESCR_OF_DTYPE:
                raise AdapterError(f".npz has no dtype {tensor.dtype}", code="not-expressible", where=name)
            if not name or "\0" in name or len(name.encode("utf-8", "replace")) > 60_000 or not is_unicode(name):
                raise AdapterError(f"{name[:80]!r} cannot be a name in a zip archive", code="not-expressible")
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
                message = f"{name[:80]!r} would leave the folder that a zip archive is unpacked in"
                raise AdapterError(message, code="not-expressible")
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # the default depends on the operating system
            member.external_attr = 0o644 << 16
            archive.writestr(member, _npy_header(tensor) + tensor.data)
    return out.getvalue()


def _npy_header(tensor: RawTensor) -> bytes:
    descr = _DESCR_OF_DTYPE[tensor.dtype]
    order = "|" if descr.endswith("1") or descr == "V2" else "<"
    # MLX looks for the type and the order at fixed positions, so the text is spelled as NumPy spells it.
    text = f"{{'descr': '{order}{descr}', 'fortran_order': False, 'shape': {tensor.shape}, }}"
    text += " " * (-(len(_NPY_MAGIC) + 4 + len(text) + 1) % 64) + "\n"
    return _NPY_MAGIC + b"\1\0" + len(text).to_bytes(2, "little") + text.encode("ascii")


def _parse_header(text: bytes, where: str) -> tuple[str, bool, tuple[int, ...]]:
    try:
        header = ast.literal_eval(text.decode("utf-8"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
        raise AdapterError("the array header is not a Python literal", code="bad-npz", where=where) from e
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise AdapterError("expected descr, fortran_order and shape", code="bad-npz", where=where)
    descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str):
        raise AdapterError("an array of records, not of numbers", code="bad-npz", where=where)
    if not isinstance(fortran_order, bool):
        raise AdapterError("fortran_order is not True or False", code="bad-npz", where=where)
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
    ):
        raise AdapterError("shape is not a short tuple of sizes", code="bad-npz", where=where)
    return descr, fortran_order, shape


def _dtype_of(descr: str, where: str) -> str:
    match = re.fullmatch(r"[<>|=]?([A-Za-z]\d{0,9})", descr)
    kind = match[1] if match else descr[:40]
    if kind[:1] == "O":
        message = "an array of Python objects, which only a pickle can hold; it is not loaded"
        raise AdapterError(message, code="object-array", where=where)
    if kind not in _DTYPE_OF_DESCR:
        raise AdapterError(f"unknown dtype {descr[:40]!r}", code="unknown-dtype", where=where)
    return _DTYPE_OF_DESCR[kind]
