"""Causal language models: the adapter writes text, and its code is trained to predict what the adapter predicts."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import read
from nola_codec.integrations.calibration_data import read_rows, row_texts
from nola_codec.integrations.causal import are_causal, load_causal
from nola_codec.integrations.self_teaching.contract import TeachingRequest
from nola_codec.integrations.self_teaching.samples import keep_samples, samples_file
from nola_codec.integrations.self_teaching.sampling import SamplingSettings, sample_answers
from nola_codec.integrations.task_text import TOKENS, load_carried_tensors
from nola_codec.integrations.text_batches import Batch, ScoredLogits, TokenizedRow, make_batch, padding_token

if TYPE_CHECKING:
    import torch

    from nola_codec.model.adapter import Adapter
    from nola_codec.training import TaskTuner

_PROMPTS = 1 << 16
"""The most prompts of a file that are read."""
TEXTS = 384
"""The number of texts that are drawn to train on."""
_VALIDATION, _HELD_OUT = 32, 48
"""The numbers of texts that are drawn to validate on, and to report on."""


class CausalModels:
    """The family of causal language models of Transformers; see `Family`."""

    name = "causal language models"
    batch = 8

    def recognizes(self, base: Path) -> bool:
        """Return True if the configuration names a causal language model."""
        try:
            config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and are_causal(config.get("architectures") or ())

    def make_tuner(self, request: TeachingRequest) -> TaskTuner:
        """Sample text from the model with the adapter, and return the tuner; see `Family`."""
        from nola_codec.training import TaskData, TaskTuner

        request.tell("loading the base model")
        model, tokenizer = load_causal(request.base)
        load_carried_tensors(model, request.source, request.scale)
        adapter = read(request.source, scale=request.scale)
        prompts = _read_prompts(request, tokenizer)
        key = _fingerprint(request, adapter, prompts)
        rows: list[TokenizedRow] = keep_samples(
            samples_file(request.settings.checkpoint), key, lambda: _draw(request, model, tokenizer, adapter, prompts)
        )
        random.Random(request.seed).shuffle(rows)
        fill = padding_token(tokenizer)

        def batches(own: Sequence[TokenizedRow], size: int) -> list[Batch]:
            return [make_batch(own[start : start + size], fill) for start in range(0, len(own), size)]

        held_out, rows = rows[:_HELD_OUT], rows[_HELD_OUT:]
        validation, train = rows[:_VALIDATION], rows[_VALIDATION:]
        data = TaskData(
            train=batches(train, request.batch),
            validation=batches(sorted(validation, key=lambda row: len(row[0])), 16),
            held_out=batches(sorted(held_out, key=lambda row: len(row[0])), 16),
            logits_fn=ScoredLogits(),
            measured="adapter",
            unit="nats a token from the adapter's predictions",
            rows=len(held_out),
            identity=key,
            description=_describe(prompts, len(train)),
        )
        return TaskTuner(model, data, request.settings, request.progress)


def _read_prompts(request: TeachingRequest, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of each prompt; the empty list if there are none."""
    if request.prompts is None:
        return []
    found = []
    for row in read_rows(request.prompts, _PROMPTS, are_prompts=True):
        text, _ = row_texts(tokenizer, row)
        ids = tokenizer(text, add_special_tokens=not row.messages)["input_ids"]
        found.append(list(ids)[-TOKENS // 2 :])
    return found


def _draw(
    request: TeachingRequest, model: torch.nn.Module, tokenizer: Any, adapter: Adapter, prompts: list[list[int]]
) -> list[TokenizedRow]:
    """Sample all texts from the model with the adapter."""
    import torch

    from nola_codec.training.attach import attach_factors

    speaker = copy.deepcopy(model)
    if request.settings.uses_bfloat16(model):
        speaker = speaker.to(torch.bfloat16)
    first = next(speaker.parameters())
    pairs = {
        module.name: (torch.from_numpy(module.lora_B).to(first), torch.from_numpy(module.lora_A).to(first))
        for module in adapter.modules
    }
    count = TEXTS + _VALIDATION + _HELD_OUT
    begins = prompts or [[_first_token(tokenizer)]]
    asked = [begins[i % len(begins)] for i in range(count)]
    settings = SamplingSettings(seed=request.seed)
    with attach_factors(speaker, adapter.modules, lambda: pairs):
        return sample_answers(
            speaker, tokenizer, asked, settings, lambda done, total: request.tell("sampling", done, total)
        )


def _first_token(tokenizer: Any) -> int:
    """Return the token that a text begins with."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def _fingerprint(request: TeachingRequest, adapter: Adapter, prompts: list[list[int]]) -> str:
    """Return a hash of all that the samples depend on."""
    sha = hashlib.sha256(repr((str(request.base.resolve()), request.seed, prompts, TEXTS)).encode())
    for module in adapter.modules:
        sha.update(f"{module.name} {module.scaling}".encode())
        for side in module.sides:
            sha.update(side.tobytes())
    return sha.hexdigest()


def _describe(prompts: list[list[int]], texts: int) -> str:
    """Return the sentences for the report."""
    source = f"answers to {len(prompts)} prompts" if prompts else "texts from nothing"
    return f"a causal language model: the adapter wrote {texts} {source}, and its code was trained to predict the same."
