"""A folder with what the pages speak of: adapters, a base model, a tuned model, text of the task."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 1


@pytest.fixture(scope="session")
def made_once(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`my_lora/`, `my_lora_2/`, `other_lora/`, `model/`, `tuned/`, `rows.jsonl`.

    The adapter is the carried one of SmolLM2-135M, cut to its first layer; the base model has the same shapes with
    random weights and a small vocabulary.
    """
    if not examples.is_dir():
        pytest.skip("no examples/: the pages are tested in a checkout")
    folder = tmp_path_factory.mktemp("pages")
    cut_adapter(examples / "smollm2_e2e", folder / "my_lora")
    shutil.copytree(folder / "my_lora", folder / "other_lora")
    train_on(folder / "my_lora", folder / "my_lora_2")
    pairs = [line.split("||", 1) for line in (examples / "e2e" / "test.txt").read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": f"data: {meaning}\ntext:", "completion": f" {text}\n"} for meaning, text in pairs[:32]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_models(folder, sorted({word for pair in pairs for part in pair for word in part.split()}))
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of that folder, and the current directory of the test."""
    here = tmp_path / "here"
    shutil.copytree(made_once, here, copy_function=os.link)  # hard links: nothing writes into these files
    for name in ("tools", "spec", "examples"):  # so that commands of a checkout run too
        (here / name).symlink_to(ROOT / name)
    monkeypatch.chdir(here)
    monkeypatch.setenv("NOLA_THREADS", "1")
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    return here


def cut_adapter(source: Path, target: Path) -> None:
    """Write a PEFT adapter of the first layers alone."""
    from safetensors.numpy import load_file, save_file

    kept = {
        key: tensor
        for key, tensor in load_file(source / "adapter_model.safetensors").items()
        if int(key.split(".layers.")[1].split(".")[0]) < LAYERS
    }
    target.mkdir()
    save_file(kept, target / "adapter_model.safetensors", {"format": "pt"})
    shutil.copyfile(source / "adapter_config.json", target / "adapter_config.json")


def train_on(source: Path, target: Path) -> None:
    """Write an adapter that is a little more than another one, as after more steps of a training."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, target)
    rng = np.random.default_rng(0)
    moved = {
        key: (1.05 * tensor + 0.1 * tensor.std() * rng.standard_normal(tensor.shape)).astype(tensor.dtype)
        for key, tensor in load_file(source / "adapter_model.safetensors").items()
    }
    save_file(moved, target / "adapter_model.safetensors", {"format": "pt"})


def write_models(folder: Path, words: list[str]) -> None:
    """Write a random base model with a tokenizer of words, and the same model after a step of fine-tuning."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<s>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name in ("model", "tuned"):
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 1e-3 * torch.randn_like(weight)
