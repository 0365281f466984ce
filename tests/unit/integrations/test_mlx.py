"""Files in live models of mlx-lm, where MLX is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
import nola_codec.numpy
from nola_codec.errors import AdapterError

mx = pytest.importorskip("mlx.core")
utils = pytest.importorskip("mlx_lm.tuner.utils")
from nola_codec.integrations import mlx as nola_mlx  # noqa: E402

RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}


def model(layers: int = 2, width: int = 16) -> Any:
    from mlx_lm.models import llama

    mx.random.seed(0)
    return llama.Model(llama.ModelArgs(
        model_type="llama", hidden_size=width, num_hidden_layers=layers, intermediate_size=24, num_attention_heads=4,
        rms_norm_eps=1e-5, vocab_size=32, num_key_value_heads=2,
    ))  # fmt: skip


def logits(model: Any) -> np.ndarray:
    return np.array(model(mx.arange(6)[None]))


def encoded(alpha: int = 8) -> bytes:
    rng = np.random.default_rng(alpha)
    tensors = {}
    for layer in range(2):
        path = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((4, 16)).astype(np.float32)
        tensors[f"{path}.lora_B.weight"] = rng.standard_normal((16, 4)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    return nola_codec.numpy.save(tensors, config=config, **RATE)


def test_the_bits_are_those_of_the_decoded_directory(tmp_path: Path) -> None:
    nola_codec.decode(encoded(), tmp_path / "decoded", format="mlx")
    assert json.loads((tmp_path / "decoded" / "adapter_config.json").read_text())["lora_parameters"]["scale"] == 2.0
    peer, own = model(), model()
    before = logits(own)
    utils.load_adapters(peer, str(tmp_path / "decoded"))
    assert nola_mlx.load(own, encoded()) is own
    assert np.array_equal(logits(own), logits(peer))
    assert not np.array_equal(logits(own), before)
    with pytest.raises(AdapterError, match="replace=True replaces it") as caught:
        nola_mlx.load(own, encoded())
    assert caught.value.code == "adapter-exists"
    nola_mlx.load(own, encoded(3), replace=True)
    fresh = nola_mlx.load(model(), encoded(3))
    assert np.array_equal(logits(own), logits(fresh))


def test_a_file_that_does_not_fit() -> None:
    other = model(width=32)
    before = logits(other)
    with pytest.raises(AdapterError, match=r"it does not fit the model: .*does not match") as caught:
        nola_mlx.load(other, encoded())
    assert caught.value.code == "base-mismatch"
    assert np.array_equal(logits(other), before)
