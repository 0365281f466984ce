"""`nola-codec sweep` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Any]


def test_a_table(run: Run, adapter: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = run("sweep", adapter, "--sizes", "20B,1KB, 1500B")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split("  ")[-1] == "gain kept"
    assert "eff. error" in lines[0]
    assert lines[1].split() == ["20", "B", "none"]
    assert lines[2].startswith("1.0 KB")
    assert lines[3].startswith("1.5 KB")
    assert lines[3].count("x  ") == 1
    assert lines[4].startswith("none: size 20 bytes cannot be reached")
    assert lines[5].startswith("advice: take ")
    assert sorted(tmp_path.rglob("*")) == before


def test_json(run: Run, adapter: Path, tmp_path: Path) -> None:
    facts = run("sweep", adapter, "--nmse", "0.3,0.1", "--json").json
    assert (facts["by"], facts["objective"], facts["plot"]) == ("nmse", "nmse", None)
    for target, point in zip((0.3, 0.1), facts["points"], strict=True):
        assert point["target"] == target
        out = tmp_path / f"{target}.nola"
        own = run("encode", adapter, "-o", out, "--nmse", target, "--json").json
        assert (point["bytes"], point["nmse"]) == (own["bytes"], own["nmse"])
    other = run("sweep", adapter, "--error", "0.3", "--json").json
    assert (other["by"], other["objective"]) == ("error", "effective")
    assert other["points"][0]["effective_error"] <= 0.3


def test_only_the_effective_objective_has_its_column(run: Run, adapter: Path) -> None:
    done = run("sweep", adapter, "--sizes", "800B,1500B", "--objective", "nmse")
    assert (done.status, done.err) == (0, "")
    assert "eff. error" not in done.out.splitlines()[0]
    assert "advice" not in done.out  # nothing was measured by the NMSE


def test_defaults(run: Run, adapter: Path) -> None:
    points = run("sweep", adapter, "--json").json["points"]
    assert len(points) >= 2
    assert all(point["bytes"] for point in points)


def test_a_plot(run: Run, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curve.svg"
    done = run("sweep", adapter, "--sizes", "1KB,1500B", "--plot", out)
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(f"wrote  {out}\n")
    assert "smaller than fp16" in out.read_text()
    refused = run("sweep", adapter, "--sizes", "1KB", "--plot", out)
    assert (refused.status, refused.out) == (2, "")
    assert "-f overwrites it" in refused.err
    assert run("sweep", adapter, "--sizes", "1KB", "--plot", out, "-f").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep"], ["sweep", "ADAPTER", "--sizes", "1KB", "--nmse", "0.1"], ["sweep", "ADAPTER", "--nmse", "0.1,much"],
        ["sweep", "ADAPTER", "--nmse", "0.1,2"], ["sweep", "ADAPTER", "--sizes", "1KB,,"],
        ["sweep", "ADAPTER", "--nmse", "0.1", "--objective", "effective"], ["sweep", "ADAPTER", "--plot", "curve.pdf"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(arguments: list[str], run: Run, adapter: Path) -> None:
    done = run(*(adapter if a == "ADAPTER" else a for a in arguments))
    assert (done.status, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


def test_input_refused(run: Run, tmp_path: Path, adapter: Path) -> None:
    done = run("sweep", tmp_path / "nowhere", "--sizes", "1KB")
    assert (done.status, done.out) == (3, "")
    assert "no such file" in done.err
    done = run("sweep", adapter, "--plot", tmp_path / "no" / "curve.svg")
    assert (done.status, done.out) == (3, "")
    assert "no such directory" in done.err


def test_neither_torch_nor_matplotlib_is_loaded(adapter: Path) -> None:
    code = (
        "import sys\n"
        "from nola_codec.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "print('loaded:', sorted({'torch', 'matplotlib'} & set(sys.modules)))\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, "sweep", str(adapter), "--sizes", "1KB"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "loaded: []"
    assert made.stderr == ""
