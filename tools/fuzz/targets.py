"""What is fuzzed: how a stranger's file is read, one target for each kind of file.

A target has files to begin with (seeds), a way to change one, and the calls that read it. Whatever the bytes are, these
calls may only end with a result or with a NolaError.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from damage import TIGHT
from mutators import (
    alter,
    alter_file,
    alter_safetensors,
    alter_undo,
    alter_zip,
    join,
    remember_units,
    scramble,
    sometimes,
)
from nola_forge import GOLDEN, split
from odd_files import CONFIG, GOOD, ODD, A, B, Odd

import nola_codec
from nola_codec.adapters import DIALECTS, read
from nola_codec.api.decoding import decode_contents
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.open_store import open_store
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_io import num_bytes
from nola_codec.stores.safetensors_writer import dump

_LARGEST_SEED = 10_000
_OF_EACH = 8
"""Adapters of each dialect that are encoded, since an encode takes long."""
_SHARED = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: The name of the row.
        seeds: Returns the files to begin with; called once.
        change: Changes a file at random.
        read: Reads a file in all the ways that it can be read.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], object]


def pack_adapter(config: Any, data: bytes) -> bytes:
    """Return a configuration (None for none) and the bytes of a file of tensors as one string of bytes."""
    text = b"" if config is None else json.dumps(config).encode()
    return struct.pack("<I", len(text)) + text + data


def unpack_adapter(packed: bytes) -> tuple[Any, bytes]:
    """Undo `pack_adapter`. Raises ValueError for bytes that it did not make."""
    (length,) = struct.unpack_from("<I", packed.ljust(4, b"\0"))
    text = packed[4 : 4 + length]
    return (json.loads(text) if text else None), packed[4 + length :]


_OTHER_KEYS = (
    ("layers.0.attention.wq.lora_A.weight", "layers.0.attention.wq.lora_B.weight"),  # mistral-finetune
    ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),  # torchtune
)
"""Keys of both factors in dialects that `odd_files` has no adapter of."""


def _golden() -> list[bytes]:
    return [data for data in (path.read_bytes() for path in sorted(GOLDEN.glob("*.nola"))) if len(data) < _LARGEST_SEED]


def _container_seeds() -> list[bytes]:
    seeds = _golden()
    remember_units(seeds)
    return seeds


def _read_container(data: bytes) -> None:
    nola_codec.verify(data, limits=TIGHT, references=GOLDEN)


@cache
def _adapters() -> dict[str, list[bytes]]:
    """Return packed adapters by dialect: the good ones of `odd_files`, and small ones that PEFT writes."""
    import odd_dialects  # noqa: F401 - it adds to ODD
    import odd_stores  # noqa: F401 - it adds to ODD

    found: dict[str, list[bytes]] = {}
    packed = [each for name, odd in ODD.items() if odd.code is None for each in _packed_odd(odd)]
    packed += [pack_adapter(None, dump(dict(zip(keys, GOOD.values(), strict=False)))) for keys in _OTHER_KEYS]
    for each in [*_peft_adapters(), *packed]:
        config, data = unpack_adapter(each)
        if len(each) < _LARGEST_SEED:
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
        _read_decoded(file)


def _encoded() -> list[bytes]:
    made = _golden()
    for packed in (each for own in _adapters().values() for each in own[:_OF_EACH]):
        config, data = unpack_adapter(packed)
        try:
            made.append(nola_codec.encode_bytes(data, config=config, nmse=0.3, carry_unknown=True)[0])
        except nola_codec.NolaError:
            continue
    return [data for data in made if len(data) < _LARGEST_SEED]


def _change_description(data: bytes, rng: random.Random) -> bytes:
    """Change what a header says of names, shapes, scalings, the dialect and the configuration; not what is coded."""
    try:
        parts = split(data)
        top = parts.top
        for _ in range(rng.choice((1, 1, 2, 3))):
            match rng.randrange(6):
                case 0:
                    top["dialect"] = rng.choice([*DIALECTS, "x"])
                case 1:
                    top["metadata"] = alter(top["metadata"], rng, wire=True)
                case 2:
                    top["config"] = alter(top["config"], rng, wire=True)
                case 3:
                    top["numbers"] = alter(top["numbers"], rng, wire=True)
                case _:
                    top["kinds"] = alter(top["kinds"], rng, wire=True)
        return join(top, parts.sections)
    except Exception:  # no whole file any more, or values that MessagePack has no form for
        return scramble(data, rng)


@contextmanager
def _without_hash() -> Iterator[None]:
    """Let the decoded SHA-256 be wrong, so that what a header says is looked at, whatever it decodes to."""
    with (
        mock.patch("nola_codec.decoder.decoder.compare_digests"),
        mock.patch("nola_codec.decoder.rungs.compare_digests"),
    ):
        yield


def _read_decoded(data: bytes) -> None:
    facts = nola_codec.inspect(data)
    str(facts)
    with _without_hash():
        names = [facts.dialect, list(DIALECTS)[zlib.crc32(data) % len(DIALECTS)]]
        for name in names:
            try:
                decode_contents(data, name, limits=TIGHT, references=GOLDEN)
            except nola_codec.NolaError:
                continue
        with nola_codec.load(data, "numpy", limits=TIGHT, references=GOLDEN) as file:
            file.state_dict()
            for module in file.names()[:2]:
                file.delta_weight(module)


@cache
def _merged_model() -> tuple[Path, Path]:
    """Return a merged model with an undo file, and the `.nola` file that was merged; both go at the end."""
    import atexit

    from safetensors.numpy import save_file

    folder = Path(tempfile.mkdtemp(dir=_SHARED))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    base = folder / "base"
    base.mkdir()
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1)]
    save_file({name: rng.standard_normal((24, 20)).astype(np.float16) for name in names}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    nola_codec.encode_bytes(dump(GOOD), folder / "task.nola", config=CONFIG, nmse=0.3)
    nola_codec.merge([folder / "task.nola"], base, folder / "merged", keep_undo=True)
    return folder / "merged", folder / "task.nola"


def _undo_seeds() -> list[bytes]:
    return [(_merged_model()[0] / "nola_undo.bin").read_bytes()]


def _read_undo(data: bytes) -> None:
    merged, task = _merged_model()
    (merged / "nola_undo.bin").write_bytes(data)
    out = merged.parent / "restored"
    try:
        nola_codec.unmerge([task], merged, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


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
            if place.is_file() and place.suffix in suffixes and place.stat().st_size < _LARGEST_SEED:
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
    import atexit

    folder = Path(tempfile.mkdtemp(dir=_SHARED))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "adapter_model.safetensors").write_bytes(dump(GOOD))
    return folder


def _read_config(data: bytes) -> None:
    folder = _peft_folder()
    (folder / "adapter_config.json").write_bytes(data)
    read(folder)
    read(folder / "adapter_model.safetensors")


def _dialect_targets() -> list[Target]:
    return [
        Target(f"dialect {name}", partial(_seeds_of_dialect, name), _change_adapter, _read_adapter)
        for name in DIALECTS
        if name not in ("delta", "parameters")  # no tool writes them: they are read from `.nola` files alone
    ]


def _seeds_of_dialect(name: str) -> list[bytes]:
    return _adapters().get(name, [])


def all_targets() -> dict[str, Target]:
    """Return all targets by name."""
    listed = [
        Target("inspect", _container_seeds, alter_file, lambda data: str(nola_codec.inspect(data))),
        Target("container", _container_seeds, alter_file, _read_container),
        Target("description", _encoded, _change_description, _read_decoded),
        Target("undo", _undo_seeds, sometimes(alter_undo), _read_undo),
        Target("store safetensors", _safetensors_seeds, sometimes(alter_safetensors), _read_store),
        Target("store npz", _npz_seeds, sometimes(alter_zip), _read_store),
        Target("store pickle", _pickle_seeds, sometimes(alter_zip), _read_store),
        Target("store gguf", _gguf_seeds, scramble, _read_store),
        Target("store json", _config_seeds, sometimes(_change_json), _read_config),
        *_dialect_targets(),
    ]  # fmt: skip
    return {target.name: target for target in listed}
