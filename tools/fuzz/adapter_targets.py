"""Targets that read adapters: one for each dialect, for each store, and for configurations."""

from __future__ import annotations

import atexit
import io
import json
import random
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from changes import alter, scramble
from mutators import alter_safetensors, alter_zip, sometimes
from odd_files import CONFIG, GOOD, ODD, A, B, Odd
from reading import encode_by_both_paths, read_decoded
from target import IN_MEMORY, LARGEST_SEED, Target, pack_adapter, unpack_adapter

import nola_codec
from nola_codec.adapters import DIALECTS, read
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.open_store import open_store
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_io import num_bytes
from nola_codec.stores.safetensors_writer import dump

_OTHER_KEYS = (
    ("layers.0.attention.wq.lora_A.weight", "layers.0.attention.wq.lora_B.weight"),  # mistral-finetune
    ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),  # torchtune
)
"""Keys of both factors in dialects that `odd_files` has no adapter of."""


@cache
def small_adapters() -> dict[str, list[bytes]]:
    """Return packed adapters by dialect: the good ones of `odd_files`, and small ones that PEFT writes."""
    import odd_dialects  # noqa: F401 - it adds to ODD
    import odd_stores  # noqa: F401 - it adds to ODD

    found: dict[str, list[bytes]] = {}
    packed = [each for name, odd in ODD.items() if odd.code is None for each in _packed_odd(odd)]
    packed += [pack_adapter(None, dump(dict(zip(keys, GOOD.values(), strict=False)))) for keys in _OTHER_KEYS]
    for each in [*_peft_adapters(), *packed]:
        config, data = unpack_adapter(each)
        if len(each) < LARGEST_SEED:
            try:
                dialect = read(data, config=config, carry_unknown=True).dialect
            except nola_codec.NolaError:  # such as a file that needs another one beside it
                continue
            found.setdefault(dialect, []).append(each)
    return found


def _packed_odd(odd: Odd) -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        place = odd.make(Path(folder))
        if place.is_dir():
            config = place / "adapter_config.json"
            files = [path for path in place.iterdir() if path != config and path.is_file()]
            if len(files) == 1 and config.is_file():
                yield pack_adapter(json.loads(config.read_bytes()), files[0].read_bytes())
        elif place.is_file():
            yield pack_adapter(None, place.read_bytes())


def _peft_adapters() -> Iterator[bytes]:
    """Yield a small adapter of each method of PEFT that can be made for two linear layers."""
    import peft
    import torch

    methods: list[tuple[str, dict[str, Any]]] = [
        ("LoraConfig", {"r": 2, "use_dora": True}), ("LoraConfig", {"r": 2, "use_rslora": True, "bias": "all"}),
        ("LoraConfig", {"r": 2, "rank_pattern": {"v": 3}, "alpha_pattern": {"v": 5}}),
        ("AdaLoraConfig", {"total_step": 9}),
        ("LoHaConfig", {"r": 2}), ("LoKrConfig", {"r": 2}), ("VeraConfig", {"r": 2}), ("RandLoraConfig", {"r": 2}),
        ("VBLoRAConfig", {"num_vectors": 6, "vector_length": 4, "topk": 2}), ("FourierFTConfig", {"n_frequency": 9}),
        ("WaveFTConfig", {"n_frequency": 9}), ("UniLoraConfig", {"r": 2, "theta_d_length": 9}),
        ("TinyLoraConfig", {"u": 5}), ("IA3Config", {"feedforward_modules": []}), ("OFTConfig", {"oft_block_size": 4}),
        ("MissConfig", {"r": 2}), ("PveraConfig", {"r": 2}),
    ]  # fmt: skip
    for name, options in methods:
        model = torch.nn.ModuleDict({key: torch.nn.Linear(12, 8) for key in ("q", "v")})
        try:
            config = getattr(peft, name)(target_modules=["q", "v"], **options)
            made = peft.get_peft_model(model, config)
        except Exception:  # a method that this version of PEFT lacks, or that needs other layers
            continue
        with tempfile.TemporaryDirectory() as folder:
            made.save_pretrained(folder)
            text = json.loads((Path(folder) / "adapter_config.json").read_text())
            yield pack_adapter(text, (Path(folder) / "adapter_model.safetensors").read_bytes())


def _change_adapter(packed: bytes, rng: random.Random) -> bytes:
    try:
        config, data = unpack_adapter(packed)
        if config is not None and rng.random() < 0.5:
            return pack_adapter(alter(config, rng), data)
    except (ValueError, RecursionError):
        return scramble(packed, rng)
    change = alter_zip if data.startswith(b"PK") else alter_safetensors if data[4:8] == bytes(4) else scramble
    return pack_adapter(config, sometimes(change)(data, rng))


def _read_adapter(packed: bytes) -> None:
    try:
        config, data = unpack_adapter(packed)
    except (ValueError, RecursionError):
        return
    if config is not None and not isinstance(config, dict):
        return  # the command line reads no such configuration, and a caller gives a mapping
    read(data, config=config, carry_unknown=True)
    read(data, config=config)
    if zlib.crc32(packed) % 8 == 0:  # an encode takes far longer than the rest
        file, _ = nola_codec.encode_bytes(data, config=config, nmse=0.5)
        read_decoded(file)


def _read_store(data: bytes) -> None:
    with open_store(data) as store:
        for name, info in store.tensors.items():
            tensor = store.read(name)
            if len(tensor.data) != num_bytes(info.dtype, info.shape):
                raise AssertionError(f"{name}: {len(tensor.data)} bytes of {info}")
    read(data, carry_unknown=True)


_TENSORS = {
    A: GOOD[A], B: GOOD[B], "x": from_float32(np.arange(6, dtype=np.float32).reshape(2, 3), "BF16"),
}  # fmt: skip


def _safetensors_seeds() -> list[bytes]:
    return [dump(_TENSORS, {"format": "pt"})]


def _npz_seeds() -> list[bytes]:
    plain = dump_npz(_TENSORS)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
    return [plain, out.getvalue(), *_of_stores(".npz")]


def _pickle_seeds() -> list[bytes]:
    import torch

    out = io.BytesIO()
    state = torch.load(io.BytesIO(dump_pickle(_TENSORS)), weights_only=True)
    torch.save(state, out, _use_new_zipfile_serialization=False)
    return [dump_pickle(_TENSORS), out.getvalue(), *_of_stores(".pt", ".bin", ".pth")]


def _gguf_seeds() -> list[bytes]:
    extra = {"adapter.lora.alpha": ("FLOAT32", 8.0), "names": ("ARRAY", ("STRING", ["a", "b"]))}
    return [dump_gguf(_TENSORS, extra, "llama"), *_of_stores(".gguf")]


def _of_stores(*suffixes: str) -> list[bytes]:
    """Return the good lone files of `odd_files` with one of these suffixes."""
    import odd_stores  # noqa: F401 - it adds to ODD

    found = []
    for odd in ODD.values():
        with tempfile.TemporaryDirectory() as folder:
            place = odd.make(Path(folder)) if odd.code is None else Path(folder)
            if place.is_file() and place.suffix in suffixes and place.stat().st_size < LARGEST_SEED:
                found.append(place.read_bytes())
    return found


def _config_seeds() -> list[bytes]:
    return [json.dumps(CONFIG).encode(), json.dumps({**CONFIG, "a": [1, {"b": None}], "c": "é"}, indent=1).encode()]


def _change_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(alter(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        return scramble(data, rng)


@cache
def _peft_folder() -> Path:
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "adapter_model.safetensors").write_bytes(dump(GOOD))
    return folder


def _read_config(data: bytes) -> None:
    folder = _peft_folder()
    (folder / "adapter_config.json").write_bytes(data)
    read(folder)
    read(folder / "adapter_model.safetensors")


def _encode_both_ways(packed: bytes) -> None:
    try:
        config, data = unpack_adapter(packed)
    except (ValueError, RecursionError):
        return
    if config is None or isinstance(config, dict):
        encode_by_both_paths(data, config)


def adapter_targets() -> list[Target]:
    """Return the targets of this module."""
    return [
        Target("store safetensors", _safetensors_seeds, sometimes(alter_safetensors), _read_store),
        Target("store npz", _npz_seeds, sometimes(alter_zip), _read_store),
        Target("store pickle", _pickle_seeds, sometimes(alter_zip), _read_store),
        Target("store gguf", _gguf_seeds, scramble, _read_store),
        Target("store json", _config_seeds, sometimes(_change_json), _read_config),
        Target("encoders", _few_adapters, _change_adapter, _encode_both_ways),
        *_dialect_targets(),
    ]


def _few_adapters() -> list[bytes]:
    """Return three adapters of each dialect, since they are encoded twice each time."""
    return [packed for own in small_adapters().values() for packed in own[:3]]


def _dialect_targets() -> list[Target]:
    return [
        Target(f"dialect {name}", partial(_seeds_of_dialect, name), _change_adapter, _read_adapter)
        for name in DIALECTS
        if name not in ("delta", "parameters")  # no tool writes them: they are read from `.nola` files alone
    ]


def _seeds_of_dialect(name: str) -> list[bytes]:
    return small_adapters().get(name, [])
