"""The safetensors reader and writer: agreement with the safetensors package, and one literal file an error."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_io import SafetensorsFile, num_bytes, open_safetensors
from nola_codec.stores.safetensors_writer import SafetensorsWriter, dump, write_file

TENSORS = {
    "b": RawTensor("F16", (3,), b"\1\2\3\4\5\6"),
    "a": RawTensor("F32", (2, 1), bytes(range(8))),
    "scalar": RawTensor("I64", (), bytes(8)),
    "empty": RawTensor("F32", (0, 5), b""),
    "half": RawTensor("BF16", (1,), b"\x80\x3f"),
}


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_what_is_written_is_read_back() -> None:
    with SafetensorsFile(dump(TENSORS, {"k": "v"})) as file:
        assert file.metadata == {"k": "v"}
        assert {name: file.read(name) for name in file.tensors} == TENSORS


def test_bytes_do_not_depend_on_the_order_of_the_maps() -> None:
    metadata = {str(i): "x" for i in range(20)}
    reversed_maps = dump(dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
    assert dump(TENSORS, metadata) == reversed_maps


def test_the_package_reads_ours_and_we_read_the_packages() -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.arange(3, dtype=np.float16)}
    theirs = safetensors.numpy.save(arrays, {"format": "np"})
    with SafetensorsFile(theirs) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        assert file.metadata == {"format": "np"}
    ours = dump(tensors, {"format": "np"})
    assert ours == theirs  # one metadata key, so the package's hash order does not show
    np.testing.assert_array_equal(safetensors.numpy.load(ours)["x"], arrays["x"])
    names = {name for name, _ in safetensors.deserialize(dump(TENSORS))}
    assert names == set(TENSORS)


def serialized(tensors: Mapping[str, RawTensor], metadata: dict[str, str] | None) -> bytes:
    """What the package writes, by way of its raw interface."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8", "BOOL": "bool",
             "F8_E4M3": "float8_e4m3fn"}  # fmt: skip
    kept = {name: np.frombuffer(tensor.data or bytes(1), np.uint8) for name, tensor in tensors.items()}
    specs: dict[str, Any] = {}
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        if hasattr(safetensors, "TensorSpec"):
            address = {"data_ptr": kept[name].ctypes.data, "data_len": len(tensor.data)}
            specs[name] = safetensors.TensorSpec(**entry, **address)
        else:
            specs[name] = {**entry, "data": tensor.data}
    return bytes(safetensors.serialize(specs, metadata=metadata))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"k": 'é\u2028"\\/\x07'}])
def test_bytes_are_the_packages_with_one_dtype_a_width(metadata: dict[str, str] | None) -> None:
    tensors = {**TENSORS, "é": RawTensor("BF16", (2,), bytes(4)), 'm"x': RawTensor("U8", (3,), b"abc")}
    del tensors["b"]
    assert dump(tensors, metadata) == serialized(tensors, metadata)


def test_the_package_orders_tensors_of_one_width_and_metadata_otherwise() -> None:
    """The two reasons for which files are written here; should the package change, it could write them."""
    mixed = {"a": RawTensor("BF16", (1,), bytes(2)), "b": RawTensor("F16", (1,), bytes(2)),
             "c": RawTensor("BF16", (1,), bytes(2))}  # fmt: skip
    ours, theirs = dump(mixed), serialized(mixed, None)
    assert ours != theirs
    with SafetensorsFile(theirs) as file, SafetensorsFile(ours) as own:
        assert {name: file.read(name) for name in file.tensors} == {name: own.read(name) for name in own.tensors}
    several = {str(number): "x" for number in range(24)}
    assert dump({}, several) == dump({}, dict(reversed(several.items())))
    assert list(json.loads(serialized({}, several)[8:])["__metadata__"]) != sorted(several)


def test_a_file_taken_whole_is_read_by_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.safetensors", TENSORS, {"k": "v"})
    sizes = []
    deserialize = safetensors.deserialize

    def count(data: bytes) -> Any:
        sizes.append(len(data))
        return deserialize(data)

    monkeypatch.setattr(safetensors, "deserialize", count)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with open_safetensors(source) as store, SafetensorsFile(path) as file:
            assert {name: store.read(name) for name in store.tensors} == TENSORS
            assert [*store.tensors] == [*file.tensors]
            assert store.metadata == {"k": "v"}
    assert sizes == [path.stat().st_size] * 3


def test_large_files_and_rare_dtypes_are_read_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    rare = {"x": RawTensor("F8_E8M0", (2,), b"ab"), "y": RawTensor("C64", (1,), bytes(8))}
    with open_safetensors(dump(rare)) as store:
        assert isinstance(store, SafetensorsFile)
        assert {name: store.read(name) for name in store.tensors} == rare
    monkeypatch.setattr("nola_codec.stores.safetensors_io.WHOLE_BYTES", 100)
    with open_safetensors(dump(TENSORS)) as store:
        assert isinstance(store, SafetensorsFile)
        assert {name: store.read(name) for name in store.tensors} == TENSORS


def test_what_the_package_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> Any:
        raise safetensors.SafetensorError("no")

    monkeypatch.setattr(safetensors, "deserialize", refuse)
    with pytest.raises(AdapterError, match=r"^t: the safetensors package refuses it: no") as caught:
        open_safetensors(dump(TENSORS), name="t")
    assert caught.value.code == "bad-header"


def test_data_starts_on_an_8_byte_boundary() -> None:
    for extra in range(9):
        data = dump({"n" * (extra + 1): RawTensor("F64", (1,), bytes(8))})
        assert (8 + struct.unpack("<Q", data[:8])[0]) % 8 == 0


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "memoryview", "stream", "pipe"])
def test_every_kind_of_source(tmp_path: Path, kind: str) -> None:
    data = dump(TENSORS)
    path = write_file(tmp_path / "t.safetensors", TENSORS)
    assert path.read_bytes() == data

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    skipped = io.BytesIO(b"before" + data)
    skipped.seek(6)
    source = {
        "path": path,
        "str": str(path),
        "bytes": data,
        "memoryview": memoryview(data),
        "stream": skipped,
        "pipe": Pipe(data),
    }[kind]
    with SafetensorsFile(source) as file:
        assert file.read("a") == TENSORS["a"]
        assert file.read("half") == TENSORS["half"]
    assert not skipped.closed


def test_write_file_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="do not fill"):
        write_file(target, {"w": RawTensor("F32", (2,), bytes(4))})
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_writer_insists_on_what_the_header_says() -> None:
    specs = {"a": ("F32", (1,)), "b": ("F32", (1,))}
    writer = SafetensorsWriter(io.BytesIO(), specs)
    with pytest.raises(ValueError, match="expected a"):
        writer.write("b", RawTensor("F32", (1,), bytes(4)))
    writer = SafetensorsWriter(io.BytesIO(), specs)
    writer.write("a", RawTensor("F32", (1,), bytes(4)))
    with pytest.raises(ValueError, match="1 tensors were announced"):
        writer.finish()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
REJECTED = {
    "empty": ("empty-file", b""),
    "lfs": ("lfs-pointer", LFS),
    "html": ("html-page", b"\n<!DOCTYPE html><html>not found</html>"),
    "pickle": ("pickle", pickle.dumps({"lora": [1, 2, 3]})),
    "zip": ("zip", b"PK\x03\x04" + bytes(40)),
    "short": ("truncated", b"\x05\0\0"),
    "not json": ("bad-header", packed(b"{nope}")),
    "text": ("bad-header", b"just some text, longer than eight bytes"),
    "array": ("bad-header", packed(b"[1,2]")),
    "deep": ("bad-header", packed(b'{"a":' + b"[" * 100_000)),
    "huge number": ("bad-header", packed(b'{"a":' + b"9" * 5000 + b"}")),
    "nan": ("bad-header", packed(b'{"a": NaN}')),
    "bad utf-8": ("bad-header", packed(b'{"\xff": 1}')),
    "header past the end": ("truncated", struct.pack("<Q", 99) + b"{}"),
    "header limit": ("limit", struct.pack("<Q", 1 << 40) + b"{}"),
    "duplicate key": ("bad-header", packed(b'{"a":1,"a":1}')),
    "entry keys": ("bad-header", packed({"a": {"dtype": "F32"}})),
    "dtype": ("unknown-dtype", packed({"a": entry(0, 4, [1], "F31")}, bytes(4))),
    "negative size": ("bad-header", packed({"a": entry(0, 4, [-1])}, bytes(4))),
    "bool size": ("bad-header", packed({"a": entry(0, 4, [True])}, bytes(4))),
    "float size": ("bad-header", packed({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4))),
    "dimensions": ("bad-header", packed({"a": entry(0, 4, [1] * 17)}, bytes(4))),
    "length": ("bad-tensor", packed({"a": entry(0, 4, [2])}, bytes(4))),
    "product overflow": ("bad-tensor", packed({"a": entry(0, 4, [1 << 62, 1 << 62])}, bytes(4))),
    "half a byte": ("bad-tensor", packed({"a": entry(0, 1, [1], "F4")}, bytes(1))),
    "backwards": ("bad-header", packed({"a": entry(4, 0, [1])}, bytes(4))),
    "hole": ("bad-offsets", packed({"a": entry(4, 8, [1])}, bytes(8))),
    "overlap": ("bad-offsets", packed({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, bytes(8))),
    "trailing": ("bad-offsets", packed({"a": entry(0, 4, [1])}, bytes(5))),
    "data cut": ("truncated", packed({"a": entry(0, 4, [1])}, bytes(3))),
    "metadata": ("bad-header", packed({"__metadata__": {"a": 1}})),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(case: str, tmp_path: Path) -> None:
    code, data = REJECTED[case]
    for source in (data, io.BytesIO(data)):
        with pytest.raises(AdapterError) as e:
            SafetensorsFile(source, name="t.safetensors")
        assert e.value.code == code
        assert str(e.value).startswith("t.safetensors")


# Files that the package reads and that are refused here: limits of our own.
STRICTER = {"dimensions"}


@pytest.mark.parametrize("case", REJECTED)
def test_the_package_refuses_the_same_files(case: str) -> None:
    data = REJECTED[case][1]
    if case in STRICTER:
        safetensors.deserialize(data)
        return
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)


@given(st.integers(0, 300), st.binary(min_size=1, max_size=3))
def test_damaged_files_are_read_alike_or_refused(position: int, change: bytes) -> None:
    """What both accept, both read to the same tensors."""
    data = bytearray(dump(TENSORS, {"k": "v"}))
    data[position : position + len(change)] = change
    try:
        with SafetensorsFile(bytes(data)) as file:
            found = {name: file.read(name) for name in file.tensors}
        theirs = safetensors.deserialize(bytes(data))
    except (AdapterError, safetensors.SafetensorError):
        return
    assert found == {name: RawTensor(info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in theirs}


def test_every_truncation_is_an_error() -> None:
    data = dump(TENSORS, {"k": "v"})
    for length in range(len(data)):
        with pytest.raises(AdapterError):
            SafetensorsFile(data[:length])


def test_missing_file_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as e:
        SafetensorsFile(tmp_path / "none.safetensors")
    assert e.value.code == "not-found"
    with SafetensorsFile(dump(TENSORS)) as file, pytest.raises(AdapterError) as e:
        file.read("z")
    assert e.value.code == "no-such-tensor"


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.safetensors", {"w": RawTensor("U8", (1 << 20,), bytes(1 << 20))})
    with SafetensorsFile(path) as file:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(AdapterError) as e:
            file.read("w")
        assert e.value.code == "truncated"


def test_num_bytes_of_sub_byte_dtypes() -> None:
    assert num_bytes("F4", (4, 2)) == 4
    assert num_bytes("F6_E2M3", (4,)) == 3
