"""docs/hub.md runs against a stand-in of the Hub. Its blocks are those of hub.md, in order."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hub_server import Account, HubServer, connect
from snippets import Session, blocks

with warnings.catch_warnings():
    pytest.importorskip("huggingface_hub")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"


@pytest.mark.filterwarnings("ignore")  # of the libraries that a page calls
def test_page_runs_as_printed(folder: Path, tmp_path: Path) -> None:
    session = Session(folder)
    with HubServer() as hub, connect(hub, tmp_path / "home", token="hf_mine"):
        hub.accounts["hf_mine"] = Account("me")
        hub.put("HuggingFaceTB/SmolLM2-135M-Instruct", {"config.json": b"{}"})
        for block in blocks(PAGE):
            session.run(block)
        assert hub.files("me/my-lora", "v2")["task.nola"] == (folder / "offline.nola").read_bytes()
