"""docs/hub.md and docs/tutorials/publish.md run against a stand-in of the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Account, HubServer, connect
from snippets import Session, blocks

with warnings.catch_warnings():
    pytest.importorskip("huggingface_hub")

DOCS = Path(__file__).resolve().parents[2] / "docs"
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that a page calls


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, connect(server, tmp_path / "home", token="hf_mine"):
        server.accounts["hf_mine"] = Account("me")
        server.put("HuggingFaceTB/SmolLM2-135M-Instruct", {"config.json": b"{}"})
        yield server


def run(page: Path, folder: Path) -> None:
    session = Session(folder)
    for block in blocks(page):
        session.run(block)


def test_the_page_of_the_hub(folder: Path, hub: HubServer) -> None:
    run(DOCS / "hub.md", folder)
    assert hub.files("me/my-lora", "v2")["task.nola"] == (folder / "offline.nola").read_bytes()


def test_the_tutorial(folder: Path, hub: HubServer) -> None:
    run(DOCS / "tutorials" / "publish.md", folder)
    files = hub.files("me/my-task", "main")
    assert files["task.nola"] == (folder / "copy.nola").read_bytes()
    assert b"held-out loss" in files["README.md"]
