"""Kernels that are compiled with AddressSanitizer and UndefinedBehaviorSanitizer report nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_paths import COMPILED

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tools" / "kernel_sanitizers.py"


def run(*arguments: str, timeout: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip() or done.stdout.strip())
    return done


@pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
def test_the_kernels_of_bases_are_clean() -> None:
    variant = COMPILED[-1]
    done = run("--variant", variant, "tests/unit/kernels/test_transforms.py", "tests/unit/kernels/test_generators.py",
               "-k", variant, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{variant}: clean" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
def test_golden_and_damaged_files_are_clean_in_every_variant() -> None:
    done = run(timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:]
    assert [variant for variant in COMPILED if f"{variant}: clean" not in done.stdout] == []
