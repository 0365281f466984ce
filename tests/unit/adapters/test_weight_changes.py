"""The dialect of whole models' changes: what it asks of a base model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import nola_codec
from nola_codec.adapters.dialects.weight_changes import totals
from nola_codec.api.decoding import decode, read_adapter
from nola_codec.api.delta_encoding import encode_delta
from nola_codec.stores.dtypes import from_float32, to_float32
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.stores.safetensors_writer import write_file

WEIGHT = "transformer.h.0.attn.c_proj.weight"
HEAD = "lm_head.weight"


def model(path: Path, seed: int, scale: float = 1.0) -> Path:
    """A model of GPT-2's type, which stores the weights of its Conv1D layers (in, out); this one is square."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal((96, 96)).astype(np.float32) * scale for name in (WEIGHT, HEAD)}
    write_file(path / "model.safetensors", {name: from_float32(v, "F32") for name, v in values.items()})
    return path


@pytest.mark.parametrize("residue", [True, False])
def test_a_change_of_a_square_weight_stored_in_out_is_not_transposed(residue: bool, tmp_path: Path) -> None:
    """A change is that of the stored tensor; and names of two components of a pipeline do not matter to it."""
    base, tuned = model(tmp_path / "base", 0), model(tmp_path / "tuned", 1)
    file = tmp_path / "a.nola"
    encode_delta(tuned, base, file, nmse=0.3, rank=8, residue=residue, head=True)
    changes = dict(totals(read_adapter(file)))
    assert set(changes) == {WEIGHT, HEAD}
    decode(file, tmp_path / "merged", base=base)

    class Holder(torch.nn.Module):
        def named_parameters(self, *_: object, **__: object) -> object:
            return iter(parameters.items())

    with SafetensorsFile(base / "model.safetensors") as before:
        parameters = {
            name: torch.nn.Parameter(torch.from_numpy(to_float32(before.read(name)).copy())) for name in changes
        }
        with nola_codec.load(file) as opened:
            opened.merge_into(Holder())
        with SafetensorsFile(tmp_path / "merged" / "model.safetensors") as merged:
            for name, change in changes.items():
                wanted = (to_float32(before.read(name)).astype(np.float64) + change).astype(np.float32)
                np.testing.assert_allclose(to_float32(merged.read(name)), wanted, rtol=1e-6, atol=1e-6)
                assert np.array_equal(parameters[name].detach().numpy(), to_float32(merged.read(name)))
