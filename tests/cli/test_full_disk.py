"""A device that takes no bytes is named: standard output, or the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nola_forge import GOLDEN

FILE = GOLDEN / "nmse.nola"

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--json", str(FILE)],
        ["verify", str(FILE)],
        ["decode", str(FILE), "-o", "-"],
        ["truncate", str(FILE), "--rung", "0", "-o", "-"],
        ["--version"],
    ],
    ids=["json", "text", "bytes", "file", "version"],
)
def test_a_full_standard_output_is_named(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nola_codec", *arguments], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [
        "nola-codec: standard output: No space left on device; free some space, or write to another disk"
    ]


def test_a_closed_pipe_behind_bytes_is_no_answer() -> None:
    line = f'"{sys.executable}" -m nola_codec decode "{FILE}" -o - | true; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) in [(141, ""), (0, "")]  # 0 if all was written before the pipe was closed
