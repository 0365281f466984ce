"""The .npz reader and writer: agreement with NumPy, and one crafted archive an error."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from container_forge import npy, npy_header, zipped

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.npz_io import NpzFile, dump_npz
from nola_codec.stores.zip_io import Archive

TENSORS = {
    "model.layers.0.q.lora_a": RawTensor("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "half": RawTensor("F16", (3,), np.arange(3, dtype="<f2").tobytes()),
    "brain": RawTensor("BF16", (1, 2), b"\x80\x3f\x00\xc0"),
    "scalar": RawTensor("F64", (), struct.pack("<d", 2.5)),
    "empty": RawTensor("I32", (0, 4), b""),
    "flags": RawTensor("BOOL", (2,), b"\0\1"),
    "bytes": RawTensor("U8", (2,), b"\0\xff"),
}


def load(source: bytes | Path, name: str | None = None) -> dict[str, RawTensor]:
    with NpzFile(source, name=name) as file:
        return {name: file.read(name) for name in file.tensors}


def test_what_is_written_is_read_back_by_us_and_by_numpy() -> None:
    data = dump_npz(TENSORS)
    assert load(data) == TENSORS
    arrays = np.load(io.BytesIO(data))
    assert set(arrays.files) == set(TENSORS)
    for name in ("model.layers.0.q.lora_a", "half", "scalar", "empty", "flags", "bytes"):
        assert (arrays[name].shape, arrays[name].tobytes()) == (TENSORS[name].shape, TENSORS[name].data)
    assert (arrays["brain"].dtype, arrays["brain"].tobytes()) == (np.dtype("V2"), TENSORS["brain"].data)


def test_headers_are_spelt_as_mlx_looks_for_them() -> None:
    """`mlx/io/load.cpp` takes the type from byte 11 of the header and the order from byte 34."""
    with zipfile.ZipFile(io.BytesIO(dump_npz(TENSORS))) as archive:
        for name, kind in (("half", b"<f2"), ("brain", b"|V2"), ("bytes", b"|u1")):
            member = archive.read(f"{name}.npy")
            assert (member[21:24], member[44:45]) == (kind, b"F")
            assert (10 + int.from_bytes(member[8:10], "little")) % 64 == 0


def test_same_bytes_whatever_the_order_and_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dump_npz(TENSORS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert dump_npz(dict(reversed(TENSORS.items()))) == first


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: object) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "c": rng.standard_normal((3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((3, 4, 5)).astype(np.float16)),
        "big": rng.standard_normal((2, 3)).astype(">f8"),
        "big_fortran": np.asfortranarray(rng.standard_normal((2, 3)).astype(">f4")),
        "integer": np.arange(5, dtype=">i8"),
        "zeros": np.zeros((100, 100), np.float32),
        "nothing": np.asfortranarray(np.zeros((0, 3), np.float32)),
    }
    out = io.BytesIO()
    save(out, **arrays)  # type: ignore[operator]
    found = load(out.getvalue())
    assert set(found) == set(arrays)
    for name, values in arrays.items():
        stored = np.frombuffer(found[name].data, values.dtype.newbyteorder("<")).reshape(found[name].shape)
        np.testing.assert_array_equal(stored, values)


def test_what_mlx_writes_is_read() -> None:
    """As `mlx/io/load.cpp` spells it: a space and a comma after every size, `<V2` for bfloat16, 16-byte alignment."""
    header = "{'descr': '<V2', 'fortran_order': False, 'shape': (2, 1, )}  "
    assert load(zipped({"w.npy": npy(header, b"\x80\x3f\x00\x40")})) == {
        "w": RawTensor("BF16", (2, 1), b"\x80\x3f\x00\x40")
    }


@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions_of_the_array_header(version: int) -> None:
    assert load(zipped({"w.npy": npy(npy_header(), bytes(4), version)})) == {"w": RawTensor("F32", (1,), bytes(4))}


def patched(data: bytes, **changes: int) -> bytes:
    """An archive with fields of its only directory entry set; sizes in the local header are left."""
    fields = {"flags": (8, 2), "method": (10, 2), "compressed": (20, 4), "size": (24, 4), "offset": (42, 4)}
    out = bytearray(data)
    at = data.rindex(b"PK\1\2")
    for name, value in changes.items():
        place, width = fields[name]
        out[at + place : at + place + width] = value.to_bytes(width, "little")
    return bytes(out)


GOOD = zipped({"w.npy": npy(npy_header(), bytes(4))})
DEFLATED = zipped({"w.npy": npy(npy_header(shape="(100,)"), bytes(400))}, zipfile.ZIP_DEFLATED)
HEADER = b"\x93NUMPY\1\0"

REJECTED = {
    "no end": ("bad-zip", GOOD[:-1]),
    "directory cut": ("bad-zip", GOOD.replace(b"PK\1\2", b"PK\1\3")),
    "local header": ("bad-zip", b"PK\3\5" + GOOD[4:]),
    "checksum": ("bad-zip", GOOD.replace(bytes(4) + b"PK\1\2", b"\0\0\1\0PK\1\2")),
    "encrypted": ("bad-zip", patched(GOOD, flags=1)),
    "bzip2": ("bad-zip", zipped({"w.npy": npy(npy_header(), bytes(4))}, zipfile.ZIP_BZIP2)),
    "lzma": ("bad-zip", zipped({"w.npy": npy(npy_header(), bytes(4))}, zipfile.ZIP_LZMA)),
    "stored sizes differ": ("bad-zip", patched(GOOD, size=4000)),
    "offset": ("bad-zip", patched(GOOD, offset=1 << 31)),
    "deflate cannot hold it": ("zip-bomb", patched(DEFLATED, size=1 << 31)),
    "bomb": (
        "zip-bomb",
        zipped({"w.npy": npy(npy_header(shape="(5000000,)"), bytes(20_000_000))}, zipfile.ZIP_DEFLATED),
    ),
    "not an array": ("bad-npz", zipped({"w.txt": b"hello"})),
    "no name": ("bad-npz", zipped({".npy": npy(npy_header(), bytes(4))})),
    "not even a header": ("bad-npz", zipped({"w.npy": b"\x93NUM"})),
    "another magic": ("bad-npz", zipped({"w.npy": b"hello, this is no array"})),
    "version": ("bad-npz", zipped({"w.npy": npy(npy_header(), bytes(4), version=9)})),
    "header length": ("limit", zipped({"w.npy": HEADER + b"\xff\xff" + bytes(70_000)})),
    "header cut": ("truncated", zipped({"w.npy": HEADER + b"\x80\0" + b"{'descr'"})),
    "header is code": ("bad-npz", zipped({"w.npy": npy("__import__('os').system('true')")})),
    "header nested": ("bad-npz", zipped({"w.npy": npy("(" * 9000)})),
    "header of minuses": ("bad-npz", zipped({"w.npy": npy("-" * 9000 + "1")})),
    "header a list": ("bad-npz", zipped({"w.npy": npy("[1]")})),
    "a key more": ("bad-npz", zipped({"w.npy": npy(npy_header()[:-1] + "'x': 1}", bytes(4))})),
    "objects": ("object-array", zipped({"w.npy": npy(npy_header("|O"), bytes(8))})),
    "objects with a size": ("object-array", zipped({"w.npy": npy(npy_header("|O8"), bytes(8))})),
    "records": ("bad-npz", zipped({"w.npy": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}")})),
    "strings": ("unknown-dtype", zipped({"w.npy": npy(npy_header("<U3"), bytes(12))})),
    "complex": ("unknown-dtype", zipped({"w.npy": npy(npy_header("<c8"), bytes(8))})),
    "float8": ("unknown-dtype", zipped({"w.npy": npy(npy_header("|V1"), bytes(1))})),
    "times": ("unknown-dtype", zipped({"w.npy": npy(npy_header("<M8[ns]"), bytes(8))})),
    "order": ("bad-npz", zipped({"w.npy": npy(npy_header(order="1"), bytes(4))})),
    "shape a list": ("bad-npz", zipped({"w.npy": npy(npy_header(shape="[1]"), bytes(4))})),
    "negative size": ("bad-npz", zipped({"w.npy": npy(npy_header(shape="(-1,)"), bytes(4))})),
    "bool size": ("bad-npz", zipped({"w.npy": npy(npy_header(shape="(True,)"), bytes(4))})),
    "dimensions": ("bad-npz", zipped({"w.npy": npy(npy_header(shape=str((1,) * 33)), bytes(4))})),
    "too short": ("truncated", zipped({"w.npy": npy(npy_header(shape="(2,)"), bytes(4))})),
    "too long": ("bad-npz", zipped({"w.npy": npy(npy_header(), bytes(5))})),
    "shape of 2^60": ("truncated", zipped({"w.npy": npy(npy_header(shape=f"({1 << 60},)"), bytes(4))})),
    "product overflow": ("truncated", zipped({"w.npy": npy(npy_header(shape=f"({1 << 62}, {1 << 62})"), bytes(4))})),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(case: str, tmp_path: Path) -> None:
    code, data = REJECTED[case]
    path = tmp_path / "t.npz"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(AdapterError) as e:
            load(source, name="t.npz")
        assert e.value.code == code
        assert str(e.value).startswith("t.npz")


def test_a_member_twice() -> None:
    data = zipped({"w.npy": npy(npy_header(), bytes(4)), "v.npy": npy(npy_header(), bytes(4))}).replace(
        b"v.npy", b"w.npy"
    )
    with pytest.raises(AdapterError, match="occurs twice"):
        NpzFile(data)


def test_members_that_share_their_bytes() -> None:
    """A thousand directory entries for one member: the way the largest bombs are made."""
    single = zipped({"w.npy": npy(npy_header(shape="(1000,)"), bytes(4000))})
    entry, end = single[single.index(b"PK\1\2") : single.index(b"PK\5\6")], single[single.index(b"PK\5\6") :]
    entries = b"".join(entry.replace(b"w.npy", b"%c%c.py" % (65 + i // 26, 65 + i % 26)) for i in range(500))
    end = end[:8] + struct.pack("<HHI", 500, 500, len(entries)) + end[16:]
    data = single[: single.index(b"PK\1\2")] + entries + end
    with pytest.raises(AdapterError) as e:
        Archive(data)
    assert e.value.code == "zip-bomb"


def test_memory_asked_for_is_bounded_by_the_file() -> None:
    hostile = [
        REJECTED[case][1]
        for case in ("bomb", "shape of 2^60", "product overflow", "deflate cannot hold it", "header length")
    ]
    # A directory said to be 3 GB long, in a file of 200 bytes.
    end = GOOD.index(b"PK\5\6")
    hostile.append(GOOD[: end + 12] + struct.pack("<I", 3_000_000_000) + GOOD[end + 16 :])
    tracemalloc.start()
    try:
        for data in hostile:
            with pytest.raises(AdapterError):
                NpzFile(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("w", RawTensor("F8_E4M3", (1,), b"\0")),
        ("a\0b", TENSORS["half"]),
        ("", TENSORS["half"]),
        ("\ud800", TENSORS["half"]),
        ("n" * 70_000, TENSORS["half"]),
    ],
)
def test_what_npz_cannot_hold(name: str, tensor: RawTensor) -> None:
    with pytest.raises(AdapterError) as e:
        dump_npz({name: tensor})
    assert e.value.code == "not-expressible"


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/a", "a\\..\\..\\b", "\\a", "C:/a"])
def test_no_name_leads_out_of_the_archive(name: str) -> None:
    with pytest.raises(AdapterError, match="would leave the folder") as caught:
        dump_npz({name: RawTensor("F32", (1,), bytes(4))})
    assert caught.value.code == "not-expressible"
