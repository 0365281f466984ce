"""Write safetensors files: the same bytes each time, and tensor by tensor; `safetensors_io` says why."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_file
from nola_codec.stores.safetensors_io import DTYPE_BITS, num_bytes


class SafetensorsWriter:
    """Writes a file tensor by tensor, so that only one tensor has to be in memory.

    The caller gives all dtypes and shapes first, for the header, and then each tensor once, in the same order.

    Example:
        >>> out = io.BytesIO()
        >>> writer = SafetensorsWriter(out, {"w": ("F32", (1,))})
        >>> writer.write("w", RawTensor("F32", (1,), bytes(4)))
        >>> writer.finish()
    """

    def __init__(
        self,
        stream: BinaryIO,
        specs: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the header.

        Args:
            stream: The binary stream to write to; it stays open.
            specs: (dtype, shape) of each tensor by name, in the order of the file.
            metadata: The ``__metadata__`` entry of the header.

        Raises:
            AdapterError: ``unknown-dtype``, ``bad-tensor``.
        """
        self._stream = stream
        self._specs = dict(specs)
        self._pending = iter(self._specs.items())
        self._left = len(self._specs)
        stream.write(encode_header(self._specs, metadata or {}))

    def write(self, name: str, tensor: RawTensor) -> None:
        """Append the next tensor.

        Raises:
            ValueError: The name, dtype, shape or length is not what the header says; this is a fault of the caller.
        """
        wanted, (dtype, shape) = next(self._pending, ("(the end)", ("", ())))
        if (name, tensor.dtype, tensor.shape) != (wanted, dtype, shape):
            raise ValueError(f"expected {wanted} {dtype} {shape}, found {name} {tensor.dtype} {tensor.shape}")
        if len(tensor.data) != num_bytes(dtype, shape):
            raise ValueError(f"{name}: {len(tensor.data)} bytes do not fill {dtype} {shape}")
        self._left -= 1
        self._stream.write(tensor.data)

    def finish(self) -> None:
        """Check that all tensors were written.

        Raises:
            ValueError: Some tensors were not written.
        """
        if self._left:
            raise ValueError(f"{self._left} tensors were announced in the header and not written")


def dump(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file as bytes. Equal input gives equal bytes, whatever the order of the mappings.

    Raises:
        AdapterError: ``unknown-dtype``, ``bad-tensor``.
    """
    stream = io.BytesIO()
    _write(stream, tensors, metadata)
    return stream.getvalue()


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the bytes of `dump` to a file, whole or not at all. An existing file is replaced.

    Raises:
        AdapterError: ``unknown-dtype``, ``bad-tensor``.
        OSError: The directory cannot be written.
    """
    with atomic_file(path) as stream:
        _write(stream, tensors, metadata)
    return Path(path)


def canonical_order(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """Return the names of tensors in the order of a file: by width of the dtype, widest first, and then by name.

    In this order every tensor is aligned to its dtype.
    """
    return sorted(specs, key=lambda name: (-DTYPE_BITS[specs[name][0]], name))


def _write(stream: BinaryIO, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None) -> None:
    specs = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    for dtype, shape in specs.values():
        num_bytes(dtype, shape)
    order = canonical_order(specs)
    writer = SafetensorsWriter(stream, {name: specs[name] for name in order}, metadata)
    for name in order:
        writer.write(name, tensors[name])
    writer.finish()


def encode_header(specs: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors: the length and the header. The tensors follow in the order of ``specs``."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name, (dtype, shape) in specs.items():
        stop = position + num_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # tensors start on an 8-byte boundary
    return len(encoded).to_bytes(8, "little") + encoded
