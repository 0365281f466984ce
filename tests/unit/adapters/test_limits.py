"""What an adapter asks for beyond its own bytes is known, and bounded, before it is given."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nola_codec.adapters import deltas, read, write
from nola_codec.adapters.dialects import lycoris
from nola_codec.api.encoding import encode_bytes
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.gguf_io import dump_gguf
from nola_codec.stores.safetensors_writer import dump

STEM = "lora_unet_q"


def floats(*shape: int, seed: int = 0) -> RawTensor:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype("<f4")
    return RawTensor("F32", shape, values.tobytes())


def values(tensor: RawTensor) -> np.ndarray:
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


PARTS: dict[str, dict[str, RawTensor]] = {
    "LoHa": {f"hada_w{n}_{s}": floats(*((5, 2) if s == "a" else (2, 6))) for n in "12" for s in "ab"},
    "LoHa, Tucker": {f"hada_w{n}_{s}": floats(2, 5 if s == "a" else 6) for n in "12" for s in "ab"}
    | {f"hada_t{n}": floats(2, 2, 3, 3) for n in "12"},
    "LoKr": {"lokr_w1": floats(2, 3), "lokr_w2": floats(4, 5, 3, 3)},
    "LoKr of products": {f"lokr_w{n}_{s}": floats(*((5, 2) if s == "a" else (2, 6))) for n in "12" for s in "ab"},
    "LoKr, Tucker": {
        "lokr_w1": floats(2, 3), "lokr_t2": floats(2, 2, 3, 3), "lokr_w2_a": floats(2, 4), "lokr_w2_b": floats(2, 5),
    },
    "Tucker": {
        "lora_down.weight": floats(2, 6, 1, 1), "lora_mid.weight": floats(2, 2, 3, 3),
        "lora_up.weight": floats(5, 2, 1, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_the_size_of_a_delta_is_known_exactly(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump({f"{STEM}.{part}": tensor for part, tensor in PARTS[case].items()})
    (delta,) = deltas(read(data))
    elements = delta.dense().size
    monkeypatch.setattr(lycoris, "MAX_ELEMENTS", elements)
    assert len(deltas(read(data))) == 1
    monkeypatch.setattr(lycoris, "MAX_ELEMENTS", elements - 1)
    with pytest.raises(AdapterError, match=f"a delta of {elements} elements") as e:
        read(data)
    assert e.value.code == "limit"


def test_a_delta_that_is_too_large_takes_no_memory() -> None:
    data = dump({f"{STEM}.lokr_w{n}": floats(256, 256) for n in "12"})
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{"nmse": 0.1}, {"num_basis": 8, "bits": 4}])
def test_doubles_are_encoded(options: dict[str, Any]) -> None:
    """A file knows three dtypes of coded tensors; doubles were rounded to float32 when they were read."""
    pair = {
        f"{STEM}.lora_down.weight": floats(2, 9),
        f"{STEM}.lora_up.weight": floats(7, 2),
        f"{STEM}.diff_b": floats(7),
    }
    doubles = {k: RawTensor("F64", t.shape, values(t).astype("<f8").tobytes()) for k, t in pair.items()}
    assert encode_bytes(dump(doubles), **options)[0] == encode_bytes(dump(pair), **options)[0]


@pytest.mark.parametrize("shape", [(1,) * 9, (0, 1 << 32)])
def test_shapes_that_a_file_cannot_hold(shape: tuple[int, ...]) -> None:
    pair = {f"{STEM}.lora_down.weight": floats(2, 9), f"{STEM}.lora_up.weight": floats(7, 2)}
    odd = RawTensor("F32", shape, bytes(4 * math.prod(shape)))
    with pytest.raises(AdapterError) as e:
        read(dump(pair | {"x": odd}), carry_unknown=True)
    assert e.value.code == "bad-shape"


def test_gguf_embeddings_are_the_other_way_round(tmp_path: Path) -> None:
    """llama.cpp: lora_a (vocab, r), lora_b (dim, r); the delta on (vocab, dim) is alpha / r times lora_a @ lora_b.T."""
    a, b = floats(11, 2), floats(6, 2)
    tensors = {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b}
    extra = {
        "general.type": ("STRING", "adapter"),
        "adapter.type": ("STRING", "lora"),
        "adapter.lora.alpha": ("FLOAT32", 6.0),
    }
    adapter = read(dump_gguf(tensors, extra, "llama"))
    (module,) = adapter.modules
    assert (module.layout, module.scaling) == ("embedding", 3.0)
    np.testing.assert_allclose(module.lora_B @ module.lora_A, values(b) @ values(a).T, rtol=1e-6)
    path = write(adapter, tmp_path / "back.gguf")
    assert read(path).modules[0].lora_A.tobytes() == module.lora_A.tobytes()
