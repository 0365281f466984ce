"""Targets that read `.nola` files, merge them, and restore what was merged."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from adapter_targets import small_adapters
from changes import alter, scramble
from damage import TIGHT
from mutators import alter_file, alter_safetensors, alter_undo, join, remember_units, sometimes, split
from nola_forge import GOLDEN, reference_answers
from odd_files import CONFIG, GOOD
from reading import read_by_both_paths, read_by_both_readers, read_decoded, verify
from safetensors.numpy import save
from target import IN_MEMORY, LARGEST_SEED, Target, pack_two, unpack_adapter, unpack_two

import nola_codec
from nola_codec.adapters import DIALECTS
from nola_codec.stores.safetensors_writer import dump

_OF_EACH = 8
"""Adapters of each dialect that are encoded, since an encode takes long."""
_WEIGHTS = [f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1)]


def _golden() -> list[bytes]:
    """Return the small valid files of the conformance kit; of those with a reference, the golden ones."""
    files = [path.read_bytes() for path in sorted(GOLDEN.glob("*.nola"))]
    small = [data for data in files if len(data) < LARGEST_SEED]
    references = [split(data).top.get("reference") for data in small]
    known = reference_answers()
    pairs = zip(small, references, strict=True)
    return [data for data, entry in pairs if entry is None or entry[0] in known]


def _container_seeds() -> list[bytes]:
    seeds = _golden()
    remember_units(seeds)
    return seeds


def _encoded() -> list[bytes]:
    made = _golden()
    for packed in (each for own in small_adapters().values() for each in own[:_OF_EACH]):
        config, data = unpack_adapter(packed)
        try:
            made.append(nola_codec.encode_bytes(data, config=config, nmse=0.3, carry_unknown=True)[0])
        except nola_codec.NolaError:
            continue
    return [data for data in made if len(data) < LARGEST_SEED]


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


def _base_model(folder: Path) -> Path:
    """Write a base model of two weights, and return its directory."""
    base = folder / "base"
    base.mkdir()
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((24, 20)).astype(np.float16) for name in _WEIGHTS}
    (base / "model.safetensors").write_bytes(save(weights))
    (base / "config.json").write_text("{}")
    return base


@cache
def _merged_model() -> tuple[Path, Path]:
    """Return a merged model with an undo file, and the `.nola` file that was merged; both go at the end."""
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = _base_model(folder)
    nola_codec.encode_bytes(dump(GOOD), folder / "task.nola", config=CONFIG, nmse=0.3, base=base)
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


def _base_seeds() -> list[bytes]:
    merged, task = _merged_model()
    return [pack_two(task.read_bytes(), (merged.parent / "base" / "model.safetensors").read_bytes())]


def _change_base(packed: bytes, rng: random.Random) -> bytes:
    """Change a file that names its base model, or the weights of the base model."""
    file, weights = unpack_two(packed)
    if rng.random() < 0.4:
        return pack_two(file, sometimes(alter_safetensors)(weights, rng))
    try:
        parts = split(file)
        name = rng.choice(("base", "base", "kinds", "numbers", "dialect", "metadata"))
        parts.top[name] = alter(parts.top[name], rng, wire=True)
        return pack_two(join(parts.top, parts.sections), weights)
    except Exception:  # no whole file any more, or values that MessagePack has no form for
        return pack_two(scramble(file, rng), weights)


def _read_base(packed: bytes) -> None:
    file, weights = unpack_two(packed)
    folder = _merged_model()[0].parent / "other"
    out = folder.parent / "merged-other"
    try:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text("{}")
        nola_codec.merge([file], folder, out, any_base=len(packed) % 2 == 0, limits=TIGHT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)


def _signed_seeds() -> list[bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    seeds = []
    for key, count in ((private, 12), (generate_private_key(SECP256R1()), 1)):
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        seeds += [pack_two(public, nola_codec.sign(data, text)) for data in _golden()[:count]]
    return seeds


def _change_signed(packed: bytes, rng: random.Random) -> bytes:
    key, file = unpack_two(packed)
    match rng.randrange(4):
        case 0:
            return pack_two(scramble(key, rng), file)
        case 1:
            return pack_two(key, file[:-104] + scramble(file[-104:], rng))
        case 2:
            return pack_two(key, alter_file(file[:-104], rng) + file[-104:])
    return pack_two(key, scramble(file, rng))


def _read_signed(packed: bytes) -> None:
    key, file = unpack_two(packed)
    nola_codec.verify(file, limits=TIGHT, references=GOLDEN, key=key)


def file_targets() -> list[Target]:
    """Return the targets of this module."""
    return [
        Target("inspect", _container_seeds, alter_file, lambda data: str(nola_codec.inspect(data))),
        Target("container", _container_seeds, alter_file, verify),
        Target("description", _encoded, _change_description, read_decoded),
        Target("readers", _container_seeds, alter_file, read_by_both_readers),
        Target("kernels", _container_seeds, alter_file, read_by_both_paths),
        Target("signature", _signed_seeds, _change_signed, _read_signed),
        Target("base", _base_seeds, _change_base, _read_base),
        Target("undo", _undo_seeds, sometimes(alter_undo), _read_undo),
    ]
