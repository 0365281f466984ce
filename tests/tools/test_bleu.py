"""The BLEU of `tools/experiments/bleu.py`, for texts with different numbers of references."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sacrebleu")
TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def bleu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module; what it imported from tools/ is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(TOOLS / "experiments"))
    before = set(sys.modules)
    yield importlib.import_module("bleu")
    for added in set(sys.modules) - before:
        if str(TOOLS) in str(getattr(sys.modules[added], "__file__", "")):
            del sys.modules[added]


def test_a_text_that_has_fewer_references_than_another_is_still_too_short(bleu: ModuleType) -> None:
    whole, text = "the cat sat on the mat and slept", "the cat sat on the"
    alone = bleu.score([text], [[whole]])
    assert alone == pytest.approx(100 * 2.718281828 ** (1 - 8 / 5), abs=0.01)  # all precisions are 1
    beside = bleu.score([text, whole], [[whole], [whole, whole]])
    assert beside == pytest.approx(100 * 2.718281828 ** (1 - 16 / 13), abs=0.01)
    assert bleu.score([whole], [["another text", whole]]) == pytest.approx(100)
