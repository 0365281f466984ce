"""A wheel holds the page of `view`, and the compiled library; it is pure Python where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kernel_paths import COMPILED

pytest.importorskip("hatchling")
ROOT = Path(__file__).resolve().parents[3]


def build(root: Path, out: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel as pip does, and return it with what the build said."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    environ = {**os.environ, **environment}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What a wheel is built of, without the library."""
    root = tmp_path / "sources"
    shutil.copytree(ROOT / "nola_codec", root / "nola_codec", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (root / "nola_codec" / "viewer" / "reader.html").write_bytes(b"the page that `make web` built")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
def test_a_wheel_holds_the_library_for_one_platform_and_every_python(sources: Path, tmp_path: Path) -> None:
    wheel, _ = build(sources, tmp_path / "out")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "nola_codec/kernels/_kernels.so" in archive.namelist()
        assert archive.read("nola_codec/viewer/reader.html") == b"the page that `make web` built"
        archive.extractall(tmp_path / "installed")
    code = "from nola_codec.kernels import library; print(library().variant)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    environment.pop("NOLA_KERNELS", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (COMPILED[-1], "")


def test_a_wheel_without_a_compiler_is_pure_and_says_so(sources: Path, tmp_path: Path) -> None:
    (sources / "nola_codec/kernels/_kernels.so").write_bytes(b"one that an earlier build left")
    wheel, said = build(sources, tmp_path / "out", CC="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "built without its kernels, and NumPy will compute: the C compiler failed: false" in said
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
