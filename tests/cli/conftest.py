"""A small adapter on disk, and the command line run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nola_codec.cli import main


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")  # adapters this small gain nothing from two


@dataclass(frozen=True)
class Result:
    """Exit status, and what was printed where."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("inspect", path)`: the command as a user types it."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return Result(int(exit_.value.code or 0), printed.out, printed.err)

    return call


def write_adapter(directory: Path, **changes: Any) -> Path:
    """Four linear layers of rank 4."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    tensors = {}
    for layer in range(2):
        for name, out in (("q_proj", 64), ("v_proj", 33)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            decay = 0.6 ** np.arange(4)
            tensors[key + ".lora_A.weight"] = rng.standard_normal((4, 48)).astype(np.float32)
            tensors[key + ".lora_B.weight"] = (rng.standard_normal((out, 4)) * decay).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "nobody/model", **changes}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture(scope="session")
def encoded_once(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import nola_codec

    return nola_codec.encode_bytes(write_adapter(tmp_path_factory.mktemp("once") / "adapter"), nmse=0.1)[0]


@pytest.fixture
def encoded(encoded_once: bytes, tmp_path: Path) -> Path:
    """The adapter at an NMSE of 0.1."""
    (tmp_path / "a.nola").write_bytes(encoded_once)
    return tmp_path / "a.nola"
