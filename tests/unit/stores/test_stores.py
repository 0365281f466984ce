"""A file of tensors is known by its first bytes, and looks the same whichever it is."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from container_forge import zipped

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.open_store import MemoryStore, TensorInfo, open_store
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_writer import dump
from nola_codec.stores.tensor_store import TensorStore

TENSORS = {
    "q.lora_a": RawTensor("F32", (2, 3), struct.pack("<6f", *range(6))),
    "q.lora_b": RawTensor("F16", (3,), bytes(6)),
}


def legacy(tensors: dict[str, RawTensor]) -> bytes:
    import torch

    state = torch.load(io.BytesIO(dump_pickle(tensors)), weights_only=True)
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


STORES: dict[str, tuple[str, Callable[[dict[str, RawTensor]], bytes]]] = {
    "safetensors": ("safetensors", dump),
    "npz": ("npz", dump_npz),
    "torch": ("pickle", dump_pickle),
    "old torch": ("pickle", legacy),
    "gguf": ("gguf", lambda tensors: dump_gguf(tensors, {}, "llama")),
}


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("case", STORES)
@pytest.mark.parametrize("kind", ["path", "str", "bytes", "memoryview", "stream", "stream past its start", "pipe"])
def test_every_store_from_every_kind_of_source(case: str, kind: str, tmp_path: Path) -> None:
    file_type, make = STORES[case]
    data = make(TENSORS)
    path = tmp_path / "misleading.safetensors"
    path.write_bytes(data)
    skipped, stream = io.BytesIO(b"before" + data), io.BytesIO(data)
    skipped.seek(6)
    source = {
        "path": path,
        "str": str(path),
        "bytes": data,
        "memoryview": memoryview(data),
        "stream": stream,
        "stream past its start": skipped,
        "pipe": Pipe(data),
    }[kind]
    store: TensorStore
    with open_store(source) as store:
        assert store.file_type == file_type
        assert {name: store.read(name) for name in store.tensors} == TENSORS
        assert {name: (info.dtype, info.shape) for name, info in store.tensors.items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()
        }
        assert store.metadata == {}
        assert set(store.extra) <= {"general.architecture"}
        assert store.name == {"path": str(path), "str": str(path)}.get(
            kind, "(bytes)" if kind in ("bytes", "memoryview") else "(stream)"
        )
        with pytest.raises(AdapterError, match="no such tensor") as e:
            store.read("z")
        assert e.value.code == "no-such-tensor"
    assert not skipped.closed
    assert not stream.closed


@pytest.mark.parametrize("case", STORES)
def test_files_are_closed(case: str, tmp_path: Path) -> None:
    """An unclosed file is a ResourceWarning, and warnings are errors here; on Windows it could not be removed."""
    path = tmp_path / "t"
    path.write_bytes(STORES[case][1](TENSORS))
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    store = open_store(path)
    store.close()
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(AdapterError):
        open_store(path)
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_name_of_its_own() -> None:
    with open_store(dump(TENSORS), name="given") as store:
        assert store.name == "given"
    with pytest.raises(AdapterError, match=r"^given: "):
        open_store(b"nothing", name="given")


def test_metadata_and_key_values() -> None:
    with open_store(dump(TENSORS, {"format": "pt"})) as store:
        assert (store.metadata, store.extra) == ({"format": "pt"}, {})
    with open_store(dump_gguf(TENSORS, {"adapter.lora.alpha": ("FLOAT32", 8.0)}, "llama")) as store:
        assert store.metadata == {}
        assert store.extra == {"general.architecture": ("STRING", "llama"), "adapter.lora.alpha": ("FLOAT32", 8.0)}


def test_memory_store() -> None:
    with MemoryStore(TENSORS, name="m", metadata={"a": "b"}, extra={"k": ("BOOL", True)}, file_type="gguf") as store:
        assert (store.name, store.metadata, store.extra, store.file_type) == (
            "m", {"a": "b"}, {"k": ("BOOL", True)}, "gguf",
        )  # fmt: skip
        assert store.tensors == {"q.lora_a": TensorInfo("F32", (2, 3)), "q.lora_b": TensorInfo("F16", (3,))}
        assert store.read("q.lora_b") == TENSORS["q.lora_b"]
        with pytest.raises(AdapterError) as e:
            store.read("z")
        assert e.value.code == "no-such-tensor"


def tarred(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("adapter_model.safetensors")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


FOREIGN = {
    "empty": ("empty-file", b""),
    "lfs": ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "html": ("html-page", b"<!DOCTYPE html><html>not found</html>"),
    "json": ("bad-header", b'{"error": "Repository not found"}'),
    "nola": ("nola-file", b"\x89NLA\r\n\x1a\n" + bytes(20)),
    "zip": ("zip", zipped({"lora/adapter_model.safetensors": dump(TENSORS)})),
    "empty zip": ("bad-header", zipped({})),
    "half a zip": ("bad-zip", zipped({"a": b"1"})[:-5]),
    "gzip": ("archive", gzip.compress(dump(TENSORS))),
    "tar": ("archive", tarred(dump(TENSORS))),
    "text": ("bad-header", b"just some text, longer than eight bytes"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_store_is_named(case: str, tmp_path: Path) -> None:
    code, data = FOREIGN[case]
    path = tmp_path / "t.npz"
    path.write_bytes(data)
    for source in (data, path, Pipe(data)):
        with pytest.raises(AdapterError) as e:
            open_store(source, name="t.npz")
        assert e.value.code == code
        assert str(e.value).startswith("t.npz: ")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "loop").symlink_to("loop")
    for name, code in (
        ("none", "not-found"), (".", "unreadable"), ("pipe", "unreadable"), ("loop", "unreadable"),
        ("n" * 300, "unreadable"), ("a\0b", "unreadable"),
    ):  # fmt: skip
        with pytest.raises(AdapterError) as e:
            open_store(tmp_path / name)
        assert e.value.code == code, name
    with pytest.raises(AdapterError, match="not a regular file"):
        open_store("/dev/zero")
