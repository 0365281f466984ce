"""Parts of `--data self`: the search for a domain, sampling, kept samples. tests/cli has the command."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nola_codec.errors import EncodeError
from nola_codec.integrations.causal import holds_causal, load_causal
from nola_codec.integrations.self_teaching import find_family
from nola_codec.integrations.self_teaching.contrast import Contrast, ContrastProcessor
from nola_codec.integrations.self_teaching.domain import draw_from_nothing
from nola_codec.integrations.self_teaching.samples import keep_samples, samples_file
from nola_codec.integrations.self_teaching.sampling import SamplingSettings, sample_answers

Row = tuple[Sequence[int], int]


class Tokenizer:
    """A tokenizer without a chat template; 7 begins a text, 99 ends it, and 55 is a new line."""

    chat_template = None
    bos_token_id, eos_token_id = 7, 99

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        assert text == "\n"
        return {"input_ids": [55]}


class Writer:
    """Writes the same text three times in a draw, and every fourth text is short."""

    def __init__(self) -> None:
        self.draws: dict[int, list[list[int]]] = {}

    def write(self, prompts: Sequence[Sequence[int]], number: int) -> list[Row]:
        self.draws[number] = [list(prompt) for prompt in prompts]
        return [
            ([*prompt, *[100 * number + place // 3] * (3 if place % 4 == 0 else 9), 99], len(prompt))
            for place, prompt in enumerate(prompts)
        ]

    def begin(self, prompts: Sequence[Sequence[int]], number: int) -> list[Row]:
        return [([*prompt, 33, place], len(prompt)) for place, prompt in enumerate(prompts)]


def test_texts_from_nothing_are_two_or_follow_a_beginning() -> None:
    writer = Writer()
    found = draw_from_nothing(writer, Tokenizer(), 80)
    *rounds, following, first = (writer.draws[number] for number in (0, 1, 2, 95, 93))
    assert len(found) == 80
    assert [len(prompts) for prompts in rounds] == [40, 26, 17]
    assert all(prompt == [7] for prompts in rounds for prompt in prompts)
    assert all(begin[-1] == 55 and begin[-2] != 99 for begin in first)  # a new line takes the place of the end
    enough = [tuple(ids) for ids in first if len(ids) == 11]
    assert len(set(enough[:29])) == 29  # the texts that are new and long enough come first, then what fills up
    assert [list(ids[: len(begin)]) for (ids, _), begin in zip(found, first, strict=False)] == first
    assert all(start == 1 for _, start in found[:40])  # both texts of two are scored
    assert following == [[7, 33, place] for place in range(40)]
    assert all(list(ids[:start]) == begin for (ids, start), begin in zip(found[40:], following, strict=True))


def test_an_adapter_that_writes_one_text_is_taken_as_it_is() -> None:
    class Poor(Writer):
        def write(self, prompts: Sequence[Sequence[int]], number: int) -> list[Row]:
            return [([*prompt, 3], len(prompt)) for prompt in prompts]

    found = draw_from_nothing(Poor(), Tokenizer(), 4)
    assert found == [([7, 3, 55, 3], 1)] * 2 + [([7, 33, place, 3], 3) for place in range(2)]


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_contrast_strengthens_what_a_model_says_more_often(has_cache: bool, base: Path) -> None:
    """The logits are those of the equation, rows are padded on the left, and unlikely tokens never come."""
    import torch

    model, _ = load_causal(base)
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=draw)
    prompts, fill = [[2, 3, 4], [5]], 0
    ids = torch.tensor([[2, 3, 4], [fill, fill, 5]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])

    def forward(**inputs: Any) -> Any:
        made = other(**inputs)
        assert made.logits.shape[1] == 1
        return made if has_cache else SimpleNamespace(logits=made.logits)

    processor = ContrastProcessor(Contrast(forward, (1.0,)), (1.0, 3.0), mask, ("position_ids", "logits_to_keep"))
    with torch.no_grad():
        for _ in range(3):
            rows = [[*prompt, *line[3:].tolist()] for prompt, line in zip(prompts, ids, strict=True)]
            own, away = ([m(torch.tensor([row])).logits[0, -1] for row in rows] for m in (model, other))
            found = processor(ids, torch.stack(own))
            for line, strength, a, b in zip(found, (1.0, 3.0), own, away, strict=True):
                a, b = a.log_softmax(-1), b.log_softmax(-1)
                likely = a >= a.max() + math.log(0.05)
                assert torch.equal(line > -torch.inf, likely)
                assert likely.sum() > 1
                expected = a + (strength - 1) * (a - b)
                torch.testing.assert_close(line[likely], expected[likely], rtol=1e-4, atol=1e-4)
            ids = torch.cat([ids, found.argmax(-1, keepdim=True)], 1)


def test_sampling_ends_rows_and_leaves_the_generator_alone(base: Path) -> None:
    import torch

    model, tokenizer = load_causal(base)
    prompts = [[2, 3], [5], [2, 9, 10, 11], [5]] * 8
    told: list[tuple[int, int]] = []
    torch.manual_seed(5)
    state = torch.get_rng_state()
    settings = SamplingSettings(new_tokens=12, batch=10, seed=3)
    rows = sample_answers(model, tokenizer, prompts, settings, lambda *now: told.append(now))
    assert torch.equal(torch.get_rng_state(), state)
    assert told[0] == (0, 32)
    assert told[-1] == (32, 32)
    assert told == sorted(told)
    assert len({done for done, _ in told}) > 16  # it moves with the tokens, not with the batches alone
    end = tokenizer.eos_token_id
    for (ids, prompt), asked in zip(rows, prompts, strict=True):
        assert list(ids[:prompt]) == asked
        answer = list(ids[prompt:])
        assert 1 <= len(answer) <= 12
        assert end not in answer[:-1]
        assert len(answer) == 12 or answer[-1] == end
    assert rows == sample_answers(model, tokenizer, prompts, settings, lambda *_: None)
    common = max(range(model.config.vocab_size), key=[t for ids, start in rows for t in ids[start:-1]].count)
    settings = SamplingSettings(new_tokens=12, seed=3, banned=[common], least_tokens=12)
    for ids, start in sample_answers(model, tokenizer, prompts, settings, lambda *_: None):
        assert common not in ids[start:]
        assert len(ids) - start == 12
    assert rows != sample_answers(model, tokenizer, prompts, SamplingSettings(new_tokens=12, seed=4), lambda *_: None)


def test_prompts_and_answers_stay_in_the_context(tmp_path: Path) -> None:
    """GPT-2 has a table of positions, and fails beyond its end. Here it has 16."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokenizer = SimpleNamespace(eos_token_id=None, pad_token_id=0)
    prompts = [[2, 3], list(range(1, 13)) * 3]
    model.generation_config.eos_token_id = None
    rows = sample_answers(model, tokenizer, prompts, SamplingSettings(), lambda *_: None)
    assert [(list(ids[:prompt]), len(ids)) for ids, prompt in rows] == [([2, 3], 10), (list(range(5, 13)), 16)]


def test_a_folder_without_a_tokenizer_and_a_file_are_named(base: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, tmp_path)
    with pytest.raises(EncodeError, match=r"its tokenizer cannot be loaded: the folder needs tokenizer\.json"):
        load_causal(tmp_path)
    with pytest.raises(EncodeError, match=r"found a file\. A model in GGUF"):
        find_family(tmp_path / "model.safetensors")


def test_samples_are_drawn_once(tmp_path: Path) -> None:
    path = samples_file(tmp_path / "a.training")
    calls: list[str] = []

    def draw() -> list[int]:
        calls.append("")
        return [len(calls)]

    assert samples_file(None) is None
    assert keep_samples(None, "k", draw) == [1]
    assert [keep_samples(path, key, draw) for key in ("k", "k", "other", "other", "k")] == [[2], [2], [3], [3], [4]]
    assert path is not None
    path.write_text("[]")
    assert keep_samples(path, "k", draw) == [5]
    path.write_bytes(b"\xff")
    assert keep_samples(path, "k", draw) == [6]


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"architectures": ["ResNet"]}',
        "{}",
        '{"architectures": 5}',
        '{"architectures": true}',
    ],
    ids=lambda config: config[:24],
)
def test_a_folder_of_no_known_family(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(EncodeError, match="holds none of them") as error:
        find_family(tmp_path)
    assert error.value.code == "base-model"
    with pytest.raises(EncodeError, match="no such directory"):
        find_family(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, True),
        ({"model_type": "llama"}, True),  # a configuration without architectures, as some tools write it
        ({"model_type": "bert"}, False),
        ({"model_type": ["llama"]}, False),
        ({"architectures": 5, "model_type": "llama"}, True),
        ({"architectures": ["BertModel"], "model_type": "llama"}, False),
    ],
)
def test_causal_models_are_recognized(config: dict[str, object], expected: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert holds_causal(tmp_path) is expected
