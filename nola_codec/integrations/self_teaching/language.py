"""Causal language models: the adapter writes text, and its code is trained to predict what the adapter predicts."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import read
from nola_codec.errors import EncodeError
from nola_codec.integrations.causal import holds_causal, load_causal, use_plain_attention
from nola_codec.integrations.packed_batches import pack_batches
from nola_codec.integrations.self_teaching.brought_prompts import find_prompts
from nola_codec.integrations.self_teaching.chat_turns import turn_marks
from nola_codec.integrations.self_teaching.contract import TeachingRequest
from nola_codec.integrations.self_teaching.contrast import Contrast
from nola_codec.integrations.self_teaching.domain import LEAST_TOKENS, draw_from_nothing
from nola_codec.integrations.self_teaching.samples import keep_samples, samples_file
from nola_codec.integrations.self_teaching.sampling import SamplingSettings, end_tokens, sample_answers
from nola_codec.integrations.task_text import TOKENS, load_carried_tensors
from nola_codec.integrations.text_batches import (
    ScoredLogits,
    TokenizedRow,
    make_batch,
    measured_batches,
    padding_token,
    similar_lengths,
)
from nola_codec.integrations.text_rows import Row, read_rows, row_texts

if TYPE_CHECKING:
    import torch

    from nola_codec.model.adapter import Adapter
    from nola_codec.training import TaskTuner

_PROMPTS = 1 << 16
"""The most prompts of a file that are read."""
TEXTS = 384
"""The greatest number of texts that are drawn to train on."""
_VALIDATION, _HELD_OUT = 32, 32
"""The numbers of texts that are drawn to validate on, and to report on."""
_ANSWERING = 91
"""The number of the draw of answers to prompts that the adapter brings along."""
_BEGINNING = 24
"""The number of tokens of a beginning that the base model writes."""
STRENGTHS = (2.0, 4.0, 8.0)
"""How strongly texts from nothing are drawn away from the base model; the texts take these strengths in turns."""


@dataclass(frozen=True)
class _Prompts:
    """The token ids of each prompt, and where the prompts are from: empty if the user gave them."""

    ids: list[list[int]]
    origin: str = ""


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
        prompts = _read_prompts(request, tokenizer, adapter)
        key = _fingerprint(request, adapter, prompts)
        rows: list[TokenizedRow] = keep_samples(
            samples_file(request.settings.checkpoint), key, lambda: _draw(request, model, tokenizer, adapter, prompts)
        )
        use_plain_attention(model)
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
            description=_describe(prompts, len(train), has_turns=turn_marks(tokenizer) is not None),
            are_of_task=bool(prompts.ids) and not prompts.origin,
        )
        return TaskTuner(model, data, request.settings, request.progress)


def _read_prompts(request: TeachingRequest, tokenizer: Any, adapter: Adapter) -> _Prompts:
    """Return the prompts of the user, no more than are used; else those that the adapter brings along."""
    if request.prompts is not None:
        rows = read_rows(request.prompts, _PROMPTS, are_prompts=True)
        count = _count_texts(request)
        if len(rows) > count:  # the first ones of a sorted file would not represent the others
            rows = random.Random(request.seed).sample(rows, count)
        return _Prompts([_tokenize(tokenizer, row) for row in rows])
    has_template = getattr(tokenizer, "chat_template", None) is not None
    rows, origin = find_prompts(request.source, adapter.metadata, with_messages=has_template)
    try:
        return _Prompts([_tokenize(tokenizer, row) for row in rows], origin)
    except EncodeError:  # nobody gave these prompts, so that a template that refuses them is no reason to stop
        return _Prompts([])


def _count_texts(request: TeachingRequest) -> int:
    """Return the number of texts that are drawn: no more than the training and the weighing of components use."""
    batches = max(request.settings.steps, request.settings.worth_batches)
    return min(TEXTS, batches * request.batch) + _VALIDATION + _HELD_OUT


def _tokenize(tokenizer: Any, row: Row) -> list[int]:
    text, _ = row_texts(tokenizer, row)
    return list(tokenizer(text, add_special_tokens=not row.messages)["input_ids"])[-TOKENS // 2 :]


class _Speaker:
    """A copy of the base model, in the precision of training passes, to which the adapter can be attached.

    Texts from nothing are drawn away from the copy without the adapter, and never have special tokens but those that
    end them.
    """

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
        marks = turn_marks(tokenizer)
        ends = end_tokens(model, tokenizer) | ({marks[1][0]} if marks else set())
        self._special = sorted(set(getattr(tokenizer, "all_special_ids", ())) - ends)
        self._is_silent = False

    def answer(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Return an answer of the model with the adapter to each prompt; `number` counts the draws, for the seed."""
        return self._sample(prompts, SamplingSettings(seed=self._seed(number)))

    def write(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Return a text of the adapter's domain that begins with each prompt; see `Writer`."""
        away = Contrast(self._forward_without, STRENGTHS)
        settings = SamplingSettings(
            seed=self._seed(number), least_tokens=LEAST_TOKENS, banned=self._special, contrast=away
        )
        return self._sample(prompts, settings)

    def begin(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Return a beginning that the base model writes after each prompt; see `Writer`."""
        settings = SamplingSettings(
            seed=self._seed(number), new_tokens=_BEGINNING, least_tokens=_BEGINNING, banned=self._special
        )
        with self._silence():
            return self._sample(prompts, settings)

    def _forward_without(self, **inputs: Any) -> Any:
        """Pass inputs through the model without the adapter, while it is attached."""
        with self._silence():
            return self._model(**inputs)

    @contextmanager
    def _silence(self) -> Iterator[None]:
        """Let the attached adapter change nothing in this context."""
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False

    def _seed(self, number: int) -> int:
        return self._request.seed + 1000 * number

    def _sample(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> list[TokenizedRow]:
        from nola_codec.training.attach import attach_factors

        with attach_factors(self._model, self._modules, lambda: {} if self._is_silent else self._pairs):
            return sample_answers(
                self._model, self._tokenizer, prompts, settings,
                lambda done, total: self._request.tell("sampling", done, total),
            )  # fmt: skip


def _draw(
    request: TeachingRequest, model: torch.nn.Module, tokenizer: Any, adapter: Adapter, prompts: _Prompts
) -> list[TokenizedRow]:
    """Sample all texts from the model with the adapter."""
    speaker = _Speaker(request, model, tokenizer, adapter)
    count = _count_texts(request)
    asked = prompts.ids
    if asked and not prompts.origin:
        return speaker.answer([asked[i % len(asked)] for i in range(count)], 0)
    # Prompts that came along may be few, or not those of the task, so half of the texts is drawn without them.
    half = count // 2 if asked else 0
    rows = speaker.answer([asked[i % len(asked)] for i in range(half)], _ANSWERING) if half else []
    return rows + draw_from_nothing(speaker, tokenizer, count - half)


def _fingerprint(request: TeachingRequest, adapter: Adapter, prompts: _Prompts) -> str:
    """Return a hash of all that the samples depend on."""
    chosen = (_count_texts(request), STRENGTHS, LEAST_TOKENS, _BEGINNING)
    sha = hashlib.sha256(repr((str(request.base.resolve()), request.seed, prompts, chosen)).encode())
    for module in adapter.modules:
        sha.update(f"{module.name} {module.scaling}".encode())
        for side in module.sides:
            sha.update(side.tobytes())
    return sha.hexdigest()


def _describe(prompts: _Prompts, texts: int, *, has_turns: bool) -> str:
    """Return the sentences for the report."""
    count = min(len(prompts.ids), texts)
    named = f"prompt{'' if count == 1 else 's'}"
    if prompts.ids and not prompts.origin:
        source = f"answers to {count} {named}"
    else:
        asked = " or from questions of its own" if has_turns else ""
        source = f"texts from nothing{asked}, drawn away from those of the base model"
        if prompts.ids:
            source = f"texts, half of them answers to the {count} {named} of {prompts.origin}, the others {source}"
    return f"a causal language model: the adapter wrote {texts} {source}. Losses compare predictions with its own."
