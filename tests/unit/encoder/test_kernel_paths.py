"""Files of real adapters have the same bytes with the compiled kernels and without, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_paths import COMPILED

import nola_codec

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
CASES = {
    "trellises and dependent quantizers": ("smollm135m_medical", {"size": 60_000}),
    "an error of deltas": ("gptneo125m_movies", {"nmse": 0.2}),
    "few bytes": ("gpt2_tigrinya", {"ratio": 300}),
    "an effective error": ("sam_vitb_rank4.safetensors", {"error": 0.1}),
    "rungs": ("gptneo125m_movies", {"size": 12_000, "progressive": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes(
    case: str, real_adapter: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = CASES[case]
    found = set()
    for path, threads in (("off", "1"), (COMPILED[0], "3"), (COMPILED[-1], "2")):
        monkeypatch.setenv("NOLA_KERNELS", path)
        monkeypatch.setenv("NOLA_THREADS", threads)
        out = tmp_path / f"{path}.nola"
        nola_codec.encode(real_adapter(name), out, **options)
        found.add(out.read_bytes())
    assert len(found) == 1
