"""Parts of `--data self`: the search for a domain, sampling, kept samples. tests/cli has the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from nola_codec.errors import EncodeError
from nola_codec.integrations.causal import holds_causal, load_causal
from nola_codec.integrations.self_teaching import find_family
from nola_codec.integrations.self_teaching.language import draw_from_nothing
from nola_codec.integrations.self_teaching.samples import keep_samples, samples_file
from nola_codec.integrations.self_teaching.sampling import SamplingSettings, sample_answers

Row = tuple[Sequence[int], int]


def test_texts_from_nothing_come_once_and_are_not_short() -> None:
    """Each draw gives the same text three times, and every fourth text is short."""
    draws: list[list[list[int]]] = []

    def draw(prompts: Sequence[Sequence[int]], number: int) -> list[Row]:
        draws.append([list(prompt) for prompt in prompts])
        assert number == len(draws) - 1
        return [
            ([*prompt, *[100 * number + place // 3] * (3 if place % 4 == 0 else 9)], len(prompt))
            for place, prompt in enumerate(prompts)
        ]

    tokenizer = SimpleNamespace(chat_template=None, bos_token_id=7)
    found = draw_from_nothing(draw, tokenizer, 40)
    assert [len(prompts) for prompts in draws] == [40, 26, 17]
    assert all(prompt == [7] for prompts in draws for prompt in prompts)
    assert len(found) == 40
    new = [tuple(ids) for ids, _ in found if len(ids) == 10]
    assert len(set(new[:29])) == 29  # the texts that are new and long enough come first, then what fills up
    assert all(start == 1 for _, start in found)


def test_an_adapter_that_writes_one_text_is_taken_as_it_is() -> None:
    tokenizer = SimpleNamespace(chat_template=None, bos_token_id=7)
    found = draw_from_nothing(lambda prompts, number: [([7, 3], 1) for _ in prompts], tokenizer, 12)
    assert found == [([7, 3], 1)] * 12


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
