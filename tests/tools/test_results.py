"""Results of experiments are kept, and the tables of the pages are those of the results."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "experiments"


@contextmanager
def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A program of tools/experiments as a module; what it imported from tools/ is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module(name)
    for added in set(sys.modules) - before:
        if str(FOLDER.parent) in str(getattr(sys.modules[added], "__file__", "")):
            del sys.modules[added]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, with the cache and the repository's results in a temporary folder."""
    with imported("results", monkeypatch) as module:
        monkeypatch.setenv("NOLA_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
        yield module


@pytest.fixture
def write_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with imported("write_tables", monkeypatch) as module:
        yield module


def test_a_result_is_measured_once(results: ModuleType) -> None:
    calls = []

    def program() -> dict[str, float]:
        calls.append(1)
        return {"loss": float(len(calls))}

    first = results.measure("trial", {"seed": 0, "sizes": (1, 2)}, program)
    assert results.measure("trial", {"sizes": [1, 2], "seed": 0}, program) == first
    assert results.measure("trial", {"seed": 1, "sizes": (1, 2)}, program)["figures"] == {"loss": 2.0}
    assert len(calls) == 2
    assert first.keys() == {"settings", "figures", "date", "commit", "machine"}
    again = results.measure("trial", {"seed": 0, "sizes": (1, 2)}, program, anew=True)
    assert again["figures"] == {"loss": 3.0}
    assert [r["figures"]["loss"] for r in results.read("trial")] == [3.0, 2.0]
    assert results.mean_and_spread(results.read("trial"), "loss")[0] == 2.5
    assert results.select(results.read("trial"), seed=1)[0]["figures"] == {"loss": 2.0}


def test_results_move_to_the_repository_and_new_ones_replace_them(results: ModuleType) -> None:
    results.measure("trial", {"seed": 0}, lambda: {"loss": 1.0})
    results.measure("trial", {"seed": 1}, lambda: {"loss": 2.0})
    results.take("trial")
    assert not results.working_file("trial").exists()
    assert len(json.loads((results.KEPT / "trial.json").read_text())) == 2
    results.measure("trial", {"seed": 0}, lambda: {"loss": 5.0}, anew=True)
    assert [r["figures"]["loss"] for r in results.read("trial")] == [5.0, 2.0]
    assert [r["figures"]["loss"] for r in results.read("trial", with_cache=False)] == [1.0, 2.0]


def test_a_program_that_fails_keeps_nothing(results: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError):
        results.measure("trial", {"seed": 0}, lambda: {"loss": 1 / 0})
    assert results.read("trial") == []


def test_the_tables_of_the_pages_are_those_of_the_results(write_tables: ModuleType) -> None:
    for page in write_tables.pages():
        text = page.read_text(encoding="utf-8")
        assert write_tables.with_tables(text) == text, f"run tools/experiments/write_tables.py: {page}"


def test_the_figures_of_the_package_are_those_of_the_results(write_tables: ModuleType) -> None:
    for path in write_tables.FIGURES:
        text = path.read_text(encoding="utf-8")
        assert "# table:" in text
        assert write_tables.with_figures(text) == text, f"run tools/experiments/write_tables.py: {path}"


def test_figures_are_written_between_their_marks(write_tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_tables, "make_table", lambda name, table: f'"{name}": {len(table)},')
    program = "made = {\n    # table: vit.gain\n    old\n    # end\n}\n"
    made = 'made = {\n    # table: vit.gain\n    "vit": 4,\n    # end\n}\n'
    assert write_tables.with_figures(program) == made
    assert write_tables.with_figures(made) == made
    with pytest.raises(ValueError, match="has no"):
        write_tables.with_figures("    # table: vit.gain\n")


def test_a_table_is_written_between_its_marks(write_tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_tables, "make_table", lambda name, table: f"{name} {table}")
    page = "a\n<!-- table: vit.methods -->\nold\n<!-- end -->\nb\n"
    made = "a\n<!-- table: vit.methods -->\n\nvit methods\n\n<!-- end -->\nb\n"
    assert write_tables.with_tables(page) == made
    assert write_tables.with_tables(made) == made
    with pytest.raises(ValueError, match="has no"):
        write_tables.with_tables("<!-- table: vit.methods -->\n")


def test_prompts_to_be_taught_with_are_none_of_the_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with imported("self_taught", monkeypatch) as program:
        rows = [(f"name : {number // 2}", "text") for number in range(60)]
        path = program.prompts_file(tmp_path, rows, without=rows[10:13])
    found = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    assert found == [f"data: name : {number}\ntext:" for number in (*range(5), *range(7, 18))]
