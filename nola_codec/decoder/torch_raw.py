"""Convert carried tensors to torch and back."""

from __future__ import annotations

import torch

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import TORCH_NAMES


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype for a name of a dtype in `RawTensor`."""
    found: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return found


def to_torch(tensor: RawTensor) -> torch.Tensor:
    """Return a carried tensor as a new torch tensor on the CPU, in its dtype and shape."""
    data = (
        torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8)
        if tensor.data
        else torch.empty(0, dtype=torch.uint8)
    )
    return data.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def from_torch(tensor: torch.Tensor) -> RawTensor:
    """Return a torch tensor as a tensor that a file can carry. Raises AdapterError ``dtype`` for any other dtype."""
    name = next((name for name in TORCH_NAMES if torch_dtype(name) == tensor.dtype), None)
    if name is None:
        raise AdapterError(f"a file cannot carry tensors of dtype {tensor.dtype}", code="dtype")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return RawTensor(name, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
