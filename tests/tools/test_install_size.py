"""A plain installation brings no PyTorch, and the program that measures installations counts right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_extras_bring_what_they_say() -> None:
    program = ROOT / "tools" / "bench" / "install_size.py"
    done = subprocess.run([sys.executable, program, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {row["install"]: row for row in json.loads(done.stdout)}
    plain, with_torch = rows["nola-codec"], rows["nola-codec[torch]"]
    assert plain["missing"] == []
    assert {"numpy", "click", "zstandard", "nola-codec"} <= set(plain["packages"])
    assert not {"torch", "transformers", "matplotlib"} & set(plain["packages"])
    assert set(plain["packages"]) | {"torch"} <= set(with_torch["packages"])
    assert with_torch["bytes"] - plain["bytes"] >= with_torch["packages"]["torch"] > 100_000_000
    for row in rows.values():
        assert row["bytes"] == sum(row["packages"].values())
