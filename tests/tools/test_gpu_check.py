"""`tools/gpu_check.py --device cpu` runs every check small, and the report of compiled kernels counts right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nola_forge import GOLDEN, ROOT


def test_all_checks_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--device", "cpu", "--json", str(out)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout + made.stderr
    report = json.loads(out.read_text())
    assert len(report["bits"]) == len(list(GOLDEN.glob("*.nola"))) + 6
    assert all(report["bits"].values())
    assert all(seconds > 0 for _, seconds, _ in report["rows"])
    assert "not a GPU" in made.stdout


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py")]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"CUDA_VISIBLE_DEVICES": ""})
    assert made.returncode == 2
    assert made.stderr.strip() == "gpu_check: PyTorch finds no GPU here; --device cpu runs the checks small"


def test_the_roofline_names_what_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from triton_report import Device, Work

    device = Device("d", memory=100.0, integer=10.0, double=1.0, matrix8=1000.0)
    assert Work("", "", bytes=100, integer=5).seconds(device) == (1.0, "memory")
    assert Work("", "", bytes=100, integer=50).seconds(device) == (5.0, "int32")
    assert Work("", "", bytes=1, integer=1, double=2, matrix8=1000).seconds(device) == (2.0, "float64")
