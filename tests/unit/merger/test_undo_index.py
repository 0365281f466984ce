"""The index of an undo file comes from a stranger: whatever it says, the answer is one clear error, or the base."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

import nola_codec
from nola_codec.errors import AdapterError, NolaError
from nola_codec.merger.undo_file import read_undo

VALUES = (None, -1, 5, 1 << 70, 1.5, "x", "../x", [], {}, [1], {"a": 1}, True)
NAMES = ("a.q_proj", "a.v_proj")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = tmp_path / "base"
    base.mkdir()
    save_file(
        {f"{n}.weight": rng.standard_normal((32, 48)).astype(np.float16) for n in NAMES}, base / "model.safetensors"
    )
    (base / "config.json").write_text("{}")
    tensors = {}
    for name in NAMES:
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((4, 48)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((32, 4)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    nola_codec.encode(tensors, tmp_path / "task.nola", config=config, num_basis=16, bits=4)
    nola_codec.merge([tmp_path / "task.nola"], base, tmp_path / "merged", keep_undo=True)
    return tmp_path / "merged"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(index: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.deepcopy(index)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


class Undo:
    """An undo file whose index is replaced, with right checksums."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, path.read_bytes()
        self.offset = int.from_bytes(self.data[-16:-8], "little")
        self.index = json.loads(zstandard.ZstdDecompressor().decompress(self.data[self.offset : -48]))

    def write(self, text: str) -> None:
        packed = zstandard.ZstdCompressor().compress(text.encode())
        footer = hashlib.sha256(packed).digest() + self.offset.to_bytes(8, "little") + len(packed).to_bytes(8, "little")
        self.path.write_bytes(self.data[: self.offset] + packed + footer)


def test_every_part_of_the_index_is_checked(merged: Path) -> None:
    undo = Undo(merged / "nola_undo.bin")
    read_undo(merged)
    codes = []
    for path in places(undo.index):
        for value in VALUES:
            undo.write(json.dumps(changed(undo.index, path, value)))
            try:
                read_undo(merged)
            except AdapterError as error:
                codes.append(error.code)
    assert len(codes) > 300
    assert set(codes) == {"bad-undo"}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "5", "null"])
def test_an_index_that_is_no_map(text: str, merged: Path) -> None:
    Undo(merged / "nola_undo.bin").write(text)
    with pytest.raises(AdapterError) as caught:
        read_undo(merged)
    assert caught.value.code == "bad-undo"


@pytest.mark.parametrize(("place", "value"), [((), []), ((0,), [0, "a.q_proj", True]), ((0,), [0, "absent", False])])
def test_terms_that_cannot_be(place: tuple[int, ...], value: Any, merged: Path, tmp_path: Path) -> None:
    undo = Undo(merged / "nola_undo.bin")
    path = ("shards", "model.safetensors", "terms", "a.q_proj.weight", *place)
    undo.write(json.dumps(changed(undo.index, path, value)))
    with pytest.raises(NolaError):
        nola_codec.unmerge([tmp_path / "task.nola"], merged, tmp_path / "back")
    assert not (tmp_path / "back").exists()
