"""Causal language models: the adapter writes text, and its code is trained to predict what the adapter predicts."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import read
from nola_codec.integrations.calibration_data import read_rows, row_texts
from nola_codec.integrations.causal import holds_causal, load_causal
from nola_codec.integrations.packed_batches import pack_batches
from nola_codec.integrations.self_teaching.contract import TeachingRequest
from nola_codec.integrations.self_teaching.discovery import DiscoverySettings, discover
from nola_codec.integrations.self_teaching.samples import keep_samples, samples_file
from nola_codec.integrations.self_teaching.sampling import SamplingSettings, sample_answers
from nola_codec.integrations.task_text import TOKENS, load_carried_tensors
from nola_codec.integrations.text_batches import (
    Batch,
    ScoredLogits,
    TokenizedRow,
    make_batch,
    measured_batches,
    padding_token,
    similar_lengths,
)

if TYPE_CHECKING:
    import torch

    from nola_codec.model.adapter import Adapter
    from nola_codec.training import TaskTuner
    from nola_codec.training.attach import FactorPair

_PROMPTS = 1 << 16
"""The most prompts of a file that are read."""
TEXTS = 384
"""The number of texts that are drawn to train on."""
_VALIDATION, _HELD_OUT = 32, 32
"""The numbers of texts that are drawn to validate on, and to report on."""
DISCOVERY = DiscoverySettings()
"""How the domain of an adapter is looked for without prompts."""


class CausalModels:
    """The family of causal language models of Transformers; see `Family`."""

    name = "causal language models"
    batch = 8

    def recognizes(self, base: Path) -> bool:
        """Return True if the configuration names a causal language model."""
        return holds_causal(base)

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

        held_out, rows = rows[:_HELD_OUT], rows[_HELD_OUT:]
        validation, train = rows[:_VALIDATION], rows[_VALIDATION:]
        batches = pack_batches(train, request.batch, fill, request.seed)
        if batches is None:
            batches = [make_batch(own, fill) for own in similar_lengths(train, request.batch, request.seed)]
        data = TaskData(
            train=batches,
            validation=measured_batches(validation, fill),
            held_out=measured_batches(held_out, fill),
            logits_fn=ScoredLogits(),
            measured="adapter",
            unit="nats a token from the adapter's predictions",
            rows=len(held_out),
            identity=key,
            description=_describe(prompts, len(train)),
        )
        return TaskTuner(model, data, request.settings, request.progress)


def _read_prompts(request: TeachingRequest, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of each prompt, of no more than are used; the empty list if there are none."""
    if request.prompts is None:
        return []
    found = []
    rows = read_rows(request.prompts, _PROMPTS, are_prompts=True)
    count = TEXTS + _VALIDATION + _HELD_OUT
    if len(rows) > count:  # the first ones of a sorted file would not represent the others
        rows = random.Random(request.seed).sample(rows, count)
    for row in rows:
        text, _ = row_texts(tokenizer, row)
        ids = tokenizer(text, add_special_tokens=not row.messages)["input_ids"]
        found.append(list(ids)[-TOKENS // 2 :])
    return found


class _Speaker:
    """A copy of the base model, in the precision of training passes, to which the adapter can be attached."""

    def __init__(self, request: TeachingRequest, model: torch.nn.Module, tokenizer: Any, adapter: Adapter) -> None:
        import torch

        self._request, self._tokenizer, self._modules = request, tokenizer, adapter.modules
        self._model = copy.deepcopy(model)
        if request.settings.uses_bfloat16(model):
            self._model = self._model.to(torch.bfloat16)
        first = next(self._model.parameters())
        self._pairs = {
            module.name: (torch.from_numpy(module.lora_B).to(first), torch.from_numpy(module.lora_A).to(first))
            for module in adapter.modules
        }
        self._logits = ScoredLogits()

    def draw(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Return an answer of the model with the adapter to each prompt; `number` counts the draws, for the seed."""
        from nola_codec.training.attach import attach_factors

        settings = SamplingSettings(seed=self._request.seed + 1000 * number)
        with attach_factors(self._model, self._modules, lambda: self._pairs):
            return sample_answers(
                self._model, self._tokenizer, prompts, settings,
                lambda done, total: self._request.tell("sampling", done, total),
            )  # fmt: skip

    def disagreement(self, rows: Sequence[TokenizedRow]) -> list[float]:
        """Return the mean log-ratio of the scored tokens of each row, adapter against base model, in nats a token."""
        import torch

        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), 16):
            self._request.tell("comparing texts", start, len(order))
            own = order[start : start + 16]
            batch = make_batch([rows[i] for i in own], padding_token(self._tokenizer))
            counts = (batch["labels"][:, 1:] != -100).sum(1).tolist()
            ratios = torch.split(self._logs(batch, self._pairs) - self._logs(batch, {}), counts)
            for index, ratio in zip(own, ratios, strict=True):
                found[index] = float(ratio.mean())
        return found

    def _logs(self, batch: Batch, pairs: Mapping[str, FactorPair]) -> torch.Tensor:
        """Return the log-probabilities of the scored tokens of a batch, (scored,), with these factors attached."""
        import torch
        from torch.nn import functional

        from nola_codec.training.attach import attach_factors

        with torch.no_grad(), attach_factors(self._model, self._modules, lambda: pairs):
            logits, labels = self._logits(self._model, batch)
            return -functional.cross_entropy(logits.float(), labels, reduction="none")


def _draw(
    request: TeachingRequest, model: torch.nn.Module, tokenizer: Any, adapter: Adapter, prompts: list[list[int]]
) -> list[TokenizedRow]:
    """Sample all texts from the model with the adapter."""
    speaker = _Speaker(request, model, tokenizer, adapter)
    count = TEXTS + _VALIDATION + _HELD_OUT
    if prompts:
        return speaker.draw([prompts[i % len(prompts)] for i in range(count)], 0)
    begin = [_first_token(tokenizer)]
    return discover(speaker.draw, speaker.disagreement, begin, count, DISCOVERY, request.seed)


def _first_token(tokenizer: Any) -> int:
    """Return the token that a text begins with."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def _fingerprint(request: TeachingRequest, adapter: Adapter, prompts: list[list[int]]) -> str:
    """Return a hash of all that the samples depend on."""
    sha = hashlib.sha256(repr((str(request.base.resolve()), request.seed, prompts, TEXTS, DISCOVERY)).encode())
    for module in adapter.modules:
        sha.update(f"{module.name} {module.scaling}".encode())
        for side in module.sides:
            sha.update(side.tobytes())
    return sha.hexdigest()


def _describe(prompts: list[list[int]], texts: int) -> str:
    """Return the sentences for the report."""
    used = min(len(prompts), texts)
    source = (
        f"answers to {used} prompt{'' if used == 1 else 's'}"
        if prompts
        else "texts from nothing, those on which it differs most from the base model"
    )
    return f"a causal language model: the adapter wrote {texts} {source}, and its code was trained to predict the same."
