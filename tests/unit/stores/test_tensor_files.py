"""Files of tensors are written as the type of file that their suffix names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.open_store import open_store
from nola_codec.stores.tensor_files import SUFFIXES, is_tensor_file, write_tensors

TENSORS = {"q.lora_a": RawTensor("F32", (2,), bytes(8)), "q.lora_b": RawTensor("BF16", (1, 1), b"\x80\x3f")}
GGUF = {"general.architecture": ("STRING", "llama"), "adapter.lora.alpha": ("FLOAT32", 8.0)}
FILE_TYPES = {
    ".safetensors": "safetensors", ".npz": "npz", ".bin": "pickle", ".pt": "pickle", ".pth": "pickle", ".gguf": "gguf",
}  # fmt: skip


def test_suffixes() -> None:
    assert set(SUFFIXES) == set(FILE_TYPES)
    assert all(is_tensor_file(f"a{suffix}") and is_tensor_file(f"a{suffix.upper()}") for suffix in SUFFIXES)
    assert not any(is_tensor_file(path) for path in ("a", "a.txt", "a.safetensors.txt", "dir.d", "safetensors"))


@pytest.mark.parametrize("suffix", [*FILE_TYPES, ".NPZ"])
def test_what_is_written_is_read_back(suffix: str, tmp_path: Path) -> None:
    extra = GGUF if suffix == ".gguf" else None
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"old")
    assert write_tensors(path, TENSORS, {"format": "pt"}, extra=extra) == path
    first = path.read_bytes()
    with open_store(path) as store:
        assert store.file_type == FILE_TYPES[suffix.lower()]
        assert {name: store.read(name) for name in store.tensors} == TENSORS
        assert store.metadata == ({"format": "pt"} if suffix == ".safetensors" else {})
        assert store.extra == (extra or {})
    write_tensors(path, TENSORS, {"format": "pt"}, extra=extra)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


REFUSED: dict[str, tuple[str, dict[str, RawTensor], dict[str, str], dict[str, Any]]] = {
    "no such suffix": ("t.ckpt", TENSORS, {}, {}),
    "no suffix": ("t", TENSORS, {}, {}),
    "metadata in npz": ("t.npz", TENSORS, {"ss_network_dim": "4"}, {}),
    "metadata in a pickle": ("t.bin", TENSORS, {"ss_network_dim": "4"}, {}),
    "metadata in gguf": ("t.gguf", TENSORS, {"ss_network_dim": "4"}, GGUF),
    "key-values in safetensors": ("t.safetensors", TENSORS, {}, GGUF),
    "key-values in npz": ("t.npz", TENSORS, {}, GGUF),
    "no architecture": ("t.gguf", TENSORS, {}, {}),
    "architecture of another type": ("t.gguf", TENSORS, {}, {"general.architecture": ("UINT8", 3)}),
    "a dtype it has not": ("t.npz", {"w": RawTensor("F8_E4M3", (1,), b"\0")}, {}, {}),
    "a dtype gguf has not": ("t.gguf", {"w": RawTensor("U8", (1,), b"\0")}, {}, GGUF),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_is_refused_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    name, tensors, metadata, extra = REFUSED[case]
    with pytest.raises(AdapterError) as e:
        write_tensors(tmp_path / name, tensors, metadata, extra=extra)
    assert e.value.code == "not-expressible"
    assert list(tmp_path.iterdir()) == []
