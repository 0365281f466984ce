"""The GGUF reader and writer: agreement with the gguf package, and one crafted file an error."""

from __future__ import annotations

import importlib.util
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import container_forge as forge
import gguf
import numpy as np
import pytest
from container_forge import gguf_tensor, gguf_text, u32, u64

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.gguf_io import GgufFile, dump_gguf

TENSORS = {
    "blk.0.attn_q.weight.lora_a": RawTensor("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "half": RawTensor("F16", (5,), np.arange(5, dtype="<f2").tobytes()),
    "brain": RawTensor("BF16", (1, 2), b"\x80\x3f\x00\xc0"),
    "double": RawTensor("F64", (1, 1, 1, 2), bytes(16)),
    "byte": RawTensor("I8", (3,), b"\1\2\3"),
    "long": RawTensor("I64", (1,), bytes(8)),
}
EXTRA: dict[str, Any] = {
    "general.architecture": ("STRING", "llama"),
    "general.type": ("STRING", "adapter"),
    "adapter.type": ("STRING", "lora"),
    "adapter.lora.alpha": ("FLOAT32", 16.0),
    "empty": ("STRING", ""),
    "flag": ("BOOL", True),
    "small": ("UINT8", 255),
    "int8": ("INT8", -128),
    "uint16": ("UINT16", 65535),
    "int16": ("INT16", -5),
    "uint32": ("UINT32", 1 << 31),
    "int32": ("INT32", -7),
    "uint64": ("UINT64", 1 << 63),
    "int64": ("INT64", -(1 << 62)),
    "double": ("FLOAT64", 0.1),
    "names": ("ARRAY", ("STRING", ["a", "é"])),
    "numbers": ("ARRAY", ("UINT16", [1, 2, 3])),
    "flags": ("ARRAY", ("BOOL", [True, False])),
}


def load(data: bytes) -> dict[str, RawTensor]:
    with GgufFile(data) as file:
        return {name: file.read(name) for name in file.tensors}


def test_what_is_written_is_read_back() -> None:
    data = dump_gguf(TENSORS, EXTRA, "llama")
    with GgufFile(data) as file:
        assert dict(file.extra) == EXTRA
        assert list(file.extra) == list(EXTRA)
        assert {name: file.read(name) for name in file.tensors} == TENSORS
        assert file.metadata == {}
    assert dump_gguf(TENSORS, EXTRA, "llama") == data


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(dump_gguf(TENSORS, EXTRA, "llama"))
    reader = gguf.GGUFReader(path)
    assert reader.get_field("adapter.lora.alpha").contents() == 16.0
    assert reader.get_field("names").contents() == ["a", "é"]
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == list(TENSORS)
    np.testing.assert_array_equal(found["blk.0.attn_q.weight.lora_a"].data, np.arange(6.0).reshape(2, 3))
    assert found["brain"].tensor_type == gguf.GGMLQuantizationType.BF16


def written_by_the_package(path: Path, alignment: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 256)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_float32("adapter.lora.alpha", 8.0)
    expected = {}
    for kind in (kinds.Q8_0, kinds.Q4_0, kinds.Q5_1, kinds.BF16):
        blocks = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(blocks, kind)
    writer.add_tensor("plain", values[0])
    expected["plain"] = values[0]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_blocks_are_read_as_the_floats_they_stand_for(alignment: int, tmp_path: Path) -> None:
    expected = written_by_the_package(tmp_path / "t.gguf", alignment)
    with GgufFile(tmp_path / "t.gguf") as file:
        assert [info.shape for info in file.tensors.values()] == [(3, 256)] * 4 + [(256,)]
        for name, values in expected.items():
            tensor = file.read(name)
            if name == "BF16":
                assert tensor.dtype == "BF16"
                bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16
                found = bits.view(np.float32)
            else:
                assert tensor.dtype == "F32"
                found = np.frombuffer(tensor.data, "<f4")
            np.testing.assert_array_equal(found.reshape(values.shape), values)


def test_plain_tensors_need_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written_by_the_package(tmp_path / "t.gguf")
    data = dump_gguf(TENSORS, EXTRA, "llama")
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "gguf" else real(name, *a))
    assert load(data) == TENSORS
    for attempt in (lambda: dump_gguf(TENSORS, EXTRA, "llama"), lambda: GgufFile(tmp_path / "t.gguf")):
        with pytest.raises(AdapterError, match=r"nola-codec\[gguf\]") as e:
            attempt()
        assert e.value.code == "missing-package"


def nested(depth: int) -> bytes:
    return gguf_text("k") + u32(9) + (u32(9) + u64(1)) * depth + u32(4) + u64(1) + u32(7)


ONE = gguf_tensor("w", [1])
REJECTED = {
    "magic": ("bad-gguf", b"GGUX" + forge.gguf()[4:]),
    "nothing": ("truncated", b"GGUF"),
    "version 1": ("bad-gguf", forge.gguf(version=1)),
    "version 4": ("bad-gguf", forge.gguf(version=4)),
    "big-endian": ("bad-gguf", b"GGUF" + struct.pack(">I", 3) + bytes(16)),
    "tensor count": ("truncated", forge.gguf(counts=(1 << 63, 0))),
    "key count": ("truncated", forge.gguf(counts=(0, (1 << 64) - 1))),
    "key count over the limit": ("limit", forge.gguf(counts=(0, 70_000), data=bytes(1_000_000))),
    "tensor count over the limit": ("limit", forge.gguf(counts=(500_001, 0), data=bytes(13_000_000))),
    "key length": ("truncated", forge.gguf([u64(1 << 62)])),
    "key too long": ("limit", forge.gguf([gguf_text("k" * 70_000) + u32(4) + u32(1)])),
    "key not UTF-8": ("bad-gguf", forge.gguf([gguf_text(b"\xff") + u32(4) + u32(1)])),
    "key twice": ("bad-gguf", forge.gguf([gguf_text("k") + u32(4) + u32(1)] * 2)),
    "value type": ("bad-gguf", forge.gguf([gguf_text("k") + u32(13) + u32(1)])),
    "string length": ("truncated", forge.gguf([gguf_text("k") + u32(8) + u64((1 << 64) - 1)])),
    "string not UTF-8": ("bad-gguf", forge.gguf([gguf_text("k") + u32(8) + gguf_text(b"\xc3")])),
    "boolean": ("bad-gguf", forge.gguf([gguf_text("k") + u32(7) + b"\2"])),
    "array count": ("truncated", forge.gguf([gguf_text("k") + u32(9) + u32(0) + u64(1 << 63)])),
    "array of strings count": (
        "truncated",
        forge.gguf([gguf_text("k") + u32(9) + u32(8) + u64(1 << 40)]),
    ),
    "array of arrays count": (
        "truncated",
        forge.gguf([gguf_text("k") + u32(9) + u32(9) + u64(1 << 40)]),
    ),
    "array type": (
        "bad-gguf",
        forge.gguf([gguf_text("k") + u32(9) + u32(99) + u64(1) + bytes(64)]),
    ),
    "array elements": (
        "limit",
        forge.gguf([gguf_text("k") + u32(9) + u32(0) + u64(9_000_000)], data=bytes(9_000_000)),
    ),
    "array nesting": ("bad-gguf", forge.gguf([nested(5)])),
    "alignment 0": ("bad-gguf", forge.gguf([gguf_text("general.alignment") + u32(4) + u32(0)])),
    "alignment 24": ("bad-gguf", forge.gguf([gguf_text("general.alignment") + u32(4) + u32(24)])),
    "alignment 2^31": (
        "bad-gguf",
        forge.gguf([gguf_text("general.alignment") + u32(4) + u32(1 << 31)]),
    ),
    "alignment a string": (
        "bad-gguf",
        forge.gguf([gguf_text("general.alignment") + u32(8) + gguf_text("32")]),
    ),
    "dimensions": ("bad-gguf", forge.gguf(tensors=[gguf_tensor("w", [1] * 9)], data=bytes(32))),
    "dimension count": ("bad-gguf", forge.gguf(tensors=[gguf_text("w") + u32(1 << 31) + bytes(64)])),
    "tensor type": ("unknown-dtype", forge.gguf(tensors=[gguf_tensor("w", [1], 4)], data=bytes(32))),
    "tensor type 2^31": ("unknown-dtype", forge.gguf(tensors=[gguf_tensor("w", [1], 1 << 31)], data=bytes(32))),
    "half a block": ("bad-gguf", forge.gguf(tensors=[gguf_tensor("w", [33], 8)], data=bytes(64))),
    "name twice": ("bad-gguf", forge.gguf(tensors=[ONE, gguf_tensor("w", [1], 0, 32)], data=bytes(64))),
    "name not UTF-8": (
        "bad-gguf",
        forge.gguf(tensors=[gguf_text(b"\xff\xfe") + u32(0) + u32(0) + u64(0)], data=bytes(32)),
    ),
    "not aligned": ("bad-gguf", forge.gguf(tensors=[gguf_tensor("w", [1], 0, 4)], data=bytes(64))),
    "past the end": ("truncated", forge.gguf(tensors=[gguf_tensor("w", [1], 0, 32)], data=bytes(32))),
    "offset 2^63": ("truncated", forge.gguf(tensors=[gguf_tensor("w", [1], 0, 1 << 63)], data=bytes(32))),
    "overlap": (
        "bad-gguf",
        forge.gguf(tensors=[gguf_tensor("w", [9]), gguf_tensor("v", [1], 0, 32)], data=bytes(64)),
    ),
    "same place": ("bad-gguf", forge.gguf(tensors=[ONE, gguf_tensor("v", [1])], data=bytes(32))),
    "shape 2^60": ("truncated", forge.gguf(tensors=[gguf_tensor("w", [1 << 60])], data=bytes(32))),
    "product overflow": ("truncated", forge.gguf(tensors=[gguf_tensor("w", [1 << 63] * 4)], data=bytes(32))),
    "data cut": ("truncated", forge.gguf(tensors=[gguf_tensor("w", [8])], data=bytes(31))),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(case: str) -> None:
    code, data = REJECTED[case]
    with pytest.raises(AdapterError) as e:
        GgufFile(data, name="t.gguf")
    assert e.value.code == code
    assert str(e.value).startswith("t.gguf")


def test_elements_of_all_arrays_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = forge.gguf([gguf_text("k") + u32(9) + u32(9) + u64(3) + (u32(0) + u64(2) + b"ab") * 3])
    assert len(GgufFile(data).extra["k"][1][1]) == 3
    monkeypatch.setattr("nola_codec.stores.gguf_io._MAX_ELEMENTS", 8)
    with pytest.raises(AdapterError) as e:
        GgufFile(data)
    assert e.value.code == "limit"


def test_version_2_and_small_files_are_read() -> None:
    assert load(forge.gguf()) == {}
    assert load(forge.gguf(tensors=[ONE], data=bytes(4), version=2)) == {"w": RawTensor("F32", (1,), bytes(4))}
    assert load(forge.gguf(tensors=[gguf_tensor("w", [])], data=bytes(4))) == {"w": RawTensor("F32", (), bytes(4))}
    assert load(forge.gguf(tensors=[gguf_tensor("w", [0, 1 << 60]), ONE.replace(b"w", b"v")], data=bytes(4))) == {
        "w": RawTensor("F32", (1 << 60, 0), b""),
        "v": RawTensor("F32", (1,), bytes(4)),
    }
    assert load(forge.gguf(tensors=[gguf_tensor("w", [32, 0], 8)])) == {"w": RawTensor("F32", (0, 32), b"")}
    with GgufFile(forge.gguf([nested(3)])) as file:
        assert file.extra["k"] == ("ARRAY", ("ARRAY", [("ARRAY", [("ARRAY", [("UINT32", [7])])])]))


def test_memory_asked_for_is_bounded_by_the_file() -> None:
    tracemalloc.start()
    try:
        for case, (_, data) in REJECTED.items():
            if len(data) > 100_000:
                continue
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(AdapterError):
                GgufFile(data)
            assert tracemalloc.get_traced_memory()[1] - before < 2_000_000, case
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "extra",
    [
        {"k": ("STRING", 5)},
        {"k": ("UINT8", 256)},
        {"k": ("UINT8", "a")},
        {"k": ("FLOAT32", 1e300)},
        {"k": ("NONSENSE", 1)},
        {"k": 5},
        {"k": ("ARRAY", 5)},
        {"k": ("ARRAY", ("STRING", []))},
        {"k": ("ARRAY", ("ARRAY", [("UINT8", [1])]))},
        {"k": ("ARRAY", ("UINT8", [1, "a"]))},
        {"general.architecture": ("STRING", "gpt2")},
        {"general.architecture": 7},
        {"\ud800": ("UINT8", 1)},
    ],
)
def test_key_values_that_gguf_cannot_hold(extra: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as e:
        dump_gguf(TENSORS, extra, "llama")
    assert e.value.code == "not-expressible"


@pytest.mark.parametrize("tensor", [RawTensor("BOOL", (1,), b"\0"), RawTensor("F32", (1,) * 5, bytes(4))])
def test_tensors_that_gguf_cannot_hold(tensor: RawTensor) -> None:
    with pytest.raises(AdapterError) as e:
        dump_gguf({"w": tensor}, {}, "llama")
    assert e.value.code == "not-expressible"
