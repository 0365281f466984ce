"""Patterns of ranks and alphas fit what PEFT's own function fits, and no pattern takes long."""

from __future__ import annotations

import random
import re
import time

import pytest

from nola_codec.adapters.dialects import peft_patterns
from nola_codec.adapters.dialects.peft_patterns import PatternMap
from nola_codec.errors import AdapterError

PATHS = [
    "q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
    "model.layers.10.self_attn.v_proj", "model.layers.11.mlp.down_proj", "model.layers.0.mlp.up_proj", "model.layers.0",
    "transformer.h.3.attn.c_attn", "transformer.h.13.mlp.c_fc", "unet.down_blocks.0.attentions.1.proj_in", "lm_head",
    "model.layersX0Xself_attnXq_proj", "my_q_proj", "model.q_proj.base_layer", "encoder.layer.2.attention.self.query",
    "model.layers.0.self_attn.q-proj", "a.b.c", "", ".", "q_proj\n", "model.layers.0.experts.3.w1",
]  # fmt: skip
PATTERNS = [
    "q_proj", "self_attn.q_proj", r"self_attn\.q_proj", "model.layers.0.self_attn.q_proj",
    r"^model\.layers\.0\.self_attn\.q_proj", "^q_proj", ".*q_proj", r".*\.q_proj", r".*\.layers\.0\..*",
    r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "(q|k|v|o)_proj", "(?:q_proj|v_proj)", r"layers\.[0-9]+\.mlp\..*",
    r"layers\.(0|1)\..*", r".*layers\.1[0-9]\..*proj", r"h\.\d{1,2}\.attn\.c_attn", r"h\.\d{2}\..*", ".*", ".+", "",
    r"[a-z]\.[^.]+\.c", "lm_head$", "^lm_head$", "q.proj", "q[_-]proj", r"(?P<part>up|down)_proj", "a?b?c?", "c+",
    r"(model\.)?layers\.0", r"\w+_proj", r"\bself", "(a|b)*.c", "x{2,3}|c", r"query|key|value", "c|(d", "w1{1}",
    "[]a]+",    r"model\.layers\.(?:[0-9]|1[0-5])\.mlp\.(?:up|down)_proj", r"[\w.]*experts\.\d\.w1", "c{", "q_proj|",
]  # fmt: skip


def fits(pattern: str, path: str) -> bool:
    return PatternMap({pattern: 1}).find(path) is not None


def compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_fit_what_peft_fits(pattern: str) -> None:
    other = pytest.importorskip("peft.utils.other")
    if not compiles(pattern):
        with pytest.raises(AdapterError, match="not a regular expression"):
            PatternMap({pattern: 1})
        return
    for path in PATHS:
        key = other.get_pattern_key([pattern], path)
        assert fits(pattern, path) == (key == pattern and re.match(rf"(.*\.)?({pattern})$", path) is not None), path


def test_the_first_pattern_that_fits_counts() -> None:
    other = pytest.importorskip("peft.utils.other")
    rng = random.Random(0)
    good = [pattern for pattern in PATTERNS if compiles(pattern)]
    for _ in range(200):
        chosen = rng.sample(good, 5)
        ours = PatternMap({pattern: pattern for pattern in chosen})
        for path in PATHS:
            found = ours.find(path)
            assert (path if found is None else found) == other.get_pattern_key(chosen, path)


def test_random_patterns_fit_as_in_re() -> None:
    rng = random.Random(1)

    def make(depth: int) -> str:
        atoms = ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", "^", "$", r"\b"]
        parts = []
        for _ in range(rng.randrange(1, 4)):
            atom = rng.choice(atoms) if depth == 0 or rng.random() < 0.6 else f"({make(depth - 1)})"
            parts.append(atom + (rng.choice(["", "*", "+", "?", "{1,2}", "{2}", "*?"]) if atom not in "^$" else ""))
        return "|".join(["".join(parts)] + ([make(depth - 1)] if depth and rng.random() < 0.3 else []))

    checked = 0
    for _ in range(400):
        pattern = make(2)
        if not compiles(pattern):
            continue
        ours = PatternMap({pattern: 1})
        for _ in range(10):
            path = "".join(rng.choice("ab.") for _ in range(rng.randrange(6)))
            assert (ours.find(path) is not None) == (re.match(rf"(.*\.)?({pattern})$", path) is not None), (
                pattern,
                path,
            )
            checked += 1
    assert checked > 2000


@pytest.mark.parametrize("pattern", [
    "(a+)+x", "(?:a|a|a|a)" * 40 + "x", "a?" * 60 + "a" * 60, ".*" * 30 + "x", "(a*)*x", "(a|aa)+x", "(.*)*" * 20 + "x",
    "((a{0,9}){0,9}){0,9}x",
])  # fmt: skip
def test_no_pattern_takes_long(pattern: str) -> None:
    """Each takes days with `re`. Here it is followed in little time, or refused."""
    started = time.process_time()
    path = "model.layers.0." + "a" * 60
    try:
        assert fits(pattern, path) == (pattern == "a?" * 60 + "a" * 60)
    except AdapterError as error:
        assert error.code == "unsafe-pattern"  # noqa: PT017
    assert time.process_time() - started < 30  # with `re` these take longer than anybody waits


@pytest.mark.parametrize("pattern", ["(?=a)a", "(?!a)b", "(?<=a)b", r"(a)\1", "a*+", "(?>a)", "((a{900}){900}){900}"])
def test_what_needs_going_back_is_refused(pattern: str) -> None:
    with pytest.raises(AdapterError) as caught:
        PatternMap({pattern: 1})
    assert caught.value.code in ("unsafe-pattern", "bad-config")


def test_all_patterns_and_paths_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many patterns for each of many modules are refused once they have taken their time, here a shorter one."""
    monkeypatch.setattr(peft_patterns, "_MOST_STEPS", 200_000)
    many = PatternMap({f"a.b.{i}.c": i for i in range(2000)})
    assert many.find("x.a.b.1999.c") == 1999
    with pytest.raises(AdapterError) as caught:
        _ = [many.find(f"model.layers.{number}.self_attn.q_proj") for number in range(100)]
    assert caught.value.code == "unsafe-pattern"


def test_many_names_are_looked_up() -> None:
    names = PatternMap({rf"^model\.layers\.{i}\.q_proj": i for i in range(50_000)})
    assert [names.find(f"model.layers.{i}.q_proj") for i in range(0, 50_000, 50)] == [*range(0, 50_000, 50)]
    assert names.find("x.model.layers.3.q_proj") is None
