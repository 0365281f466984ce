"""Files of tensors made byte by byte, so that any number in them can be wrong."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A header, as JSON or as bytes, and what follows it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def npy_header(descr: str = "<f4", shape: str = "(1,)", order: str = "False") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """A NumPy array file."""
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def gguf_text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return u64(len(value)) + value


def gguf_tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """An entry of the tensor table; ``shape`` in GGUF's order."""
    dimensions = b"".join(u64(n) for n in shape)
    return gguf_text(name) + u32(len(shape)) + dimensions + u32(kind) + u64(offset)


def gguf(
    key_values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file; ``counts`` of tensors and key-values, if they are to be wrong."""
    num_tensors, num_key_values = counts or (len(tensors), len(key_values))
    head = b"GGUF" + u32(version) + u64(num_tensors) + u64(num_key_values) + b"".join(key_values) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def torch_zip(program: bytes, storages: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch archive around a pickle."""
    members = {f"a/data/{name}": data for name, data in (storages or {}).items()}
    return zipped({"a/data.pkl": program, "a/version": b"3\n", **members}, method)


def tensor_program(
    shape: Sequence[int], stride: Sequence[int], numel: int, offset: int = 0, name: str = "w", start: bytes = b"}"
) -> bytes:
    """``{name: tensor}`` as torch.save spells it, with any numbers; storage ``0`` has ``numel`` floats.

    ``start`` is the opcodes that make the dict.
    """

    def number(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def numbers(values: Sequence[int]) -> bytes:
        return b"(" + b"".join(number(n) for n in values) + b"t"

    storage = b"(" + pickled("storage") + b"ctorch\nFloatStorage\n" + pickled("0") + pickled("cpu") + number(numel)
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + b"tQ" + number(offset) + numbers(shape) + numbers(stride) + b"\x89" + hooks + b"t"
    return b"\x80\x02" + start + pickled(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def pickled(text: str) -> bytes:
    """The opcode that pushes a string."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()
