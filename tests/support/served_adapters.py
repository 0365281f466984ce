"""Small adapters of one model for tests of servers, and the packages of servers that are not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import nola_codec

BASE_NAME = "some-owner/Small-Model"
VENDORED = Path(__file__).resolve().parent / "vendored"
MODULES = {"q_proj": (48, 32), "v_proj": (16, 32)}
LAYERS = 2


def write_adapter(directory: Path, *, seed: int = 0, rank: int = 8, strong: int = 2, **config: Any) -> Path:
    """Write an adapter whose modules have `strong` components that a small file keeps, and weak ones that it drops."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, (rows, columns) in MODULES.items():
            path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            strength = np.where(np.arange(rank) < strong + (module == "q_proj"), 1.0, 1e-4)
            tensors[f"{path}.lora_A.weight"] = rng.standard_normal((rank, columns)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = (rng.standard_normal((rows, rank)) * strength).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    stated = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(MODULES),
        "base_model_name_or_path": BASE_NAME, "task_type": "CAUSAL_LM", **config,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(stated))
    return directory


def write_nola(path: Path, **options: Any) -> Path:
    """Write the `.nola` file of such an adapter, in which the weak components are dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nola_codec.encode(write_adapter(path.parent / f"{path.stem}-source", **options), path, nmse=0.05)
    return path


def write_model(directory: Path, **shapes: tuple[int, int]) -> Path:
    """Write the model of the adapters, a module of it in another shape on demand."""
    weights = {
        f"model.layers.{layer}.self_attn.{module}.weight": np.zeros(shapes.get(module, shape), np.float16)
        for layer in range(LAYERS)
        for module, shape in MODULES.items()
    }
    directory.mkdir(parents=True)
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


@contextmanager
def importable_vllm() -> Iterator[bool]:
    """Make `vllm.lora` importable: the installed package, else its files in `vendored`. Yields True if installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if not installed:
        sys.path.insert(0, str(VENDORED))
    try:
        yield installed
    finally:
        if not installed:
            sys.path.remove(str(VENDORED))
            for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
                del sys.modules[name]
            sys.modules.pop("nola_codec.integrations.serving.vllm_resolver", None)
