"""The code in docs/training.md runs as printed, block after block in one program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
BLOCK = re.compile(r"(?P<skipped>^<!-- not run: [^\n]*-->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "training_page"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    assert sum(block["skipped"] is not None for block in blocks) == 1  # the one that needs a model in a folder
    for block in blocks:
        if block["skipped"] is None:
            line = text.count("\n", 0, block.start("code"))  # so that a traceback names the line of the page
            exec(compile("\n" * line + block["code"], str(PAGE), "exec"), names)
    for file in ("task.nola", "run/checkpoint-4/task.nola", "trainer.nola", "small.nola", "network.nola", "mlp.nola"):
        assert (tmp_path / file).is_file(), file
    task = names["report"].task
    assert max(task.adapter, task.file) < task.base  # a file that was trained may be better than the adapter
    assert task.file < task.start


def test_every_field_of_a_coding_is_in_the_table() -> None:
    from nola_codec.training import CodingOptions

    table = PAGE.read_text(encoding="utf-8").partition("| field |")[2].partition("\n\n")[0]
    for field in CodingOptions.__annotations__:
        assert f"`{field}`" in table, field
