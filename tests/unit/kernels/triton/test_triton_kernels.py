"""The Triton kernels, run by Triton's interpreter, give the integers of NumPy."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from nola_forge import ROOT

from nola_codec.kernels.triton.availability import uses_triton

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.parametrize("checks", [("philox", "rademacher", "merge", "hadamard"), ("rans", "files")])
def test_kernels_in_the_interpreter(checks: tuple[str, ...]) -> None:
    script = ROOT / "tests" / "support" / "triton_checks.py"
    path = [str(ROOT), str(script.parent), os.environ.get("PYTHONPATH", "")]
    made = subprocess.run(
        [sys.executable, "-W", "error", str(script), *checks],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert tuple(made.stdout.split()) == checks


def test_kernels_are_not_used_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not uses_triton("cpu")
    assert not uses_triton("mps")


@needs_triton
@pytest.mark.parametrize("variable", ["NOLA_TRITON", "NOLA_KERNELS"])
def test_variables_turn_the_kernels_off(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for each in ("NOLA_TRITON", "NOLA_KERNELS"):
        monkeypatch.delenv(each, raising=False)
    assert uses_triton("cpu")
    monkeypatch.setenv(variable, "off")
    assert not uses_triton("cpu")
