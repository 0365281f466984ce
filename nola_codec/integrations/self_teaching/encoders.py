"""Encoder models of Transformers: their outputs on texts without labels, or on texts or images at random."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nola_codec.adapters import read
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import EncodeError, require_package
from nola_codec.integrations.causal import architectures_of, are_causal, load_tokenizer, read_model_config, without_bars
from nola_codec.integrations.self_teaching.contract import TeachingRequest
from nola_codec.integrations.self_teaching.noise import draw_images, draw_texts
from nola_codec.integrations.self_teaching.placing import hash_adapter, place_adapter, size_of_change
from nola_codec.integrations.task_text import TOKENS
from nola_codec.integrations.text_rows import read_rows
from nola_codec.model.adapter import Adapter

if TYPE_CHECKING:
    import torch

    from nola_codec.training import TaskTuner

_TEXTS = 1 << 16
"""The most texts of a file that are read."""
_LEAST = 16
"""The least texts of a file."""
HELD_OUT, VALIDATION = 128, 64
"""The most inputs that are set aside to report on (a tenth of a file), and to validate on (a twentieth)."""
_BODIES = ("Model", "ForMaskedLM", "ForPreTraining", "ForMaskedImageModeling")
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
"""The last layers of classifiers, which tell the number of classes."""

Batch = dict[str, "torch.Tensor"]
Pooling = Literal["mean", "first"]


class EncoderModels:
    """The family of models that turn a text, or an image, into vectors or classes; see `Family`."""

    name = "encoder models"
    batch = 32

    def recognizes(self, base: Path) -> bool:
        """Return True if the configuration names an encoder, or a classifier."""
        config = read_model_config(base)
        kinds = architectures_of(config)
        composite = {"text_config", "vision_config", "_diffusers_version"} & config.keys()
        if composite or config.get("is_encoder_decoder") or are_causal(kinds):
            return False
        return "model_type" in config and any(kind.endswith((*_BODIES, *_CLASSIFIERS)) for kind in kinds)

    def make_tuner(self, request: TeachingRequest) -> TaskTuner:
        """Load the model, read or draw its inputs, and return the tuner; see `Family`."""
        from nola_codec.training import TaskData, TaskTuner
        from nola_codec.training.task_distance import Divergence, SquaredError

        request.tell("loading the base model")
        adapter = read(request.source, scale=request.scale)
        encoder = _load(request.base, adapter)
        placed = place_adapter(encoder.model, adapter)
        inputs, contents = _read_inputs(request, encoder)
        held_out, validation, train = _split(inputs, request.seed)
        outputs = encoder.outputs
        checked = encoder.batches(validation, request.batch)
        if encoder.classes:
            distance: Any = Divergence()
            size, unit = 1.0, "nats a row from the adapter's predictions"
        else:
            request.tell("measuring the adapter's change")
            distance = SquaredError()
            size = size_of_change(placed, adapter, outputs, checked)
            unit = "of the squared change that the adapter makes to the outputs"
        told = repr((request.base.resolve(), request.batch, request.seed, hash_adapter(adapter), contents, inputs))
        data = TaskData(
            train=encoder.batches(train, request.batch),
            validation=checked,
            held_out=encoder.batches(held_out, request.batch),
            outputs_fn=lambda own, batch: outputs(own, batch) / size,
            distance=distance,
            measured="adapter",
            unit=unit,
            rows=len(held_out),
            identity=hashlib.sha256(told.encode()).hexdigest(),
            description=f"{encoder.description}, on {contents}. Losses compare its {encoder.matched} with those "
            "that it has with the adapter.",
        )
        return TaskTuner(placed, data, request.settings, request.progress)


@dataclass(frozen=True)
class _Encoder:
    """An encoder, and what turns inputs into batches.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer; None for a model of images.
        classes: True if the model has a head of classes.
        pooling: What makes one vector of a text of a sentence encoder; None for another model.
    """

    model: Any
    tokenizer: Any
    classes: bool
    pooling: Pooling | None = None

    @property
    def description(self) -> str:
        """What was recognized, for the report."""
        kind = "a sentence" if self.pooling else "an image" if self.tokenizer is None else "a text"
        return f"{kind} {'classifier' if self.classes else 'encoder'} ({type(self.model).__name__})"

    @property
    def matched(self) -> str:
        """What is compared with the adapter's, for the report."""
        if self.pooling:
            return f"vectors ({self.pooling} of the last hidden states)"
        return "classes" if self.classes else "last hidden states"

    def batches(self, inputs: Sequence[Any], size: int) -> list[Batch]:
        """Return batches of texts, or of the seeds of images; texts of like lengths go together."""
        own = list(inputs)
        if self.tokenizer is None:
            return [self._draw(own[start : start + size]) for start in range(0, len(own), size)]
        own.sort(key=len)
        limit = min(TOKENS, int(getattr(self.model.config, "max_position_embeddings", TOKENS)) - 2)
        return [
            dict(self.tokenizer(own[start : start + size], padding=True, truncation=True, max_length=limit,
                                return_tensors="pt"))
            for start in range(0, len(own), size)
        ]  # fmt: skip

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return logits (rows or tokens, classes), vectors (rows, width), or hidden states (tokens, width)."""
        device = next(model.parameters()).device
        found = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        made: torch.Tensor = found.logits if self.classes else found.last_hidden_state
        if made.ndim < 3 or self.tokenizer is None:
            return made.float().flatten(0, -2)
        mask = batch["attention_mask"].to(device)
        return made.float()[mask.bool()] if self.pooling is None else _pool(made.float(), mask, self.pooling)

    def _draw(self, seeds: Sequence[int]) -> Batch:
        import torch

        config = self.model.config
        side = config.image_size if isinstance(config.image_size, int) else max(config.image_size)
        shape = (1, config.num_channels, side, side)
        images = [draw_images(shape, torch.Generator().manual_seed(seed)) for seed in seeds]
        return {"pixel_values": torch.cat(images)}


def _load(base: Path, adapter: Adapter) -> _Encoder:
    """Load the model of a folder in evaluation mode, float32, on the CPU, with the head that the adapter carries.

    Raises:
        EncodeError: ``base-model``.
    """
    require_package("--data self with an encoder model", "transformers", "peft")
    import torch
    import transformers

    kinds = architectures_of(read_model_config(base))
    is_image = any(kind.endswith("ForImageClassification") for kind in kinds) or "image_size" in read_model_config(base)
    heads = {module_path(key): tensor for key, tensor in adapter.raw.items()}
    classes = next((heads[name].shape[0] for name in _HEADS if name in heads), None)
    told = str((adapter.config or {}).get("task_type"))
    is_classifier = classes is not None or any(kind.endswith(_CLASSIFIERS) for kind in kinds)
    auto: Any = transformers.AutoModel
    if is_classifier:
        by_token = told == "TOKEN_CLS" or any(kind.endswith("ForTokenClassification") for kind in kinds)
        auto = transformers.AutoModelForSequenceClassification
        auto = transformers.AutoModelForTokenClassification if by_token else auto
        auto = transformers.AutoModelForImageClassification if is_image else auto
    options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    shown = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)  # else it reports a head that the adapter brings
    try:
        with without_bars():
            model: Any = auto.from_pretrained(base, dtype=torch.float32, **options)
            tokenizer = None
            if getattr(model, "main_input_name", "input_ids") != "pixel_values":
                tokenizer = load_tokenizer(base)
                _require_padding(tokenizer, model.config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncodeError(f"cannot be loaded: {reason}", code="base-model", where=str(base)) from error
    finally:
        transformers.logging.set_verbosity(shown)
    pooling = None if is_classifier or tokenizer is None else _read_pooling(base)
    return _Encoder(model.eval(), tokenizer, is_classifier, pooling)


def _require_padding(tokenizer: Any, config: Any) -> None:
    """Give tokenizer and model a padding token, if they have none: decoders that became classifiers often have none."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id  # a classifier finds the last token of a text by it


def _read_pooling(base: Path) -> Pooling | None:
    """Return the pooling of a sentence encoder, as sentence-transformers writes it down; None for another model."""
    try:
        modules = json.loads((base / "modules.json").read_text(encoding="utf-8"))
        path = next((each["path"] for each in modules if str(each["type"]).endswith(".Pooling")), None)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if path is None:
        return None
    try:
        config = json.loads((base / str(path) / "config.json").read_text(encoding="utf-8"))
        return "first" if config.get("pooling_mode_cls_token") else "mean"
    except (OSError, ValueError, AttributeError):  # a package may leave it out, and the mean is the default
        return "mean"


def _pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return vectors (rows, width) of hidden states (rows, tokens, width); the mask is 1 for real tokens."""
    if pooling == "first":
        return hidden[:, 0]
    weight = mask[..., None].float()
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def _read_inputs(request: TeachingRequest, encoder: _Encoder) -> tuple[list[Any], str]:
    """Return the inputs, and what they are for the report.

    Raises:
        EncodeError: ``rows``: the file; ``task-data``: it has too few texts, or the model takes images.
    """
    drawn = request.settings.steps * request.batch + HELD_OUT + VALIDATION
    if encoder.tokenizer is None:
        if request.prompts is not None:
            message = "a model of images is taught with images at random; leave --prompts out"
            raise EncodeError(message, code="task-data", where=str(request.prompts))
        first = request.seed << 20
        return [(first + number) % (1 << 63) for number in range(drawn)], f"{drawn} images at random"
    if request.prompts is None:
        texts = draw_texts(encoder.tokenizer, drawn, request.seed)
        if not texts:
            message = "the tokenizer has no words to make texts of; give texts with --prompts FILE"
            raise EncodeError(message, code="task-data", where=str(request.base))
        return texts, f"{drawn} texts of random words"
    rows = read_rows(request.prompts, _TEXTS, are_prompts=True)
    texts = list(dict.fromkeys(row.prompt for row in rows if row.prompt))
    if len(texts) < _LEAST:
        message = f"expected at least {_LEAST} different texts, found {len(texts)}"
        if any(row.messages for row in rows):
            message += "; conversations are no texts of an encoder model"
        raise EncodeError(message, code="task-data", where=str(request.prompts))
    return texts, f"{len(texts)} texts"


def _split(inputs: list[Any], seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the inputs to report on, to validate on, and to train on."""
    own = list(inputs)
    random.Random(f"split {seed}").shuffle(own)
    reported, validated = min(HELD_OUT, len(own) // 10 + 1), min(VALIDATION, len(own) // 20 + 1)
    return own[:reported], own[reported : reported + validated], own[reported + validated :]
