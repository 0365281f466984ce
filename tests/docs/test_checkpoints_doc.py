"""docs/tutorials/checkpoints.md runs as printed. The page on fleets, which always runs, has the same commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import Session, blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "checkpoints.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that a page calls
def test_page_runs_as_printed(folder: Path) -> None:
    session = Session(folder)
    for block in blocks(PAGE):
        session.run(block)
