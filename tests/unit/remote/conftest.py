"""An adapter and its file, servers for them, and a cache and short waits for each test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from range_server import RangeServer
from safetensors.numpy import save

import nola_codec
from nola_codec.remote import transfer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NOLA_CODEC_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="session")
def adapter() -> dict[str, bytes]:
    """The files of a PEFT adapter with a scaling of 2."""
    random = np.random.default_rng(5)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.layers.{layer}.q_proj"
        tensors[f"{name}.lora_A.weight"] = random.standard_normal((8, 64), np.float32)
        tensors[f"{name}.lora_B.weight"] = random.standard_normal((64, 8), np.float32)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    return {"adapter_model.safetensors": save(tensors), "adapter_config.json": json.dumps(config).encode()}


@pytest.fixture(scope="session")
def adapter_dir(adapter: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "my_lora"
    folder.mkdir()
    for name, data in adapter.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def encoded(adapter_dir: Path) -> bytes:
    """A file of several blocks, larger than what one request brings."""
    random = np.random.default_rng(6)
    raw = {f"extra.{i}": random.standard_normal((101, 97), np.float32) for i in range(6)}
    folder = adapter_dir.parent / "with_extra"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter_dir / "adapter_config.json").read_bytes())
    from safetensors.numpy import load_file

    (folder / "adapter_model.safetensors").write_bytes(save(load_file(adapter_dir / "adapter_model.safetensors") | raw))
    data, _ = nola_codec.encode_bytes(str(folder), nmse=0.5, carry_unknown=True)
    assert len(data) > 100_000
    return data


@pytest.fixture
def server(adapter: dict[str, bytes], encoded: bytes) -> Iterator[RangeServer]:
    files = {f"my_lora/{name}": data for name, data in adapter.items()}
    with RangeServer({"task.nola": encoded, **files}) as running:
        yield running
