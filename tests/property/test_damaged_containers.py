"""Whatever happens to a file of tensors, reading it ends in an error of the package or in tensors of its own size."""

from __future__ import annotations

import io
import random
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.open_store import open_store
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_io import num_bytes
from nola_codec.stores.safetensors_writer import dump

TENSORS = {
    "q.lora_A": RawTensor("F32", (2, 3), struct.pack("<6f", *range(6))),
    "q.lora_B": RawTensor("BF16", (1, 2), b"\x80\x3f\x00\xc0"),
}
EXTRA = {"adapter.lora.alpha": ("FLOAT32", 8.0), "names": ("ARRAY", ("STRING", ["a", "b"]))}


def legacy() -> bytes:
    out = io.BytesIO()
    state = torch.load(io.BytesIO(dump_pickle(TENSORS)), weights_only=True)
    torch.save(state, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump_npz(TENSORS))) as plain, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as to:
        for name in plain.namelist():
            to.writestr(zipfile.ZipInfo(name), plain.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


FILES = {
    "safetensors": dump(TENSORS, {"format": "pt"}),
    "npz": dump_npz(TENSORS),
    "deflated npz": deflated(),
    "pickle": dump_pickle(TENSORS),
    "legacy pickle": legacy(),
    "gguf": dump_gguf(TENSORS, EXTRA, "llama"),
}


def read_all(data: bytes) -> dict[str, RawTensor] | None:
    """Every tensor, checked to be what it says; None for a file that was refused."""
    try:
        with open_store(data) as store:
            tensors = {name: store.read(name) for name in store.tensors}
    except AdapterError:
        return None
    for name, tensor in tensors.items():
        assert len(tensor.data) == num_bytes(tensor.dtype, tensor.shape)
        assert (store.tensors[name].dtype, store.tensors[name].shape) == (tensor.dtype, tensor.shape)
    # A few tensors of a file this small; blocks and deflate may unpack to more, but not to much more.
    assert sum(len(tensor.data) for tensor in tensors.values()) < 200_000
    return tensors


@pytest.mark.parametrize("case", FILES)
def test_whole_files_are_read(case: str) -> None:
    assert read_all(FILES[case]) == TENSORS


@pytest.mark.parametrize("case", FILES)
def test_every_truncation_is_refused(case: str) -> None:
    data = FILES[case]
    # GGUF pads its last tensor, and nothing says how long the file is.
    end = data.rindex(TENSORS["q.lora_B"].data) + 4 if case == "gguf" else len(data)
    for length in range(end):
        assert read_all(data[:length]) is None, length


@pytest.mark.parametrize("case", FILES)
def test_every_changed_byte_is_an_error_or_other_tensors(case: str) -> None:
    data = bytearray(FILES[case])
    for offset in range(len(data)):
        original = data[offset]
        for value in (original ^ 1 << offset % 8, 0xFF * (offset % 2)):
            data[offset] = value
            read_all(bytes(data))
        data[offset] = original


@settings(max_examples=150)
@given(st.sampled_from(sorted(FILES)), st.randoms(use_true_random=False))
def test_scrambled_files(case: str, rng: random.Random) -> None:
    out = bytearray(FILES[case])
    for _ in range(rng.choice((2, 3, 8))):
        at = rng.randrange(len(out))
        size = rng.choice((1, 4, 8))
        match rng.randrange(3):
            case 0:
                out[at : at + size] = rng.choice((0, 1, 255, 1 << 31, (1 << 63) - 1)).to_bytes(8, "little")[:size]
            case 1:
                del out[at : at + size]
            case _:
                out[at:at] = out[rng.randrange(len(out)) :][:size]
    read_all(bytes(out))
