"""Twenty adapters that are broken in twenty ways, as people upload them: for the benchmark and the tests of fleets."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Tensors = dict[str, npt.NDArray[Any]]
_KEY = "base_model.model.model.layers.0.self_attn.{}.lora_{}.weight"
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "none",
}  # fmt: skip


def make_tensors(seed: int = 0) -> Tensors:
    """Return the tensors of a small PEFT adapter: rank 2 on two weights of 128 by 128."""
    rng = np.random.default_rng(seed)
    return {
        _KEY.format(name, side): rng.standard_normal((2, 128) if side == "A" else (128, 2)).astype(np.float32)
        for name in ("q_proj", "v_proj")
        for side in "AB"
    }


def write_adapter(folder: Path, tensors: Tensors | None = None, config: Any = CONFIG) -> Path:
    """Write an adapter as PEFT does, and return its directory. A configuration of None is left out."""
    folder.mkdir(parents=True)
    save_file(make_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def break_all(folder: Path) -> dict[str, Path]:
    """Write one broken adapter of each kind into a folder, and return their paths by the names of the kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write(folder / name) for name, write in KINDS.items()}


class _Harmful:
    """What a pickle that runs a command looks like."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.getenv, ("HOME",)


def _whole_file(tensors: Tensors | None = None) -> bytes:
    from safetensors.numpy import save

    return bytes(save(make_tensors() if tensors is None else tensors))


def _lone(data: bytes, suffix: str = ".safetensors") -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        file = path.with_suffix(suffix)
        file.write_bytes(data)
        return file

    return write


def _with_header(header: bytes) -> Callable[[Path], Path]:
    return _lone(struct.pack("<Q", len(header)) + header + bytes(64))


def _changed(change: Callable[[Tensors], None]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        tensors = make_tensors()
        change(tensors)
        return write_adapter(path, tensors)

    return write


def _configured(config: Any) -> Callable[[Path], Path]:
    return lambda path: write_adapter(path, config=config)


def _drop_side(tensors: Tensors) -> None:
    del tensors[_KEY.format("v_proj", "B")]


def _other_rank(tensors: Tensors) -> None:
    tensors[_KEY.format("v_proj", "B")] = np.ones((128, 3), np.float32)


def _not_a_number(tensors: Tensors) -> None:
    tensors[_KEY.format("q_proj", "A")][1, 5] = np.nan


def _unknown_tensor(tensors: Tensors) -> None:
    tensors["base_model.model.something.else"] = np.ones(4, np.float32)


def _zip(path: Path) -> Path:
    file = path.with_suffix(".safetensors")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("adapter/readme.txt", "an adapter")
    return file


def _missing_shard(path: Path) -> Path:
    write_adapter(path)
    (path / "adapter_model.safetensors").rename(path / "adapter_model-00001-of-00002.safetensors")
    return path


_OVERLAP = (
    b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[8],"data_offsets":[16,48]}}'
)
KINDS: dict[str, Callable[[Path], Path]] = {
    "lfs_pointer": _lone(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n"),
    "web_page": _lone(b"<!DOCTYPE html><html><body>404</body></html>"),
    "empty_file": _lone(b""),
    "cut_short": _lone(_whole_file()[:-700]),
    "huge_header": _lone(struct.pack("<Q", 1 << 60) + b"{}"),
    "header_is_no_json": _with_header(b'{"a": '),
    "overlap": _with_header(_OVERLAP),
    "unknown_dtype": _with_header(b'{"a":{"dtype":"Q3","shape":[8],"data_offsets":[0,32]}}'),
    "harmful_pickle": _lone(pickle.dumps({"w": _Harmful()}, protocol=2), ".bin"),
    "zip_archive": _zip,
    "gzip_archive": _lone(gzip.compress(_whole_file(), mtime=0)),
    "no_configuration": _configured(None),
    "configuration_is_no_json": _configured("{lora_alpha: 4}"),
    "another_method": _configured({**CONFIG, "peft_type": "OFT"}),
    "huge_number": _configured({**CONFIG, "revision_number": 1 << 70}),
    "missing_side": _changed(_drop_side),
    "other_rank": _changed(_other_rank),
    "not_a_number": _changed(_not_a_number),
    "unknown_tensor": _changed(_unknown_tensor),
    "missing_shard": _missing_shard,
}
