"""Synthetic adapters of every layout, as the bytes and the configuration that `encode_bytes` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

import nola_codec
from nola_codec.encoder.job import EncodeJob, open_job
from nola_codec.encoder.options import EncodeOptions
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor

PREFIX = "base_model.model."


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")  # two threads gain nothing for such small adapters


def delta_of(tensors: Mapping[str, npt.NDArray[Any]], path: str) -> npt.NDArray[np.float64]:
    """Return B @ A of a module without its scaling, dense in float64, (out, in); only PEFT's key names are used."""
    for a, b in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
        if PREFIX + path + a in tensors:
            lora_A, lora_B = tensors[PREFIX + path + a], tensors[PREFIX + path + b]
            rank = lora_A.shape[0]
            dense: npt.NDArray[np.float64] = lora_B.reshape(-1, rank).astype(np.float64) @ lora_A.reshape(
                rank, -1
            ).astype(np.float64)
            return dense
    raise KeyError(path)


@dataclass(frozen=True)
class Synthetic:
    """An adapter, with its tensors, its configuration, and the scaling of each module path."""

    tensors: Mapping[str, npt.NDArray[np.float32]]
    config: Mapping[str, Any]
    scalings: Mapping[str, float]

    @property
    def data(self) -> bytes:
        return bytes(save(dict(self.tensors)))

    def encode(self, **options: Any) -> tuple[bytes, nola_codec.EncodeReport]:
        return nola_codec.encode_bytes(self.data, config=self.config, **options)

    def losses(self, encoded: bytes) -> dict[str, tuple[float, float]]:
        """Return (||delta - decoded||^2, ||delta||^2) by module path, dense in float64, from the decoded state dict."""
        with nola_codec.load(encoded) as opened:
            decoded = {key: tensor.numpy() for key, tensor in opened.state_dict().items()}
            scalings = {r.name.removeprefix(PREFIX): r.kind.scaling for r in opened.header.pairs}
        assert scalings == self.scalings
        result = {}
        for path, scaling in self.scalings.items():
            own = scaling * delta_of(self.tensors, path)
            result[path] = (float(((own - scaling * delta_of(decoded, path)) ** 2).sum()), float((own**2).sum()))
        return result

    def nmse(self, encoded: bytes) -> float:
        losses = self.losses(encoded).values()
        return sum(lost for lost, _ in losses) / sum(energy for _, energy in losses)


# path: (kind, out, in, rank); alphas below.
_SHAPES = {
    "layers.0.q": ("linear", 96, 128, 8), "layers.1.q": ("linear", 96, 128, 8), "layers.10.q": ("linear", 96, 128, 8),
    "layers.0.v": ("linear", 33, 65, 8), "layers.1.v": ("linear", 33, 65, 8), "prime": ("linear", 97, 61, 8),
    "wide": ("linear", 40, 512, 8), "one": ("linear", 31, 77, 1), "zero": ("linear", 64, 64, 8),
    "conv": ("conv", 24, 12, 4), "embed": ("embedding", 48, 301, 4), "tiny": ("linear", 1, 5, 8),
}  # fmt: skip
_ALPHAS = {"layers.1.q": 4, "conv": 1, "embed": 24}


def _make(seed: int = 0, only: tuple[str, ...] = (), layers: int = 0) -> Synthetic:
    rng = np.random.default_rng(seed)
    shapes = {path: shape for path, shape in _SHAPES.items() if not only or path in only}
    if layers:
        shapes = {f"layers.{n}.{p}": ("linear", 96, 128 + 64 * (p == "v"), 8) for n in range(layers) for p in "qkv"}
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for path, (kind, out, columns, rank) in shapes.items():
        decay = rng.uniform(0.4, 1) * 0.65 ** np.arange(rank)
        b = (rng.standard_normal((out, rank)) * decay / np.sqrt(out)).astype(np.float32)
        a = (rng.standard_normal((rank, columns * (9 if kind == "conv" else 1))) / np.sqrt(columns)).astype(np.float32)
        if path == "zero":
            b[:] = 0
        key = PREFIX + path
        if kind == "embedding":
            tensors |= {key + ".lora_embedding_A": a, key + ".lora_embedding_B": b}
        elif kind == "conv":
            tensors[key + ".lora_A.weight"] = a.reshape(rank, columns, 3, 3)
            tensors[key + ".lora_B.weight"] = b.reshape(out, rank, 1, 1)
        else:
            tensors |= {key + ".lora_A.weight": a, key + ".lora_B.weight": b}
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "nobody/model", "revision": "abc", "r": 8, "lora_alpha": 16,
        "rank_pattern": {p: s[3] for p, s in shapes.items() if s[3] != 8},
        "alpha_pattern": {p: alpha for p, alpha in _ALPHAS.items() if p in shapes},
    }  # fmt: skip
    return Synthetic(tensors, config, {p: _ALPHAS.get(p, 16) / s[3] for p, s in shapes.items()})


@pytest.fixture(scope="session")
def synthetic() -> Synthetic:
    """Make twelve modules: linear ones of many shapes, a convolution, an embedding, one of rank 1, and a zero one."""
    return _make()


@pytest.fixture(scope="session")
def many() -> Synthetic:
    """Make an adapter with so many different components that files come near any target."""
    return _make(layers=10)


@pytest.fixture
def make_synthetic() -> Callable[..., Synthetic]:
    """Return a function `make_synthetic(seed, only)`, which makes the modules with these paths."""
    return _make


@pytest.fixture(scope="session")
def small() -> Adapter:
    """Make six modules of rank 6 and decaying strength, a bias and a dense tensor."""
    rng = np.random.default_rng(2)
    modules = []
    for number in range(6):
        strength = 0.7 ** np.arange(6) * (1 + number / 3)
        lora_B = (rng.standard_normal((96, 6)) * strength / 10).astype(np.float32)
        lora_A = rng.standard_normal((6, 128)).astype(np.float32) / np.float32(10)
        modules.append(LoraModule(f"layers.{number}.q", lora_A, lora_B, lora_A.shape, lora_B.shape, 2.0))
    vectors = (
        VectorTensor("layers.0.bias", (rng.standard_normal(24) * 0.05).astype(np.float32)),
        VectorTensor("layers.0.diff", (rng.standard_normal((20, 30)) * 0.02).astype(np.float32)),
    )
    return Adapter("peft", tuple(modules), vectors=vectors)


@pytest.fixture
def make_job(small: Adapter) -> Callable[..., EncodeJob]:
    """Return a function `make_job(**options)`, which makes a job for the adapter `small`."""
    return lambda **options: open_job(small, EncodeOptions(**options))
