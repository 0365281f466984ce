"""Small adapters in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_adapters import make_tensors, write_adapter


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """`loras/` with the adapters `a`, `b` and `deep/a`."""
    for seed, name in enumerate(("a", "b", "deep/a")):
        write_adapter(tmp_path / "loras" / name, make_tensors(seed))
    return tmp_path / "loras"
