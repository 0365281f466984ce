"""NOLA_KERNELS chooses the path; a library that is missing, stale or broken leads to NumPy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_paths import COMPILED

import nola_codec
from nola_codec import kernels
from nola_codec.errors import NolaError
from nola_codec.kernels.compiling import FOLDER, LIBRARY_NAME, CannotCompile, compile_library, is_current
from nola_codec.kernels.loading import load

PACKAGE = Path(nola_codec.__file__).parent
needs_library = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
ASK = "from nola_codec.kernels import kernel_status as s; x = s(); print(x.library and x.library.variant, x.reason)"


def ask(root: Path) -> str:
    """What a new process with the package of `root` says."""
    result = subprocess.run([sys.executable, "-c", ASK], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    return result.stdout.strip()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, library included; the folder above it."""
    shutil.copytree(PACKAGE, tmp_path / "nola_codec", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_off_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_KERNELS", "off")
    assert kernels.library() is None
    assert kernels.kernel_status().reason == "NOLA_KERNELS=off"


def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_KERNELS", "fast")
    with pytest.raises(NolaError, match="NOLA_KERNELS") as caught:
        kernels.library()
    assert caught.value.code == "kernels"


@needs_library
def test_a_variant_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in COMPILED:
        monkeypatch.setenv("NOLA_KERNELS", variant)
        lib = kernels.library()
        assert lib is not None
        assert lib.variant == variant
    monkeypatch.delenv("NOLA_KERNELS")
    best = load("").library
    assert best is not None
    assert best.variant == COMPILED[-1]


@needs_library
def test_arrays_that_are_not_contiguous_are_refused() -> None:
    lib = load("").library
    assert lib is not None
    with pytest.raises(ValueError, match="C-contiguous"):
        lib.call("nola_signs", np.zeros((2, 2), np.uint32)[:, 0], 2, np.zeros(2, np.int8))


@needs_library
def test_a_library_that_is_older_than_its_sources_is_not_used(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOLA_KERNELS", raising=False)
    assert ask(copied).startswith(COMPILED[-1])
    with (copied / "nola_codec/kernels/c/nola.h").open("a") as file:
        file.write("/* changed */\n")
    assert "older than its sources" in ask(copied)
    assert not is_current(copied / "nola_codec/kernels")


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF not a library"])
def test_a_missing_or_broken_library_leads_to_numpy(
    content: bytes | None, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "nola_codec/kernels" / LIBRARY_NAME
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delenv("NOLA_KERNELS", raising=False)
    assert ask(copied).startswith("None ")
    monkeypatch.setenv("NOLA_KERNELS", "require")
    result = subprocess.run([sys.executable, "-c", ASK], cwd=copied, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "NolaError: NOLA_KERNELS=require, but" in result.stderr


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_is_named_in_one_line(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER / "c", tmp_path / "c")
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CannotCompile, match=compiler) as caught:
        compile_library(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / LIBRARY_NAME).exists()


def test_importing_loads_nothing() -> None:
    code = ("import sys, nola_codec.decoder.factors\n"
            "from nola_codec.kernels.loading import load\n"
            "print(load.cache_info().currsize)")  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "0\n"
