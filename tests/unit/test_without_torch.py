"""Everything but training and other devices works in an environment that has no PyTorch, to the same bits.

The environment is a venv that holds links to the package and to its dependencies, and nothing else: no network.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import nola_codec
from nola_codec.cli import main

ROOT = Path(__file__).resolve().parents[2]


def dependencies() -> list[str]:
    """Names of the packages that a plain installation brings."""
    listed = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S
    )
    assert listed is not None
    return re.findall(r'"([A-Za-z0-9_-]+)', listed[1])


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment without PyTorch."""
    directory = tmp_path_factory.mktemp("plain") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=120)
    interpreter = directory / ("Scripts" if os.name == "nt" else "bin") / "python"
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([interpreter, "-I", "-c", asked], check=True, capture_output=True, text=True, timeout=60)
    packages = Path(found.stdout.strip())
    for name in dependencies():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return interpreter


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with this package, and with nothing else of this process's paths."""
    hidden = ("PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"NOLA_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    command = [str(python), *(str(a) for a in arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter, the model that it belongs to, and a pickle."""
    directory = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    tensors, base = {}, {"other": np.ones(3, np.float32)}
    for name, out in (("q_proj", 64), ("v_proj", 33)):
        path = f"model.layers.0.self_attn.{name}"
        tensors[f"base_model.model.{path}.lora_A.weight"] = rng.standard_normal((4, 48)).astype(np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = rng.standard_normal((out, 4)).astype(np.float32)
        base[f"{path}.weight"] = rng.standard_normal((out, 48)).astype(np.float16)
    tuned = {name: (tensor * 1.5).astype(tensor.dtype) for name, tensor in base.items()}
    for name in ("adapter", "base", "tuned"):
        (directory / name).mkdir()
    save_file(tensors, directory / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (directory / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for name, weights in (("base", base), ("tuned", tuned)):
        save_file(weights, directory / name / "model.safetensors")
        (directory / name / "config.json").write_text('{"model_type": "llama"}')
    import torch

    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, directory / "adapter.bin")
    return directory


COMMANDS = (
    ("encode", "adapter", "-o", "OUT/a.nola", "--nmse", "0.02", "--rungs", "1000B"),
    ("encode", "adapter", "-o", "OUT/p.nola", "--num-basis", "40", "--bits", "4", "--basis", "rademacher"),
    ("encode-delta", "tuned", "--base", "base", "-o", "OUT/d.nola", "--nmse", "0.2"),
    ("decode", "OUT/a.nola", "-o", "OUT/decoded"),
    ("decode", "OUT/a.nola", "-o", "OUT/loralib.safetensors", "--format", "loralib", "--dtype", "bf16"),
    ("decode", "OUT/a.nola", "-o", "OUT/decoded.npz"),
    ("decode", "OUT/a.nola", "--base", "base", "-o", "OUT/merged", "--keep-undo"),
    ("decode", "OUT/a.nola", "--unmerge", "OUT/merged", "-o", "OUT/back"),
    ("merge", "OUT/a.nola:0.5", "OUT/p.nola", "--base", "base", "-o", "OUT/two"),
    ("truncate", "OUT/a.nola", "-o", "OUT/cut.nola", "--rung", "0"),
    ("verify", "OUT/a.nola"),
    ("inspect", "OUT/a.nola", "--tensors"),
    ("compare", "adapter", "OUT/a.nola"),
    ("report", "OUT/a.nola", "--against", "adapter", "-o", "OUT/report.html"),
    ("sweep", "adapter", "--sizes", "1KB"),
    ("selftest",),
)


def test_the_commands_work_and_give_the_same_bits(python: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes without PyTorch, and in this one, which has it."""
    absent = run(python, "-c", "import torch", cwd=work)
    assert "No module named 'torch'" in absent.stderr
    for out in ("plain", "full"):
        (work / out).mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("NOLA_THREADS", "1")
    for command in COMMANDS:
        words = [word.replace("OUT", "plain") for word in command]
        done = run(python, "-m", "nola_codec", *words, cwd=work)
        assert done.returncode == 0, (words, done.stderr)
        with pytest.raises(SystemExit) as ended:
            main([word.replace("OUT", "full") for word in command])
        assert not ended.value.code, command
    assert "torch" in sys.modules
    files = {path.relative_to(work / "plain") for path in (work / "plain").rglob("*") if path.is_file()}
    assert files == {path.relative_to(work / "full") for path in (work / "full").rglob("*") if path.is_file()}
    assert len(files) > 12
    for file in files:
        assert (work / "plain" / file).read_bytes() == (work / "full" / file).read_bytes(), file


@pytest.fixture(scope="module")
def encoded(work: Path) -> Path:
    nola_codec.encode(work / "adapter", work / "own.nola", nmse=0.1)
    return work / "own.nola"


def test_the_library_gives_numpy_arrays(python: Path, work: Path, encoded: Path) -> None:
    code = (
        "import nola_codec, numpy, sys\n"
        "with nola_codec.load('own.nola', device='numpy', verify=True) as task:\n"
        "    (name, *_) = task.names()\n"
        "    arrays = {'A': task.factors(name)[0], 'B': task.factors(name)[1], 'delta': task.delta_weight(name)}\n"
        "    numpy.savez('own.npz', **arrays, **task.state_dict())\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run(python, "-c", code, cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    found = np.load(work / "own.npz")
    with nola_codec.load(encoded) as task:
        (name, *_) = task.names()
        lora_A, lora_B = task.factors(name)
        wanted = {"A": lora_A, "B": lora_B, "delta": task.delta_weight(name), **task.state_dict()}
    assert set(found) == set(wanted)
    for key, tensor in wanted.items():
        assert found[key].dtype == np.float32
        assert found[key].tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["encode", "adapter.bin", "-n"], "adapter.bin: reading .bin and .pt needs torch"),
        (["decode", "own.nola", "-o", "x.bin"], "writing .bin and .pt needs torch"),
        (["decode", "own.nola", "-o", "x", "--device", "cuda"], "the device 'cuda' needs torch"),
        (["selftest", "--device", "mps"], "the device 'mps' needs torch"),
        (["encode", "adapter", "-n", "--fit", "task", "--base", "base", "--data", "x"], "--fit task needs torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_needs_torch_says_so_in_one_line(
    command: list[str], words: str, python: Path, work: Path, encoded: Path
) -> None:
    done = run(python, "-m", "nola_codec", *command, cwd=work)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"nola-codec: {words}: pip install 'nola-codec[torch]' [needs-torch]\n"
    assert not (work / "x").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("nola_codec.load('own.nola').state_dict()", "load(..., device='cpu') needs torch"),
        ("import nola_codec.training", "nola_codec.training needs torch"),
        ("nola_codec.TaskBank", "nola_codec.TaskBank needs torch"),
    ],
)
def test_what_needs_torch_raises_one_error(code: str, words: str, python: Path, work: Path, encoded: Path) -> None:
    program = (
        f"import nola_codec\ntry:\n    {code}\nexcept nola_codec.NolaError as error:\n    print(error.code, error)\n"
    )
    done = run(python, "-c", program, cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"needs-torch {words}: pip install 'nola-codec[torch]'")
    assert len(done.stdout.splitlines()) == 1


def test_many_files_need_no_package_but_ray_does(python: Path, work: Path) -> None:
    out = run(python, "-m", "nola_codec", "encode-many", "adapter", "-o", "many", "--ratio", "2", cwd=work)
    assert out.returncode == 0, out.stderr
    assert (work / "many" / "manifest.jsonl").is_file(), "without pyarrow, the manifest is JSON lines"
    asked = run(python, "-m", "nola_codec", "encode-many", "adapter", "-o", "rays", "--engine", "ray", cwd=work)
    assert (asked.returncode, "pip install 'nola-codec[ray]'" in asked.stderr) == (3, True), asked.stderr
