"""Branches: the product of two factors that runs beside a module, and whose result is added to the module's.

    linear      y + (x A^T) B^T         a module whose forward is that of `torch.nn.Linear`, and Conv1D of Transformers
    embedding   y + A^T[ids] B^T        `torch.nn.Embedding`
    conv        y + conv_1(conv(x, A), B)   `torch.nn.Conv1d`, `Conv2d` and `Conv3d` of one group

The weight of the module is not touched. A module that computes otherwise, or whose parent reads the weight without
calling it (multi-head attention of PyTorch), has no branch; its delta is merged into the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from nola_codec.model.records import CodedKind

Branch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``branch(x, y)`` returns the output y of a module for the input x, with the product of the factors added."""

_CONVOLUTIONS: dict[type[torch.nn.Module], tuple[Callable[..., torch.Tensor], int]] = {
    torch.nn.Conv1d: (functional.conv1d, 1),
    torch.nn.Conv2d: (functional.conv2d, 2),
    torch.nn.Conv3d: (functional.conv3d, 3),
}


def has_branch(module: torch.nn.Module | None, weight: str, kind: CodedKind) -> bool:
    """Return True if the delta of a weight can run beside its module.

    Args:
        module: The module that holds the weight, if it is known.
        weight: The name of the weight.
        kind: The kind of the pair.
    """
    if module is None or weight.rpartition(".")[2] != "weight":
        return False
    if type(module) is torch.nn.Embedding:
        return kind.layout == "embedding" and module.max_norm is None
    if kind.layout == "embedding":
        return False
    if type(module) in _CONVOLUTIONS:
        conv: Any = module
        return bool(conv.groups == 1 and conv.padding_mode == "zeros")
    return _is_linear(module)


def make_branch(module: torch.nn.Module, lora_A: torch.Tensor, lora_B: torch.Tensor) -> Branch:
    """Return the branch of a pair beside a module that `has_branch` accepts.

    Args:
        module: The module.
        lora_A: (r, in), on the device of the module and in the dtype that the branch computes in.
        lora_B: (out, r), the same; the scaling is multiplied into it.
    """
    if type(module) is torch.nn.Embedding:
        rows = lora_A.T.contiguous()  # (vocab, r)
        return lambda ids, y: y + (functional.embedding(ids, rows) @ lora_B.T).to(y.dtype)
    if type(module) in _CONVOLUTIONS:
        return _conv_branch(module, lora_A, lora_B)
    return lambda x, y: _add_linear(x, y, lora_A, lora_B)


def run_beside(module: torch.nn.Module, branch: Branch) -> torch.utils.hooks.RemovableHandle:
    """Let a branch run whenever a module is called, until the handle is removed."""

    def hook(_: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], y: torch.Tensor) -> torch.Tensor:
        return branch(args[0] if args else next(iter(named.values())), y)

    return module.register_forward_hook(hook, with_kwargs=True)


def _is_linear(module: torch.nn.Module) -> bool:
    # The projection of multi-head attention is a Linear that nobody calls.
    kind: Any = type(module)
    if kind.__name__ in ("NonDynamicallyQuantizableLinear", "Conv1D"):
        return bool(kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils")
    return bool(kind.forward is torch.nn.Linear.forward)


def _add_linear(x: torch.Tensor, y: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> torch.Tensor:
    """Return y (..., out) + (x A^T) B^T for x (..., in)."""
    inner = functional.linear(x.to(lora_A.dtype), lora_A)  # (..., r)
    if inner.dtype != y.dtype or lora_B.dtype != y.dtype:
        return y + functional.linear(inner, lora_B).to(y.dtype)
    flat = torch.addmm(y.reshape(-1, y.shape[-1]), inner.reshape(-1, inner.shape[-1]), lora_B.T)
    return flat.reshape(y.shape)


def _conv_branch(module: Any, lora_A: torch.Tensor, lora_B: torch.Tensor) -> Branch:
    """Return the branch of a convolution: one with the kernel of the module, and one with a kernel of one element."""
    conv, dimensions = _CONVOLUTIONS[type(module)]
    kernel = lora_A.reshape(-1, *module.weight.shape[1:])  # (r, in, *kernel)
    mixing = lora_B.reshape(*lora_B.shape, *(1,) * dimensions)  # (out, r, 1...)

    def branch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inner = conv(x.to(kernel.dtype), kernel, None, module.stride, module.padding, module.dilation)
        return y + conv(inner, mixing).to(y.dtype)

    return branch
