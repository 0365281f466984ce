"""The other half of `odd_files`: containers other than safetensors, and dialects other than PEFT's."""

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
from odd_files import A, B, CONFIG, GOOD, MODULE, Tensors, add, factors, files, lone, numbers, peft, raw, without

from nola_codec.adapters.gguf_io import dump_gguf
from nola_codec.adapters.npz_io import dump_npz
from nola_codec.adapters.pickle_io import dump_pickle
from nola_codec.adapters.safetensors_io import dump
from nola_codec.model import RawTensor

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

    def made(changes: Mapping[str, Any] = {}, other: Tensors | None = None) -> Callable[[Path], Path]:  # noqa: B006
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


KOHYA = "lora_unet_down_blocks_0_attentions_0_proj_in"


def make_dialects() -> None:
    """Diffusion's and others' LoRAs, right and wrong."""
    pair = {f"{KOHYA}.lora_down.weight": raw(numbers(2, 9)), f"{KOHYA}.lora_up.weight": raw(numbers(7, 2))}
    alpha = {f"{KOHYA}.alpha": scalar(1.0)}
    diffusers = {f"unet.mid.to_q.lora_{s}.weight": raw(numbers(*((2, 9) if s == "A" else (7, 2)))) for s in "AB"}
    old = {f"unet.mid.attn1.processor.to_q_lora.{s}.weight": raw(numbers(*((2, 9) if s == "down" else (7, 2))))
           for s in ("down", "up")}  # fmt: skip
    mlx = {"model.layers.0.q_proj.lora_a": raw(numbers(9, 2)), "model.layers.0.q_proj.lora_b": raw(numbers(2, 7))}
    loha = {
        f"{KOHYA}.hada_w{n}_{s}": raw(numbers(*((7, 2) if s == "a" else (2, 9)), seed=int(n)))
        for n in "12"
        for s in "ab"
    }
    lokr = {f"{KOHYA}.lokr_w1": raw(numbers(2, 3)), f"{KOHYA}.lokr_w2": raw(numbers(4, 5))}
    good: dict[str, Tensors] = {
        "kohya": pair | alpha,
        "kohya without alpha": pair,
        "kohya with an alpha of another dtype": pair | {f"{KOHYA}.alpha": scalar(2.0, "BF16")},
        "kohya's DoRA": pair | alpha | {f"{KOHYA}.dora_scale": raw(numbers(7, 1))},
        "ComfyUI": {key.replace(KOHYA, "diffusion_model.blocks.0.q"): tensor for key, tensor in (pair | alpha).items()},
        "diffusers": diffusers,
        "diffusers of old": old,
        "LoHa": loha | alpha,
        "LoKr": lokr | alpha,
        "LoKr of zeros": {key: raw(np.zeros(tensor.shape)) for key, tensor in lokr.items()},
        "a full delta": {f"{KOHYA}.diff": raw(numbers(7, 9)), f"{KOHYA}.diff_b": raw(numbers(7))},
        "MLX": mlx,
        "loralib": {"q.lora_A": raw(numbers(2, 9)), "q.lora_B": raw(numbers(7, 2))},
        "cloneofsimo": {"unet:0:down": raw(numbers(2, 9)), "unet:0:up": raw(numbers(7, 2))},
        "Sam_LoRA": {"w_a_000": raw(numbers(2, 9)), "w_b_000": raw(numbers(7, 2))},
    }  # fmt: skip
    for name, tensors in good.items():
        add(name, lone("lora.safetensors", dump(tensors)))
        add(
            f"{name}, with half a pair more",
            lone("lora.safetensors", dump(tensors | _half(tensors))),
            "missing-partner",
        )
        changed = next(iter(tensors))
        add(f"{name}, with NaN", lone("lora.safetensors", dump(
            tensors | {changed: raw(np.full(tensors[changed].shape, np.nan))}
        )), "not-finite")  # fmt: skip
        add(f"{name}, in doubles", lone("lora.safetensors", dump(
            {key: raw(numbers(*tensor.shape), "F64") for key, tensor in tensors.items()}
        )))  # fmt: skip
        add(f"{name}, in bytes", lone("lora.safetensors", dump(
            tensors | {changed: RawTensor("I8", tensors[changed].shape, bytes(tensors[changed].shape[0] * tensors[changed].shape[-1]))}
        )), "not-float")  # fmt: skip
        add(
            f"{name}, and a stranger",
            lone("lora.safetensors", dump(tensors | {"surprise": raw(numbers(3))})),
            "unknown-key",
        )
        add(f"{name}, and a stranger passed through",
            lone("lora.safetensors", dump(tensors | {"surprise": raw(numbers(3))})), None, "", "--passthrough")  # fmt: skip
        add(f"{name}, pickled", lone("lora.pt", dump_pickle(tensors)))
    add("LoKr that unfolds to 2^40 elements", lone("lora.safetensors", dump(
        {f"{KOHYA}.lokr_w1": raw(numbers(1024, 1024)), f"{KOHYA}.lokr_w2": raw(numbers(1024, 1024))}
    )), "limit")  # fmt: skip
    add("LoHa that unfolds to 2^34 elements", lone("lora.safetensors", dump(
        {f"{KOHYA}.hada_w{n}_{s}": raw(numbers(*((1 << 17, 1) if s == "a" else (1, 1 << 17)))) for n in "12" for s in "ab"}
    )), "limit")  # fmt: skip
    add("LoRA that unfolds to 2^34 elements", lone("lora.safetensors", dump(
        {f"{KOHYA}.lora_down.weight": raw(numbers(1, 1 << 17)), f"{KOHYA}.lora_up.weight": raw(numbers(1 << 17, 1))}
    )))  # fmt: skip
    for name, value in (("NaN", np.nan), ("infinite", np.inf)):
        add(
            f"an alpha that is {name}",
            lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": scalar(value)})),
            "bad-alpha",
        )
    add("an alpha that is a list", lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": raw(numbers(2))})), "bad-alpha")
    add(
        "an alpha that is an integer",
        lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": scalar(1, "I32")})),
        "bad-alpha",
    )
    add("an alpha of 1e38", lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": scalar(1e38)})))
    add("an alpha of 1e-40", lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": scalar(1e-40)})))
    add("an alpha of 0", lone("l.safetensors", dump(pair | {f"{KOHYA}.alpha": scalar(0)})))
    for first, second in (("PEFT", GOOD), ("kohya", pair | alpha), ("diffusers", diffusers), ("MLX", mlx)):
        for third, fourth in (("PEFT", GOOD), ("kohya", pair | alpha), ("diffusers", diffusers), ("MLX", mlx)):
            if first < third:
                add(f"{first} and {third} in one file", lone("mixed.safetensors", dump(second | fourth)), "unknown-key")
    for what, text, code in (
        ("not JSON", "{", "bad-config"), ("a list", "[]", "bad-config"), ("nested", "[" * 100_000, "bad-config"),
        ("a rank as text", '{"unet.r": "2"}', "bad-config"), ("another rank", '{"unet.r": 4}', "rank-mismatch"),
        ("keys without a dot", '{"r": 2, "lora_alpha": 8}', None), ("a number of 5000 digits", "9" * 5000, "bad-config"),
    ):  # fmt: skip
        metadata = {"lora_adapter_metadata": text}
        add(f"diffusers' metadata: {what}", lone("l.safetensors", dump(diffusers, metadata)), code)
    for what, config, code in (
        ("a scale", {"lora_parameters": {"scale": 10.0}}, None),
        ("no scale", {"lora_parameters": {}}, None),
        ("a list of parameters", {"lora_parameters": []}, "bad-config"),
        ("a scale as text", {"lora_parameters": {"scale": "20"}}, "bad-config"),
        ("an infinite scale", {"lora_parameters": {"scale": float("inf")}}, "bad-config"),
        ("a full fine-tune", {"lora_parameters": {"scale": 1.0}, "fine_tune_type": "full"}, "not-lora"),
        ("PEFT's configuration", CONFIG, "foreign-dialect"),
    ):  # fmt: skip
        add(f"MLX's directory: {what}",
            files({"adapters.safetensors": dump(mlx), "adapter_config.json": json.dumps(config)}), code)  # fmt: skip
    add("PEFT's factors, half of them, beside kohya's", lone("l.safetensors", dump(without(B) | pair)), "unknown-key")
    add("experts", peft(
        {key.replace("self_attn.q_proj", "mlp.experts"): tensor for key, tensor in factors(rank=6).items()},
        target_parameters=["mlp.experts.down_proj", "model.layers.0.mlp.experts"],
    ), None)  # fmt: skip
    add("an embedding", peft({
        "base_model.model.embed.lora_embedding_A": raw(numbers(2, 11)),
        "base_model.model.embed.lora_embedding_B": raw(numbers(6, 2)),
    }))  # fmt: skip
    add("both layouts of one module", peft(GOOD | {
        f"{MODULE.format(0)}.lora_embedding_A": raw(numbers(2, 11)), f"{MODULE.format(0)}.lora_embedding_B": raw(numbers(6, 2)),
    }), "mixed-layout")  # fmt: skip
    add("a grouped convolution", peft({A: raw(numbers(2, 4, 3, 3)), B: raw(numbers(4, 1, 1, 1))}), "grouped-conv")
    add("a convolution", peft({A: raw(numbers(2, 4, 3, 3)), B: raw(numbers(4, 2, 1, 1))}))


def _half(tensors: Tensors) -> Tensors:
    """One half of a pair for a module that is not there, as these tensors spell it."""
    key, tensor = next(iter(tensors.items()))
    for old, new in (
        ("proj_in", "proj_out"),
        (".q", ".k"),
        ("q.", "k."),
        (":0:", ":1:"),
        ("000", "001"),
        ("mid", "up"),
        ("0", "1"),
    ):
        if old in key:
            return {key.replace(old, new, 1): tensor}
    raise ValueError(key)


make_damaged_safetensors()
make_foreign()
make_pickles()
make_npz()
make_gguf()
make_dialects()
