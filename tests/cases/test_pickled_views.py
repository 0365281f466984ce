"""PyTorch files whose tensors are views of shared storages, and files without any tensor (case 36)."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import nola_codec
from nola_codec import adapters
from nola_codec.errors import AdapterError

MODULE = "base_model.model.model.layers.{}.self_attn.q_proj"


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> Path:
    """Write a PEFT directory with a pickled file of tensors."""
    folder.mkdir()
    torch.save(tensors, folder / name)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_views_are_read_as_torch_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    """Case 36: strided slices of one storage, a transposed view, an expanded row and a Parameter."""
    torch.manual_seed(1)
    big = torch.randn(100, 64).to(dtype)
    tensors = collections.OrderedDict(
        {
            f"{MODULE.format(0)}.lora_A.weight": big[0:4, :24],
            f"{MODULE.format(0)}.lora_B.weight": torch.nn.Parameter(big[4:8, :24].T),
            f"{MODULE.format(1)}.lora_A.weight": big[50:51, 3:27].expand(4, 24),
            f"{MODULE.format(1)}.lora_B.weight": big[40:88:2, 5:13:2],
        }
    )
    source = write_adapter(tmp_path / "a", tensors, "adapter_model.bin")
    wanted = torch.load(source / "adapter_model.bin", weights_only=True)
    for module in adapters.read(source).modules:
        for found, letter in ((module.lora_A, "A"), (module.lora_B, "B")):
            expected = wanted[f"{module.name}.lora_{letter}.weight"].detach().float().numpy()
            assert np.array_equal(found, expected)
    assert nola_codec.encode(source, nmse=0.01).nmse <= 0.01


def test_a_file_without_tensors_is_refused_as_empty(tmp_path: Path) -> None:
    """Case 36: the 443-byte file that some trainings leave (huggingface/peft #460)."""
    with pytest.raises(AdapterError) as refusal:
        nola_codec.encode(write_adapter(tmp_path / "a", {}, "adapter_model.bin"))
    assert refusal.value.code == "empty-adapter"
