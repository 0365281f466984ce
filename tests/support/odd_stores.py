"""More of `odd_files`: damaged stores, stores other than safetensors, and files without tensors."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import container_forge as forge
import numpy as np
import torch
from odd_files import CONFIG, GOOD, A, B, Tensors, add, files, lone, numbers, peft, raw

from nola_codec.model.tensors import RawTensor
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_writer import dump

WEIGHTS = dump(GOOD)


class Run:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def saved(state: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out, **options)
    return out.getvalue()


def state() -> dict[str, torch.Tensor]:
    return dict(torch.load(io.BytesIO(dump_pickle(GOOD)), weights_only=True))


def scalar(value: float, dtype: str = "F32") -> RawTensor:
    return raw(np.array(value), dtype)


def safetensors_of(entry: Mapping[str, Any], data: bytes = bytes(4)) -> bytes:
    """A file of one tensor of PEFT's, with its header entry changed."""
    return forge.safetensors({A: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}, data)


def make_damaged_safetensors() -> None:
    """Every way a header can lie, where a PEFT directory has its weights."""
    header_end = 8 + int.from_bytes(WEIGHTS[:8], "little")
    for what, end, code in (
        ("after 4 bytes", 4, "truncated"), ("in its header", header_end // 2, "truncated"),
        ("after its header", header_end, "truncated"), ("in its data", header_end + 100, "truncated"),
        ("by a byte", -1, "truncated"),
    ):  # fmt: skip
        add(f"weights cut {what}", peft(WEIGHTS[:end]), code)
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for what, data, code in (
        ("empty", b"", "empty-file"),
        ("followed by a byte", WEIGHTS + b"\0", "bad-offsets"),
        ("with a header of a terabyte", (1 << 40).to_bytes(8, "little") + b"{}", "limit"),
        ("with a header past the end", (1000).to_bytes(8, "little") + b"{}", "truncated"),
        ("with a header of zeros", bytes(1000), "bad-header"),
        ("with a header that is not UTF-8", forge.safetensors(b'{"\xff": 1}'), "bad-header"),
        ("with a header nested for ever", forge.safetensors(b'{"a":' + b"[" * 50_000), "bad-header"),
        ("with a header that is a list", forge.safetensors([1]), "bad-header"),
        ("with a number of 5000 digits", forge.safetensors(b'{"a":' + b"9" * 5000 + b"}"), "bad-header"),
        ("with a key twice", forge.safetensors(f'{{"a":{entry},"a":{entry}}}'.encode(), bytes(4)), "bad-header"),
        ("of 2^60 elements", safetensors_of({"shape": [1 << 60]}), "bad-tensor"),
        ("of 2^60 squared", safetensors_of({"shape": [1 << 60, 1 << 60]}), "bad-tensor"),
        ("of 2^60 bytes", safetensors_of({"shape": [1 << 58], "data_offsets": [0, 1 << 60]}), "truncated"),
        ("of minus one", safetensors_of({"shape": [-1]}), "bad-header"),
        ("with a hole", safetensors_of({"data_offsets": [4, 8]}, bytes(8)), "bad-offsets"),
        ("with offsets backwards", safetensors_of({"data_offsets": [4, 0]}), "bad-header"),
        ("of a dtype nobody knows", safetensors_of({"dtype": "F31"}), "unknown-dtype"),
        ("with a float for a shape", safetensors_of({"shape": 1.5}), "bad-header"),
        ("with metadata that is no text", forge.safetensors({"__metadata__": {"a": 1}}), "bad-header"),
        ("with half a character", forge.safetensors({"__metadata__": {"a": "\ud800"}}), "bad-header"),
        ("that overlap", forge.safetensors({
            A: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            B: {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }, bytes(8)), "bad-offsets"),
    ):  # fmt: skip
        add(f"weights {what}", peft(data), code)


def make_foreign() -> None:
    """Files that are something else altogether."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("adapter_model.safetensors"))
    for name, data, code in (
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "lfs-pointer"),
        ("a web page", b"\n<!DOCTYPE html><html>404</html>", "html-page"),
        ("an XML error", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "html-page"),
        ("a JSON error", b'{"error":"Invalid username or password."}', "bad-header"),
        ("a text error", b"Invalid username or password.", "bad-header"),
        ("gzip", gzip.compress(WEIGHTS, mtime=0), "archive"),
        ("tar", tar.getvalue(), "archive"),
        ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(40), "archive"),
        ("a zip of an adapter", forge.zipped({"adapter_model.safetensors": WEIGHTS}), "zip"),
        ("a .nola file", b"\x89NLA\r\n\x1a\n" + bytes(100), "nola-file"),
        ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), "bad-header"),
        ("a readme", b"# My LoRA\n\nTrained on cats.\n", "bad-header"),
        ("zeros", bytes(5000), "bad-header"),
        ("nothing", b"", "empty-file"),
    ):
        add(f"{name}, as weights", peft(data), code)
        add(f"{name}, as a lone file", lone("lora.safetensors", data), code)


def make_pickles() -> None:
    """PyTorch's files: adapters, and what else goes by .bin and .pt."""
    plain = dump_pickle(GOOD)
    add("adapter_model.bin", files({"adapter_model.bin": plain, "adapter_config.json": json.dumps(CONFIG)}))
    add("a pickle called safetensors", peft(plain))
    add("a pickle from before 2020", peft(saved(state(), _use_new_zipfile_serialization=False)))
    add("a wrapped state dict", peft(saved({"state_dict": state(), "epoch": 3})))
    loralib = {"q.lora_A": raw(numbers(2, 9)), "q.lora_B": raw(numbers(7, 2))}
    add("loralib's", lone("lora.pt", dump_pickle(loralib)))
    evil = Run(os.system, "touch owned")
    odd: dict[str, tuple[bytes, str, str]] = {
        "a command": (saved({"w": torch.ones(1), "x": evil}), "pickle", "'posix.system'"),
        "a command, from before 2020": (saved(evil, _use_new_zipfile_serialization=False), "pickle", "'posix.system'"),
        "a bare command": (pickle.dumps(evil), "pickle", "'posix.system'"),
        "eval": (pickle.dumps(Run(eval, "1"), protocol=2), "pickle", "'__builtin__.eval'"),
        "a whole module": (saved(torch.nn.Linear(2, 2)), "pickle", "'torch.nn.modules.linear.Linear'"),
        "an optimizer": (saved(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1).state_dict()), "pickle", ""),
        "training arguments": (saved(Run(torch.device, "cpu")), "pickle", "'torch.device'"),
        "nested dicts": (saved({"a": {"b": state()}}), "pickle", "expected a dict of tensors"),
        "a list": (saved([torch.ones(1)]), "pickle", "found list"),
        "a model's weights": (saved({"model.norm.weight": torch.ones(3)}), "empty-adapter", ""),
        "numbers among tensors": (saved(state() | {"lora_alpha": 4}), "pickle", "'lora_alpha'"),
        "half a file": (plain[: len(plain) // 2], "bad-zip", ""),
        "a bomb": (
            forge.torch_zip(b"\x80\x02}.", {"0": bytes(30_000_000)}, zipfile.ZIP_DEFLATED), "zip-bomb", "",
        ),
        "a tensor of 2^60": (forge.torch_zip(forge.tensor_program([1 << 60], [0], 1), {"0": bytes(4)}), "pickle", ""),
        "sparse tensors": (saved({"w": torch.ones(2).to_sparse()}), "pickle", "_rebuild_sparse_tensor"),
        "a pickle of numbers": (pickle.dumps({"lora": [1, 2, 3]}), "pickle", ""),
    }  # fmt: skip
    for name, (data, code, says) in odd.items():
        add(f"{name}, as adapter_model.bin", peft(data, weights="adapter_model.bin"), code, says)
        add(f"{name}, as optimizer.pt", lone("optimizer.pt", data), code, says)


def make_npz() -> None:
    """NumPy's archives."""
    mlx = {"model.layers.0.q_proj.lora_a": raw(numbers(8, 2)), "model.layers.0.q_proj.lora_b": raw(numbers(2, 6))}
    config = {"lora_parameters": {"rank": 2, "scale": 4.0}, "fine_tune_type": "lora"}
    add("MLX's npz", lone("adapters.npz", dump_npz(mlx)))
    add(
        "MLX's npz in bfloat16",
        lone("adapters.npz", dump_npz({k: raw(numbers(*t.shape), "BF16") for k, t in mlx.items()})),
    )
    add("MLX's directory with npz", files({"adapters.npz": dump_npz(mlx), "adapter_config.json": json.dumps(config)}))
    add("PEFT's keys in npz", peft(dump_npz(GOOD)))
    out = io.BytesIO()
    np.savez(out, **{key: np.asfortranarray(numbers(*tensor.shape)) for key, tensor in mlx.items()})
    add("Fortran's order", lone("a.npz", out.getvalue()))
    objects = io.BytesIO()
    np.savez(objects, a=np.array([{"x": 1}], dtype=object))
    pieces: dict[str, tuple[bytes, str]] = {
        "objects": (objects.getvalue(), "object-array"),
        "a bomb": (forge.zipped({"a.npy": forge.npy(forge.npy_header(shape="(8000000,)"), bytes(32_000_000))},
                                zipfile.ZIP_DEFLATED), "zip-bomb"),
        "a shape of 2^60": (forge.zipped({"a.npy": forge.npy(forge.npy_header(shape=f"({1 << 60},)"))}), "truncated"),
        "code": (forge.zipped({"a.npy": forge.npy("__import__('os').system('touch owned')")}), "bad-npz"),
        "text": (forge.zipped({"a.npy": forge.npy(forge.npy_header("<U8"), bytes(32))}), "unknown-dtype"),
        "no arrays": (forge.zipped({"a.txt": b"hello"}), "zip"),
        "half a file": (dump_npz(mlx)[:-100], "bad-zip"),
        "an array of a model": (dump_npz({"wte": raw(numbers(4, 4))}), "empty-adapter"),
    }  # fmt: skip
    for name, (data, code) in pieces.items():
        add(f"npz: {name}", lone("adapters.npz", data), code)


def make_gguf() -> None:
    """llama.cpp's files."""
    tensors = {
        f"blk.0.attn_{n}.weight.lora_{s}": raw(numbers(*((2, 32) if s == "a" else (7, 2)))) for n in "qk" for s in "ab"
    }
    extra: dict[str, Any] = {
        "general.architecture": ("STRING", "llama"), "general.type": ("STRING", "adapter"),
        "adapter.type": ("STRING", "lora"), "adapter.lora.alpha": ("FLOAT32", 4.0),
    }  # fmt: skip

    def made(changes: Mapping[str, Any] = {}, other: Tensors | None = None) -> Callable[[Path], Path]:
        return lone("lora.gguf", dump_gguf(tensors if other is None else other, extra | changes, "llama"))

    add("gguf", made())
    add("gguf: alpha 0", made({"adapter.lora.alpha": ("FLOAT32", 0.0)}))
    add("gguf: half precision", made(other={key: raw(numbers(*t.shape), "F16") for key, t in tensors.items()}))
    add("gguf: arrays and unknown keys", made({"x": ("ARRAY", ("STRING", ["a", "b"])), "y": ("UINT64", (1 << 64) - 1)}))
    add("gguf: embeddings", made(other={
        "token_embd.weight.lora_a": raw(numbers(11, 2)), "token_embd.weight.lora_b": raw(numbers(6, 2)),
    }))  # fmt: skip
    add("gguf: alpha not a number", made({"adapter.lora.alpha": ("FLOAT32", float("nan"))}), "bad-config")
    add("gguf: alpha a text", made({"adapter.lora.alpha": ("STRING", "4")}), "bad-config")
    add("gguf: a whole model", made({"general.type": ("STRING", "model")}), "not-lora")
    add("gguf: a control vector", made({"adapter.type": ("STRING", "control")}), "not-lora")
    add("gguf: one factor missing", made(other=dict(list(tensors.items())[:1])), "missing-partner")
    add("gguf: a stranger among them", made(other=tensors | {"output_norm.weight": raw(numbers(4))}), "unknown-key")
    pieces: dict[str, tuple[bytes, str]] = {
        "absurd counts": (forge.gguf(counts=((1 << 64) - 1, (1 << 64) - 1)), "truncated"),
        "many counts": (forge.gguf(counts=(0, 1 << 40), data=bytes(1000)), "truncated"),
        "an array of 2^62": (
            forge.gguf([forge.gguf_text("k") + forge.u32(9) + forge.u32(8) + forge.u64(1 << 62)]), "truncated",
        ),
        "a shape of 2^60": (forge.gguf(tensors=[forge.gguf_tensor("a", [1 << 60])], data=bytes(32)), "truncated"),
        "version 1": (forge.gguf(version=1), "bad-gguf"),
        "four bytes": (b"GGUF", "truncated"),
        "empty": (forge.gguf(), "not-lora"),
    }  # fmt: skip
    for name, (data, code) in pieces.items():
        add(f"gguf: {name}", lone("lora.gguf", data), code)


make_damaged_safetensors()
make_foreign()
make_pickles()
make_npz()
make_gguf()
