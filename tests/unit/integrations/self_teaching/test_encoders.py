"""An adapter of an encoder model teaches its own code: on texts without labels, on random words, on random images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import nola_codec
from nola_codec.cli import main
from nola_codec.encoder.report import TaskReport
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.integrations.self_teaching import encoders, find_family, self_tuner
from nola_codec.integrations.self_teaching.noise import draw_texts
from nola_codec.training import TaskSettings

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = [f"{first}{second}" for first in ("ka", "lo", "mi", "tu", "re") for second in ("ban", "dor", "fes", "gil")]
SETTINGS = TaskSettings(steps=30, every=10)
SIZE = 1000


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")
    monkeypatch.setattr(encoders, "HELD_OUT", 16)
    monkeypatch.setattr(encoders, "VALIDATION", 8)


def tokenizer() -> Any:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(kind: str = "BertModel", **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, initializer_range=0.2, **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def save(model: Any, folder: Path, *, seed: int = 1, **options: Any) -> tuple[Path, Path]:
    """The folders of a base model and of an adapter with strong random factors, whose singular values fall."""
    model.save_pretrained(folder / "base")
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
                fall = 0.5 ** torch.arange(4)
                parameter.copy_(values * (fall if "lora_B" in name else fall[:, None]))
    tuned.save_pretrained(folder / "lora")
    return folder / "base", folder / "lora"


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, Path]:
    folders = save(bert(), tmp_path, target_modules=["query", "value", "dense"])
    tokenizer().save_pretrained(folders[0])
    return folders


def make_lines(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(make_lines(200, 0)) + "\n")
    return path


def encode(folders: tuple[Path, Path], size: int = SIZE, **options: Any) -> TaskReport:
    base, lora = folders
    tuner = self_tuner(base, lora, **{"settings": SETTINGS, **options})
    report = nola_codec.encode(lora, fit="task", tuner=tuner, size=size)
    assert report.task is not None
    assert report.bytes <= size
    return report.task


def hidden(folders: tuple[Path, Path], file: Path | None, lines: list[str]) -> torch.Tensor:
    """The hidden states with the adapter that a file decodes to, by PEFT itself."""
    from peft import PeftModel

    base, lora = folders
    if file is not None:
        lora = file.with_suffix(".lora")
        nola_codec.decode(file, lora)
    model = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), lora).eval()
    batch = tokenizer()(lines, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    return found


def test_texts_without_labels(encoder: tuple[Path, Path], texts: Path, tmp_path: Path) -> None:
    base, lora = encoder
    tuner = self_tuner(base, lora, prompts=texts, settings=SETTINGS)
    report = nola_codec.encode(lora, tmp_path / "a.nola", fit="task", tuner=tuner, size=SIZE)
    task = report.task
    assert task is not None
    assert task.base == pytest.approx(1, abs=0.2)
    assert 0 == task.adapter < task.file < 0.8 * task.start
    assert task.rows == 16
    assert "a text encoder (BertModel), on 200 texts" in task.data
    # Nearer by PEFT's own arithmetic too, on texts that nobody has seen.
    nola_codec.encode(lora, tmp_path / "w.nola", size=SIZE)
    lines = make_lines(50, 9)
    wanted = hidden(encoder, None, lines)
    errors = [float((hidden(encoder, tmp_path / name, lines) - wanted).square().sum()) for name in ("a.nola", "w.nola")]
    assert errors[0] < 0.8 * errors[1]


def test_random_words(encoder: tuple[Path, Path]) -> None:
    task = encode(encoder)
    assert task.file < task.start
    assert "984 texts of random words" in task.data
    assert encode(encoder) == task


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_the_vectors_of_a_sentence_encoder(pooling: str, encoder: tuple[Path, Path], texts: Path) -> None:
    base, _ = encoder
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (base / "modules.json").write_text(json.dumps(modules))
    if pooling == "first":
        (base / "1_Pooling").mkdir()
        (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    task = encode(encoder, prompts=texts)
    assert task.file < task.start
    assert "a sentence encoder (BertModel), on 200 texts" in task.data
    assert f"vectors ({pooling} of the last hidden states)" in task.data


def test_a_head_that_the_adapter_carries(tmp_path: Path, texts: Path) -> None:
    torch.manual_seed(3)
    model = bert("BertForSequenceClassification", num_labels=5)
    folders = save(model, tmp_path, target_modules=["query", "value"], task_type="SEQ_CLS")
    bert().save_pretrained(folders[0])  # the base has no head, and another number of classes
    tokenizer().save_pretrained(folders[0])
    task = encode(folders, 1600, prompts=texts)
    assert "a text classifier (BertForSequenceClassification)" in task.data
    assert task.unit == "nats a row from the adapter's predictions"
    assert 0 == task.adapter < task.file < task.start < task.base


def test_images_at_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        initializer_range=0.2,
    )  # fmt: skip
    folders = save(transformers.ViTModel(config).eval(), tmp_path, target_modules="all-linear")
    task = encode(folders, batch=8)
    assert "an image encoder (ViTModel), on 264 images at random" in task.data
    assert task.file < task.start
    with pytest.raises(EncodeError, match="leave --prompts out"):
        encode(folders, prompts=tmp_path / "nothing")


def test_refusals(encoder: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = encoder
    few = tmp_path / "few.txt"
    few.write_text("\n".join(WORDS[:12]))
    with pytest.raises(EncodeError, match="expected at least 16 different texts, found 12") as caught:
        self_tuner(base, lora, prompts=few)
    assert caught.value.code == "task-data"
    with pytest.raises(EncodeError, match="nothing can be learned") as caught:
        self_tuner(base, silenced(lora, tmp_path / "silent"))
    assert caught.value.code == "task-data"
    other = bert()
    other.encoder.layer = other.encoder.layer[:1]
    other.config.num_hidden_layers = 1
    other.save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError) as wrong:
        self_tuner(tmp_path / "other", lora)
    assert wrong.value.code == "base-mismatch"


def test_rows_are_no_data_of_an_encoder(
    encoder: tuple[Path, Path], texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = encoder
    with pytest.raises(SystemExit) as exit_:
        main(["encode", str(lora), "-n", "--base", str(base), "--data", str(texts)])
    assert exit_.value.code == 3
    assert "one of the encoder models, and rows of text train causal language models" in capsys.readouterr().err


def test_a_classifier_without_a_padding_token(tmp_path: Path, texts: Path) -> None:
    """A decoder that became a classifier, as GPT-2 and Llama do, often has none."""
    config = transformers.GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, n_positions=40, num_labels=3)
    folders = save(
        transformers.GPT2ForSequenceClassification(config), tmp_path, target_modules=["c_attn"], task_type="SEQ_CLS"
    )
    made = tokenizer()
    made.pad_token = None
    made.save_pretrained(folders[0])
    report = encode(folders, 2000, prompts=texts, settings=TaskSettings(steps=2, every=1))
    assert "a text classifier (GPT2ForSequenceClassification), on 200 texts" in report.data


def silenced(lora: Path, folder: Path) -> Path:
    """A copy of an adapter whose lora_B are all 0."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(lora / "adapter_model.safetensors")
    folder.mkdir()
    save_file(
        {key: 0 * t if "lora_B" in key else t for key, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text((lora / "adapter_config.json").read_text())
    return folder


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "causal language models"),
        ('{"architectures": ["BertModel"], "model_type": "bert"}', "encoder models"),
        ('{"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}', "encoder models"),
        ('{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.1"}', "UNets and transformers of Diffusers"),
        ('{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": true}', None),
        ('{"architectures": ["CLIPModel"], "model_type": "clip", "text_config": {}, "vision_config": {}}', None),
        ("[]", None),
        ("no JSON", None),
    ],
)
def test_families(config: str, family: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    if family is not None:
        assert find_family(tmp_path).name == family
        return
    with pytest.raises(EncodeError, match="encoder models, UNets and transformers of Diffusers, and this folder holds"):
        find_family(tmp_path)


def test_random_texts_are_of_words_of_the_vocabulary() -> None:
    made = draw_texts(tokenizer(), 200, 0)
    found = {word for text in made for word in text.split()}
    assert found == set(WORDS)  # neither special tokens, nor single letters
    counts = [sum(text.split().count(word) for text in made) for word in (WORDS[0], WORDS[-1])]
    assert counts[0] > 1.5 * counts[1]
    assert draw_texts(tokenizer(), 200, 0) == made != draw_texts(tokenizer(), 200, 1)
