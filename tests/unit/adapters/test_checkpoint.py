"""Reading model directories and finding the weight of each module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.checkpoints.embeddings import TiedEmbeddings, tied_embeddings
from nola_codec.errors import AdapterError
from nola_codec.merge.matching import MergeTarget, Names, delta_shape, resolve_weights
from nola_codec.model.adapter import LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_io import write_file


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


def test_names_with_and_without_prefix() -> None:
    names = Names(["h.0.q.weight", "model.decoder.k.weight", "x.p.weight", "y.p.weight", "weight"])
    assert names.find("h.0.q.weight") == "h.0.q.weight"
    assert names.find("transformer.h.0.q.weight") == "h.0.q.weight"
    assert names.find("decoder.k.weight") == "model.decoder.k.weight"
    assert names.find("k.weight") == "model.decoder.k.weight"
    assert names.find("p.weight") is None  # two of them
    assert names.find("lm_head.weight") is None


def test_delta_shapes() -> None:
    assert delta_shape("linear", (2, 5), (7, 2)) == (7, 5)
    assert delta_shape("conv", (2, 5, 3, 3), (7, 2, 1, 1)) == (7, 5, 3, 3)
    assert delta_shape("embedding", (2, 50), (8, 2)) == (50, 8)
    module = LoraModule("m", np.zeros((2, 5), np.float32), np.zeros((7, 2), np.float32), (2, 5), (7, 2), 3.0)
    assert MergeTarget.of(module) == MergeTarget("m", "linear", (7, 5), 3.0, False)


def target(path: str, *shape: int, flag: bool = False) -> MergeTarget:
    layout = "conv" if len(shape) > 2 else "linear"
    return MergeTarget(f"base_model.model.{path}", layout, shape, 1.0, flag)


@pytest.mark.parametrize(
    ("shape", "flag", "model_type", "transposed"),
    [
        ((3, 5), False, "llama", False),
        ((5, 3), True, "custom", True),
        ((3, 5), True, "custom", False),  # the flag was left on by another module
        ((5, 3), False, "gpt2", True),  # and here left off
        ((5, 5), False, "gpt2", True),
        ((5, 5), True, "gpt2", True),
        ((5, 5), True, "custom", True),
        ((5, 5), False, "llama", False),
    ],
)
def test_orientation(shape: tuple[int, int], flag: bool, model_type: str, transposed: bool) -> None:
    delta = (5, 5) if shape == (5, 5) else (3, 5)
    found = resolve_weights(
        [target("h.0.c_proj", *delta, flag=flag)], {"h.0.c_proj.weight": shape}, {"model_type": model_type}
    )
    assert found["base_model.model.h.0.c_proj"].transposed is transposed


def test_a_linear_head_of_gpt2_is_not_transposed() -> None:
    found = resolve_weights([target("lm_head", 5, 5, flag=True)], {"lm_head.weight": (5, 5)}, {"model_type": "gpt2"})
    assert found["base_model.model.lm_head"].transposed is False


def test_attention_projections() -> None:
    shapes = {"attn.in_proj_weight": (12, 4), "attn.out_proj.weight": (4, 4)}
    found = resolve_weights([target("attn", 12, 4), target("attn.base_layer.out_proj", 4, 4)], shapes, {})
    assert {m.weight for m in found.values()} == set(shapes)


def test_every_misfit_is_listed() -> None:
    shapes = {"a.weight": (3, 5), "b.weight": (3, 5), "c.weight": (4, 2, 3)}
    targets = [
        target("a", 3, 5),
        target("b", 5, 3),
        target("c", 4, 3, 3),
        target("d", 1, 1),
        target("base_layer.a", 3, 5),
    ]
    with pytest.raises(AdapterError) as e:
        resolve_weights(targets, shapes, {"model_type": "llama"})
    assert e.value.code == "base-mismatch"
    message = str(e.value)
    assert message.startswith("4 parts of the adapter")
    assert "base_model.model.b: shape: expected [5, 3], found [3, 5] (b.weight)" in message
    assert "base_model.model.c: shape: expected [4, 3, 3]" in message
    assert "base_model.model.d: no weight d.weight" in message
    assert "a.weight is already changed by base_model.model.a" in message


EMBED = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)}
LLAMA = {"architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "shapes", "paths", "wanted"),
    [
        (LLAMA, EMBED, [], TiedEmbeddings("model.embed_tokens.weight", "lm_head.weight")),
        (LLAMA | {"tie_word_embeddings": False}, EMBED, [], None),
        (LLAMA | {"text_config": {"tie_word_embeddings": False}}, EMBED, [], None),
        (LLAMA, EMBED | {"lm_head.weight": (9, 4)}, [], None),
        ({"architectures": ["LlamaModel"]}, EMBED, [], None),
        ({}, EMBED, ["x.lm_head"], TiedEmbeddings("model.embed_tokens.weight", "x.lm_head.weight")),
        (
            {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"},
            {"gpt_neox.embed_in.weight": (9, 4)},
            [],
            TiedEmbeddings("gpt_neox.embed_in.weight", "embed_out.weight"),
        ),
        (
            LLAMA,
            {"lm_head.weight": (9, 4)},
            ["model.embed_tokens"],
            TiedEmbeddings("lm_head.weight", "model.embed_tokens.weight"),
        ),
    ],
)
def test_tied_embeddings(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], paths: list[str], wanted: TiedEmbeddings | None
) -> None:
    assert tied_embeddings(config, shapes, paths) == wanted
