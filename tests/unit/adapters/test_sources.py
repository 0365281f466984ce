"""Which file of a directory is the adapter, and which configuration goes with it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from nola_codec.adapters import read
from nola_codec.adapters.sources import open_source
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.npz_io import dump_npz
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_writer import dump

P = "base_model.model.layers.0.q"
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
TENSORS = {
    f"{P}.lora_A.weight": RawTensor("F32", (2, 4), struct.pack("<8f", *range(8))),
    f"{P}.lora_B.weight": RawTensor("F32", (3, 2), struct.pack("<6f", *range(6))),
}
DUMPS = {".safetensors": dump, ".npz": dump_npz, ".bin": dump_pickle, ".pt": dump_pickle, ".pth": dump_pickle}


def fill(directory: Path, *names: str, config: dict[str, Any] | None = CONFIG) -> Path:
    for name in names:
        if (make := DUMPS.get(Path(name).suffix)) is not None:
            (directory / name).write_bytes(make(TENSORS))
        else:
            (directory / name).write_text("{}")
    if config is not None:
        (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"])
def test_peft_directories_of_any_container(name: str, tmp_path: Path) -> None:
    adapter = read(fill(tmp_path, name, "README.md", "training_args.bin"))
    assert [module.scaling for module in adapter.modules] == [2.0]
    assert adapter.config == CONFIG
    assert read(tmp_path / name).config == CONFIG
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="put it back, or give the scaling") as e:
        read(tmp_path)
    assert e.value.code == "missing-config"
    assert read(tmp_path / name).modules[0].scaling == 1.0


WEIGHTS = [
    "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapters.safetensors", "adapters.npz",
    "adapter_model.bin", "pytorch_lora_weights.bin", "adapter_model.pt", "other.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("first", range(len(WEIGHTS)))
def test_the_order_in_which_names_are_looked_for(first: int, tmp_path: Path) -> None:
    fill(tmp_path, *WEIGHTS[first:])
    with open_source(tmp_path) as source:
        assert Path(source.file.name).name == WEIGHTS[first]
        assert source.config == CONFIG
        assert source.beside is None


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.bin", "a.pt", "a.pth"])
def test_a_lone_file_of_any_name(name: str, tmp_path: Path) -> None:
    fill(tmp_path, name, "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "README.md", config=None)
    with open_source(tmp_path) as source:
        assert (Path(source.file.name).name, source.config, source.beside) == (name, None, None)


def test_the_configuration_beside_a_lone_file(tmp_path: Path) -> None:
    fill(tmp_path, "a.safetensors", "adapter_model.bin")
    with open_source(tmp_path / "a.safetensors") as source:  # the keys are PEFT's, so the configuration is its own
        assert (source.config, source.beside) == (CONFIG, None)
    other = {key.removeprefix("base_model.model."): tensor for key, tensor in TENSORS.items()}
    (tmp_path / "b.safetensors").write_bytes(dump(other))
    with open_source(tmp_path / "b.safetensors") as source:
        assert (source.config, source.beside) == (None, CONFIG)
    with open_source(tmp_path / "a.safetensors", config={"r": 1}) as source:
        assert (source.config, source.beside) == ({"r": 1}, None)
    with open_source(tmp_path / "adapter_model.bin") as source:
        assert (source.config, source.beside) == (CONFIG, None)
    with open_source(dump(TENSORS)) as source:
        assert (source.config, source.beside) == (None, None)


REFUSED = {
    "nothing": ((), "missing-weights", "no adapter_model.safetensors"),
    "a readme": (("README.md",), "missing-weights", "no adapter_model.safetensors"),
    "trainer state": (("optimizer.pt", "training_args.bin"), "missing-weights", "no adapter_model.safetensors"),
    "several": (("b.safetensors", "a.npz"), "missing-weights", "name the one meant: a.npz, b.safetensors"),
    "a model": (("config.json", "model.safetensors"), "missing-weights", "a whole model"),
    "a pipeline": (("model_index.json",), "missing-weights", "a whole model"),
    "a model in shards": (("model.safetensors.index.json",), "missing-weights", "a whole model"),
    "shards": (
        ("adapter_model.safetensors.index.json", "adapter_model-00001-of-00002.safetensors"),
        "sharded",
        "adapter_model.safetensors.index.json",
    ),
    "pickled shards": (("adapter_model.bin.index.json",), "sharded", "adapter_model.bin.index.json"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("config", [None, CONFIG])
def test_directories_without_one_adapter(case: str, config: dict[str, Any] | None, tmp_path: Path) -> None:
    names, code, words = REFUSED[case]
    with pytest.raises(AdapterError) as e:
        open_source(fill(tmp_path, *names, config=config))
    assert e.value.code == code
    assert words in str(e.value)


def test_one_shard_is_no_adapter(tmp_path: Path) -> None:
    fill(tmp_path, "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(AdapterError, match="one shard of several") as e:
        open_source(tmp_path / "adapter_model-00001-of-00002.safetensors")
    assert e.value.code == "sharded"
