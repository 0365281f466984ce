"""CUDA tensors that are not there: shapes, dtypes and devices are checked, no number is."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Indexing(TorchFunctionMode):
    """Does Python's indexing by ATen operations.

    A build without CUDA cannot index a fake CUDA tensor: the binding asks for a device guard first.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return pick(*args)
        if func is torch.Tensor.__setitem__:
            tensor, index, value = args
            index = index if isinstance(index, tuple) else (index,)
            if any(isinstance(i, torch.Tensor) for i in index):
                assert all(i == slice(None) for i in index if isinstance(i, slice))
                return aten.index_put_.default(tensor, [None if isinstance(i, slice) else i for i in index], value)
            return aten.copy_.default(pick(tensor, index), value)
        return func(*args, **(kwargs or {}))


def pick(tensor: Any, index: Any) -> Any:
    """``tensor[index]`` for integers, slices, None, an ellipsis and one tensor."""
    index = index if isinstance(index, tuple) else (index,)
    if any(i is Ellipsis for i in index):
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        index = (*index[:at], *(slice(None),) * (tensor.dim() - len(index) + 1), *index[at + 1 :])
    dim = 0
    for i in index:
        if isinstance(i, torch.Tensor):
            tensor = aten.index.Tensor(tensor, [None] * dim + [i])
        elif i is None:
            tensor = aten.unsqueeze.default(tensor, dim)
        elif isinstance(i, slice):
            tensor = aten.slice.Tensor(tensor, dim, i.start, i.stop, i.step or 1) if i != slice(None) else tensor
        else:
            tensor, dim = aten.select.int(tensor, dim, i), dim - 1
        dim += 1
    return tensor


class Watch(TorchDispatchMode):
    """Refuses operations on several devices, transfers back, and products of integers, which CUDA lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
        tensors = [a for a in flat if isinstance(a, torch.Tensor)]
        name = str(func)
        devices = {t.device.type for t in tensors if t.dim()}
        assert len(devices) <= 1, f"{name} on {devices}"
        if any(word in name for word in ("mm", "bmm", "matmul", "dot", "linear", "einsum")):
            assert all(t.is_floating_point() for t in tensors), f"{name} on {[t.dtype for t in tensors]}"
            self.products += 1
        if name.startswith("aten._to_copy") and devices == {"cuda"}:
            assert made.device.type == "cuda", "a transfer back"
        return made
