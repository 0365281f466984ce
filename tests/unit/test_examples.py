"""The examples in docstrings of the layers below the encoder do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

LAYERS = ("model", "container", "decoder", "basis", "entropy", "quant", "prng", "arrays", "parallel", "spool", "errors")


def modules() -> Iterator[str]:
    """Names of the modules of these layers."""
    for layer in LAYERS:
        module = importlib.import_module(f"nola_codec.{layer}")
        yield module.__name__
        if hasattr(module, "__path__"):
            yield from (found.name for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."))


@pytest.mark.parametrize("name", list(modules()))
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = {name for name in modules() if any(t.examples for t in finder.find(importlib.import_module(name)))}
    assert {"nola_codec.basis", "nola_codec.entropy", "nola_codec.parallel", "nola_codec.model.records"} <= found
