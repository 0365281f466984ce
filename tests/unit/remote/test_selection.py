"""The files of a remote directory that are copied."""

from __future__ import annotations

import pytest

from nola_codec.errors import RemoteError
from nola_codec.remote.selection import select_files

ADAPTER_SHARDS = [f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("there", "needed"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "optimizer.pt", "tokenizer.json",
             "README.md", "training_args.bin", "checkpoint-10/adapter_model.safetensors", ".gitattributes"],
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        (["adapter_config.json", "adapter_model.bin", "rng_state.pth"], ["adapter_config.json", "adapter_model.bin"]),
        (
            ["adapter_config.json", *ADAPTER_SHARDS, "adapter_model.safetensors.index.json"],
            ["adapter_config.json", *ADAPTER_SHARDS, "adapter_model.safetensors.index.json"],
        ),
        (
            ["pytorch_lora_weights.safetensors", "embeddings.safetensors", "image.png"],
            ["embeddings.safetensors", "pytorch_lora_weights.safetensors"],
        ),
        (
            ["adapter_config.json", "adapter_model.safetensors", "other/adapter_config.json",
             "other/adapter_model.safetensors", "runs/events.out.tfevents.1"],
            ["adapter_config.json", "adapter_model.safetensors", "other/adapter_config.json",
             "other/adapter_model.safetensors"],
        ),
        (["checkpoint-5/adapter_config.json", "checkpoint-5/adapter_model.safetensors", "run.log"],
         ["checkpoint-5/adapter_config.json", "checkpoint-5/adapter_model.safetensors"]),
        (["lora.safetensors", "sample.webp"], ["lora.safetensors"]),
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "vocab.json",
             "tokenizer.model", "onnx/model.onnx", "model.fp16.safetensors", "logo.png"],
            ["config.json", "model.safetensors", "tokenizer.model", "vocab.json"],
        ),
        (
            ["config.json", *SHARDS, "model.safetensors.index.json", "consolidated.safetensors",
             "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
            ["config.json", *SHARDS, "model.safetensors.index.json"],
        ),
        (["config.json", "pytorch_model.bin", "optimizer.bin"], ["config.json", "pytorch_model.bin"]),
        (
            ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
             "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
             "text_encoder/config.json", "text_encoder/model.safetensors", "v1.ckpt", "tokenizer/merges.txt"],
            ["model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt",
             "unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
        ),
        (["config.json", "model.safetensors", "nola_undo.bin"], ["config.json", "model.safetensors", "nola_undo.bin"]),
        (["README.md", "notes.txt"], []),
    ],
)  # fmt: skip
def test_only_needed_files_are_copied(there: list[str], needed: list[str]) -> None:
    assert select_files(there, "x") == sorted(needed)


def test_several_checkpoints_are_not_guessed() -> None:
    names = [f"checkpoint-{n}/adapter_model.safetensors" for n in (5, 10)]
    with pytest.raises(RemoteError, match="checkpoint-5") as caught:
        select_files(names, "s3://b/run")
    assert caught.value.code == "several-checkpoints"
