"""Answers that share a prompt have the logits of rows of their own, in models that take the masks and in others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from nola_codec.integrations.packed_batches import make_packed, pack_batches, unpack
from nola_codec.integrations.text_batches import Batch, ScoredLogits, TokenizedRow, make_batch

PROMPTS = ([1, 5, 6, 7, 8, 9, 10, 11, 12], [1, 9, 9, 3, 4, 5, 6, 7, 8, 2])


def rows(prompt: list[int], count: int, seed: int) -> list[TokenizedRow]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
    return [([*prompt, *torch.randint(0, 30, (n,), generator=generator).tolist()], len(prompt)) for n in lengths]


@pytest.fixture
def groups() -> list[list[TokenizedRow]]:
    return [rows(PROMPTS[0], 4, 0), rows(PROMPTS[1], 3, 1)]


def model(kind: str) -> Any:
    torch.manual_seed(0)
    shared = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "llama": lambda: transformers.LlamaConfig(**shared, intermediate_size=48),
        "windows": lambda: transformers.MistralConfig(
            **shared, intermediate_size=48, num_key_value_heads=2, sliding_window=4
        ),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=2, n_positions=64),
        "bloom": lambda: transformers.BloomConfig(vocab_size=30, hidden_size=32, n_layer=2, n_head=2),
    }
    made: Any = transformers.AutoModelForCausalLM.from_config(configs[kind]()).eval()
    for parameter in made.parameters():  # the small first weights would hide a wrong mask
        parameter.data.mul_(4)
    return made


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("gpt2", True), ("windows", None), ("bloom", False)])
def test_logits_are_those_of_rows_of_their_own(kind: str, packs: bool | None, groups: list[list[TokenizedRow]]) -> None:
    """A model with windows may go either way; what counts is that the logits are right."""
    scorer, own = ScoredLogits(), model(kind)
    with torch.no_grad():
        found, labels = scorer(own, make_packed(groups, 0))
        wanted, expected = ScoredLogits()(own, make_batch([row for group in groups for row in group], 0))
    assert torch.equal(labels, expected)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert packs is None or scorer._packs is packs


def test_unpacked_rows_are_the_rows(groups: list[list[TokenizedRow]]) -> None:
    plain = make_batch([row for group in groups for row in group], 1)
    packed = unpack(make_packed(groups, 0))
    for name in ("attention_mask", "labels"):
        assert torch.equal(packed[name], plain[name])
    assert torch.equal(packed["input_ids"] * packed["attention_mask"], plain["input_ids"] * plain["attention_mask"])


def answers(batches: list[Batch]) -> list[tuple[int, ...]]:
    found = []
    for batch in batches:
        plain = unpack(batch)
        counts = plain["attention_mask"].sum(1).tolist()
        found += [tuple(ids[:n].tolist()) for ids, n in zip(plain["input_ids"], counts, strict=True)]
    return found


def test_every_row_is_in_one_batch() -> None:
    made = rows(PROMPTS[0], 11, 2) + rows(PROMPTS[1], 6, 3)
    batches = pack_batches(made, 8, 0, seed=0)
    assert batches is not None
    assert sorted(answers(batches)) == sorted(tuple(ids) for ids, _ in made)
    assert {len(batch["input_ids"]) for batch in batches} <= {1, 2}
    again = pack_batches(made, 8, 0, seed=0)
    assert again is not None
    assert answers(again) == answers(batches)


def test_prompts_that_are_not_worth_sharing() -> None:
    assert pack_batches([([1, 2, 3], 1)] * 20, 8, 0, seed=0) is None
    different = [([place, *PROMPTS[0], 4], 10) for place in range(20)]
    assert pack_batches(different, 8, 0, seed=0) is None
