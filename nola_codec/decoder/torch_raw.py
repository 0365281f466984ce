"""Tensors carried as they are <-> torch."""

from __future__ import annotations

import torch

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor

_TORCH_NAMES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of one of `model.DTYPES`."""
    found: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return found


def to_torch(tensor: RawTensor) -> torch.Tensor:
    """A new tensor on the CPU."""
    data = (
        torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8)
        if tensor.data
        else torch.empty(0, dtype=torch.uint8)
    )
    return data.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def from_torch(tensor: torch.Tensor) -> RawTensor:
    """A tensor's bytes. Raises AdapterError ``dtype`` for a dtype that a file cannot carry."""
    name = next((name for name in _TORCH_NAMES if torch_dtype(name) == tensor.dtype), None)
    if name is None:
        raise AdapterError(f"{tensor.dtype} cannot be carried", code="dtype")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return RawTensor(name, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
