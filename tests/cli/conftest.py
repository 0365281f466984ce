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


WORDS = ["<s>", "</s>", "the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "park"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("base")
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rows.txt"
    path.write_text("the cat sat on a mat\na dog ran to the park\nthe dog sat on the cat\n" * 4)
    return path


@pytest.fixture(scope="session")
def trained(base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that model that is a step down the text's gradient."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for line in text.read_text().splitlines():
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            u, s, vt = torch.linalg.svd(-0.05 * layer.weight.grad)
            tensors[f"base_model.model.{name}.lora_A.weight"] = vt[:4].contiguous().numpy()
            tensors[f"base_model.model.{name}.lora_B.weight"] = (u[:, :4] * s[:4]).contiguous().numpy()
    directory = tmp_path_factory.mktemp("adapter")
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": "nobody/model"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
