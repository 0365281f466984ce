"""The code in docs/live-models.md runs as printed, with an image model and its adapter beside the usual files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from snippets import Session, blocks

pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "live-models.md"


def write_image_files(folder: Path) -> None:
    """Write the UNet of a small Stable Diffusion, and an adapter as kohya's scripts write it."""
    diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=6,
        attention_head_dim=4, norm_num_groups=4, sample_size=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {}
    for name, width in (("attn1_to_q", 8), ("attn2_to_k", 6)):
        stem = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_{name}"
        tensors[f"{stem}.lora_down.weight"] = rng.standard_normal((4, width)).astype(np.float32)
        tensors[f"{stem}.lora_up.weight"] = rng.standard_normal((8, 4)).astype(np.float32)
        tensors[f"{stem}.alpha"] = np.array(2, np.float32)
    save_file(tensors, folder / "style_kohya.safetensors", {"format": "pt"})


def test_the_blocks_run_in_order(folder: Path) -> None:
    write_image_files(folder)
    session = Session(folder)
    for block in blocks(PAGE):
        if not block.reason:
            assert len([line for line in block.text.splitlines() if line.strip()]) <= 10, block.place
            session.run(block)
    assert session.names["report"].bytes <= 50_000
    assert (folder / "end.nola").stat().st_size <= 50_000
    assert session.names["unet"].active_adapters() == ["style"]
