"""One thread for every test of the library's calls."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quiet_and_light(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")
