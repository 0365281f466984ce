"""Recognise the quantized weights of a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nola_codec.checkpoints.quantization import quantized_weights
from nola_codec.stores.dtypes import TORCH_NAMES

if TYPE_CHECKING:
    import torch

_PACKAGES: Mapping[str, str] = {
    "bitsandbytes": "bitsandbytes", "auto_gptq": "GPTQ", "gptqmodel": "GPTQ", "awq": "AWQ", "hqq": "HQQ",
    "torchao": "torchao", "quanto": "Quanto", "optimum.quanto": "Quanto", "compressed_tensors": "compressed-tensors",
    "torch.ao.nn.quantized": "PyTorch's own quantization",
    "torch.ao.nn.intrinsic.quantized": "PyTorch's own quantization",
}  # fmt: skip
"""The method of quantization, by the package of a module's or a tensor's class."""


def quantized_parameters(model: torch.nn.Module, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each quantized weight of a model, and the method.

    The class of a module or of its weight tells the method; else the names and dtypes of parameters and buffers do.

    Args:
        model: The model.
        config: Its configuration as a dict.
    """
    names = {f"torch.{name}": dtype for dtype, name in TORCH_NAMES.items()}
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    dtypes = {name: names.get(str(tensor.dtype), str(tensor.dtype)) for name, tensor in tensors.items()}
    found = quantized_weights(dtypes, config)
    for path, module in model.named_modules():
        for owner in (module, getattr(module, "weight", None)):
            method = _method_of_class(owner)
            if method:
                found[f"{path}.weight"] = method
    return found


def _method_of_class(owner: object) -> str:
    package = type(owner).__module__ + "."
    return next((method for name, method in _PACKAGES.items() if package.startswith(name + ".")), "")
