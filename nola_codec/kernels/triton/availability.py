"""Whether the Triton kernels run on a device."""

from __future__ import annotations

import importlib.util
import os
from functools import cache


def uses_triton(device_type: str) -> bool:
    """Return True if the Triton kernels are used on devices of a type.

    That is on "cuda", which is also PyTorch's name for AMD's devices, where Triton is installed; on "cpu" if Triton's
    interpreter was asked for. NOLA_TRITON=off in the environment turns them off, and NOLA_KERNELS=off all kernels.

    Args:
        device_type: The `type` of a torch.device.
    """
    if "off" in (os.environ.get("NOLA_TRITON"), os.environ.get("NOLA_KERNELS")) or not _is_installed():
        return False
    if is_interpreted():
        return device_type == "cpu"
    return device_type == "cuda" and _has_device()


def is_interpreted() -> bool:
    """Return True if kernels run in Triton's interpreter, which is decided when Triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _has_device() -> bool:
    import torch

    return torch.cuda.is_available()


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
