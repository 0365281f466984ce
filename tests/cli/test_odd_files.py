"""Every odd file is either encoded, and decoded to the same keys, or refused in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd_dialects  # noqa: F401 - it adds to ODD
import odd_stores  # noqa: F401
import pytest
from odd_files import ODD, Odd

from nola_codec.adapters.sources import open_source

Run = Callable[..., Any]


@pytest.mark.parametrize("name", [name for name, odd in ODD.items() if odd.code is not None])
def test_refused_in_one_line(name: str, run: Run, tmp_path: Path) -> None:
    odd = ODD[name]
    given = made(odd, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.nola").write_bytes(b"old")
    done = run("encode", "-f", "-o", out / "x.nola", *odd.arguments, "--", given)
    assert (done.status, done.out) == (3, ""), done.err
    assert done.err.startswith("nola-codec: ")
    assert done.err.endswith(f" [{odd.code}]\n"), done.err
    assert odd.says in done.err
    line = done.err.removesuffix("\n")
    assert line.isprintable(), line
    assert len(line) < 1000
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("x.nola", b"old")]


@pytest.mark.parametrize("name", [name for name, odd in ODD.items() if odd.code is None])
def test_encoded_and_decoded(name: str, run: Run, tmp_path: Path) -> None:
    odd = ODD[name]
    given = made(odd, tmp_path)
    out, back = tmp_path / "x.nola", tmp_path / "back"
    done = run("encode", "-o", out, *odd.arguments, "--", given)
    assert done.status == 0, done.err
    assert all(line.startswith("note: ") for line in done.err.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "x.nola"]
    with open_source(given) as source:
        keys = {key: info.shape for key, info in source.file.tensors.items()}
        suffix = ".gguf" if source.file.file_type == "gguf" else ".safetensors"
    if not given.is_dir():
        back = back.with_suffix(suffix)
    decoded = run("decode", out, "-o", back)
    assert decoded.status == 0, decoded.err
    with open_source(back) as source:
        assert {key: info.shape for key, info in source.file.tensors.items()} == keys


def made(odd: Odd, tmp_path: Path) -> Path:
    directory = tmp_path / "given"
    directory.mkdir()
    return odd.make(directory)
