"""Every command that reads `.nola` files takes limits, and the run leaves none behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nola_forge import GOLDEN

import nola_codec
from nola_codec.container.limits import Limits
from nola_codec.disk_cache import DiskCache
from nola_codec.errors import FormatError
from nola_codec.integrations.evaluation.subjects import open_subjects
from nola_codec.integrations.serving.adapter_cache import AdapterCache
from nola_codec.integrations.serving.sglang import read_tensors

Run = Callable[..., Any]
FILE = GOLDEN / "nmse.nola"
COMMANDS = {
    "inspect": (FILE,),
    "verify": (FILE,),
    "decode": (FILE, "-o", "out.safetensors"),
    "truncate": (FILE, "--rung", "0", "-o", "out.nola"),
    "compare": (FILE, FILE),
    "report": (FILE, "-o", "report.html"),
    "verify-many": (FILE,),
    "decode-many": (FILE, "-o", "many", "--ending", ".safetensors"),
}
_MANY = ("verify-many", "decode-many")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_hold_limits(command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(command, *COMMANDS[command], "--limits", "total_elements=5")
    assert result.status == (1 if command in _MANY else 3)
    assert "--limits total_elements=1664" in (result.out if command in _MANY else result.err)
    assert "NOLA_LIMITS" not in os.environ
    assert run(command, *COMMANDS[command], "--max-memory", "50MB", "--limits", "rank=9").status == 0


def test_limits_that_cannot_be_read_are_wrong_usage(run: Run) -> None:
    for arguments in (("--limits", "unit=5"), ("--limits", "units=0"), ("--max-memory", "5"), ("--max-memory", "much")):
        assert run("inspect", FILE, *arguments).status == 2, arguments


def test_the_memory_of_the_environment_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_LIMITS", "total_elements=5")
    assert run("inspect", FILE).status == 3
    assert run("inspect", FILE, "--limits", "total_elements=5000").status == 0
    assert os.environ["NOLA_LIMITS"] == "total_elements=5"


def test_functions_hold_limits(adapter: Path, tmp_path: Path) -> None:
    limits, data = Limits(total_elements=5), FILE.read_bytes()
    calls: list[Callable[[], object]] = [
        lambda: nola_codec.inspect(data, limits=limits),
        lambda: nola_codec.verify(data, limits=limits),
        lambda: nola_codec.load(data, "numpy", limits=limits),
        lambda: nola_codec.decode(data, tmp_path / "a.safetensors", limits=limits),
        lambda: nola_codec.read_adapter(data, limits=limits),
        lambda: nola_codec.safe_open(data, "np", limits=limits),
        lambda: nola_codec.truncate(data, rung=0, limits=limits),
        lambda: nola_codec.merge([data], GOLDEN, tmp_path / "merged", limits=limits),
        lambda: nola_codec.compare(data, data, limits=limits),
        lambda: nola_codec.report(data, limits=limits),
        lambda: nola_codec.merge_adapters([data], tmp_path / "joined", limits=limits),
        lambda: nola_codec.encode(adapter, reference=data, limits=limits),
        lambda: open_subjects([FILE], tmp_path, tmp_path, None, limits=limits),
        lambda: AdapterCache([GOLDEN], cache=DiskCache(tmp_path / "cache"), limits=limits).resolve("nmse"),
        lambda: read_tensors(data, limits=limits),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(FormatError) as caught:
            call()
        assert caught.value.code == "limit", number


def test_functions_for_many_files_hold_limits(tmp_path: Path) -> None:
    """The limits travel to the workers."""
    limits = Limits(total_elements=5)
    for report in (
        nola_codec.verify_many([FILE], limits=limits, workers=1),
        nola_codec.decode_many([FILE], tmp_path, limits=limits, workers=1),
    ):
        assert [row.code for row in report.failed] == ["limit"]
