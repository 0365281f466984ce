"""The reader in TypeScript against the package: real files that are encoded now, and random legal files.

Its own tests, which run in Node and in Chromium, are in `web/test`. Here are those that need the package or the
reference decoder; they also run in both, if there is a Chromium.
`NOLA_RANDOM_FILES` is the number of random files, 40 unless it is set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from random_files import random_file
from safetensors import safe_open

import nola_codec

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "web" / "dist"
NODE = shutil.which("node")
RANDOM_FILES = int(os.environ.get("NOLA_RANDOM_FILES", "40"))

pytestmark = pytest.mark.skipif(
    NODE is None or not (DIST / "cli.js").is_file(), reason="the reader in web/ is not built (make web)"
)

SMALL: tuple[dict[str, Any], ...] = (
    {"size": "10KB"}, {"size": "30KB", "seed": 2**63 + 1}, {"nmse": 0.2}, {"size": "20KB", "rungs": ["8KB"]},
    {"num_basis": 40, "bits": 3},
)  # fmt: skip
CARRYING: tuple[dict[str, Any], ...] = ({"error": 0.2, "carried": form} for form in ("exact", "int8", "coded"))  # type: ignore[assignment]
FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("gptneo125m_movies", options) for options in SMALL),
    ("gptneo125m_movies", {"num_basis": 20, "basis": "uniform"}),
    ("gptneo125m_movies", {"num_basis": 20, "basis": "rademacher"}),
    *(("mlx_qwen05b/0000200_adapters.safetensors", options) for options in SMALL),
    *(("sam_vitb_rank4.safetensors", options) for options in SMALL[:3]),
    *(("roberta_base_lora_mnli.bin", options) for options in CARRYING),
    ("gpt2_tigrinya", {"size": "20KB", "shared_basis": True}),
    ("gpt2_tigrinya", {"size": "12KB", "objective": "nmse"}),
    ("sd15_disney_rank1.safetensors", {"size": "20KB"}),
    ("sd15_catundchat", {"size": "20KB"}),
    ("sd15_analog_svd_rank4.safetensors", {"size": "20KB"}),
    ("smollm135m_medical", {"size": "20KB", "block_size": "2KB"}),
    ("smollm2_e2e", {"size": "20KB"}),
)
"""The files that are encoded: an adapter of the further real data, and options of `encode`."""

SAVE = f"""
import {{ readFile, writeFile }} from "node:fs/promises";
import {{ text }} from "node:stream/consumers";
import {{ openNola }} from {json.dumps((DIST / "index.js").as_uri())};
for (const [source, target] of JSON.parse(await text(process.stdin))) {{
  const decoded = await (await openNola(await readFile(source))).decode();
  await writeFile(target, await decoded.toSafetensors());
}}
"""


def read_batch(files: list[list[str]]) -> list[dict[str, Any]]:
    """What the reader says of each file, which is given with the files that must be decoded before it."""
    lines = "".join(f"{json.dumps(paths)}\n" for paths in files)
    command = [str(NODE), str(DIST / "cli.js"), "--batch"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=600, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_in_browser(files: list[list[str]]) -> list[dict[str, Any]]:
    """What the reader says of each file in Chromium; an empty list where there is none."""
    lines = "".join(f"{json.dumps(paths)}\n" for paths in files)
    command = [str(NODE), str(ROOT / "web" / "test" / "answer_in_browser.js")]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=3600)
    if done.returncode == 3:
        return []
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(files)
    return answers


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The dtype, shape and bytes of each tensor of a safetensors file."""
    with safe_open(path, "np") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    return {key: (str(array.dtype), array.shape, array.tobytes()) for key, array in found.items()}


def test_25_real_files_decode_to_the_bytes_of_the_package(shared_data: Path, tmp_path: Path) -> None:
    assert len(FILES) == 25
    sources, targets = [], []
    for number, (name, options) in enumerate(FILES):
        source = tmp_path / f"{number}.nola"
        nola_codec.encode(shared_data / "lora" / name, source, **options)
        nola_codec.decode(source, tmp_path / str(number))  # a lone file would have its scaling in lora_B
        sources.append(source)
        targets.append(tmp_path / f"{number}.web.safetensors")
    lines = json.dumps([[str(source), str(target)] for source, target in zip(sources, targets, strict=True)])
    command = [str(NODE), "--input-type=module", "--eval", SAVE]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = read_batch([[str(source)] for source in sources])
    for number, (source, target, answer) in enumerate(zip(sources, targets, answers, strict=True)):
        (written,) = (tmp_path / str(number)).glob("*.safetensors")
        assert tensors_of(target) == tensors_of(written), FILES[number]
        assert answer["rungs"][-1]["decoded_sha256"] == nola_codec.inspect(source).decoded_sha256
        assert answer["content_sha256"] == nola_codec.inspect(source).content_sha256
    for target, answer, found in zip(targets, answers, read_in_browser([[str(s)] for s in sources]), strict=False):
        assert found["rungs"] == [rung["decoded_sha256"] for rung in answer["rungs"]]
        assert found["saved"] == hashlib.sha256(target.read_bytes()).hexdigest()


def load_reference_reader() -> Any:
    """The reference decoder as a reader of the conformance kit."""
    spec = importlib.util.spec_from_file_location(
        "reference_reader", ROOT / "spec" / "conformance" / "reference_reader.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_legal_files_decode_as_in_the_reference_decoder(tmp_path: Path) -> None:
    reference = load_reference_reader()
    files = []
    for number in range(RANDOM_FILES):
        made = random_file(number)
        paths = [tmp_path / f"{number}.{part}.nola" for part in range(1 + len(made.references))]
        for path, data in zip(paths, (made.data, *made.references), strict=True):
            path.write_bytes(data)
        files.append([str(path) for path in paths])
    answers = read_batch(files)
    for number, (paths, found) in enumerate(zip(files, answers, strict=True)):
        assert found.get("rungs") == reference.answer(*paths)["rungs"], f"random file {number}: {found}"
    for number, (answer, found) in enumerate(zip(answers, read_in_browser(files), strict=False)):
        assert found["rungs"] == [rung["decoded_sha256"] for rung in answer["rungs"]], f"random file {number}: {found}"
