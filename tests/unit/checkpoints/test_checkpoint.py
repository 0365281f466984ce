"""Reading model directories and finding the weight of each module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import write_file


def tensor(*shape: int) -> RawTensor:
    return RawTensor("F32", shape, np.zeros(shape, np.float32).tobytes())


def sharded(directory: Path) -> dict[str, Any]:
    write_file(directory / "model-1.safetensors", {"a.weight": tensor(2, 3), "b.weight": tensor(1)})
    write_file(directory / "model-2.safetensors", {"c.weight": tensor(4)})
    index = {
        "metadata": {"total_size": 44},
        "weight_map": {
            "a.weight": "model-1.safetensors",
            "b.weight": "model-1.safetensors",
            "c.weight": "model-2.safetensors",
        },
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_single_and_sharded(tmp_path: Path) -> None:
    sharded(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.shards == ("model-1.safetensors", "model-2.safetensors")
    assert {n: (i.shard, i.shape) for n, i in checkpoint.weights.items()} == {
        "a.weight": ("model-1.safetensors", (2, 3)),
        "b.weight": ("model-1.safetensors", (1,)),
        "c.weight": ("model-2.safetensors", (4,)),
    }
    assert checkpoint.read("c.weight") == tensor(4)
    assert checkpoint.config == {}
    write_file(tmp_path / "model.safetensors", {"z.weight": tensor(1)})
    assert list(Checkpoint(tmp_path).weights) == ["z.weight"]  # as Transformers chooses
    with pytest.raises(AdapterError) as e:
        checkpoint.read("z.weight")
    assert e.value.code == "no-such-tensor"


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "x\\y.safetensors", "model.bin", "..", 3])
def test_an_index_cannot_point_elsewhere(shard: Any, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index["weight_map"]["a.weight"] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError) as e:
        Checkpoint(tmp_path)
    assert e.value.code == "bad-index"


@pytest.mark.parametrize("change", ["wrong shard", "absent", "twice", "no map"])
def test_an_index_must_agree_with_the_shards(change: str, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    if change == "wrong shard":
        index["weight_map"]["a.weight"] = "model-2.safetensors"
    elif change == "absent":
        index["weight_map"]["d.weight"] = "model-2.safetensors"
    elif change == "twice":
        write_file(tmp_path / "model-2.safetensors", {"c.weight": tensor(4), "a.weight": tensor(2, 3)})
    else:
        del index["weight_map"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError) as e:
        Checkpoint(tmp_path)
    assert e.value.code == "bad-index"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["adapter_config.json"], "this is an adapter"),
        (["pytorch_model.bin"], "Python pickle"),
        ([], "neither"),
    ],
)
def test_directories_without_weights(names: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(AdapterError, match=words) as e:
        Checkpoint(tmp_path)
    assert e.value.code == "missing-weights"
    with pytest.raises(AdapterError) as e:
        Checkpoint(tmp_path / "none")
    assert e.value.code == "not-found"
