"""Signals end a command cleanly, and an output is the old one or the new one whenever a command is killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import nola_codec

FOREVER = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the command then ignores it as well
from pathlib import Path
import nola_codec.cli.inspect as inspect
from nola_codec.cli import main
from nola_codec.stores.files import atomic_file

def wait(*arguments, **options):
    with atomic_file("out.bin") as stream:
        print("ready", flush=True)
        time.sleep(60)

inspect.command.callback = wait
main(["inspect", "x.nola"])
"""


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGTERM, 143, "told to end"), (signal.SIGHUP, 129, "the terminal was closed")],
)
def test_a_signal_to_end_is_clean(number: signal.Signals, status: int, words: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FOREVER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.splitlines()[-1] == f"nola-codec: {words}"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_the_old_one_or_the_new_one(examples: Path, tmp_path: Path) -> None:
    """Two files with other weights and other scalings are decoded over one another, and killed at random moments."""
    adapters, found = [], []
    for number, alpha in enumerate((2, 4)):
        file, source = tmp_path / f"{number}.nola", tmp_path / f"source{number}"
        shutil.copytree(examples / "gptneo125m_movies", source)
        config = json.loads((source / "adapter_config.json").read_text())
        (source / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
        nola_codec.encode(source, file, size="3KB", seed=number)
        adapters.append(file)
        out = tmp_path / f"wanted{number}"
        nola_codec.decode(file, out)
        found.append(state_of(out))
    out = tmp_path / "out"
    nola_codec.decode(adapters[0], out)
    (out / "README.md").write_text("mine")
    moments = random.Random(0)
    program = "import sys, nola_codec; print('x', flush=True); nola_codec.decode(sys.argv[1], 'out', overwrite=True)"
    for number in (1, 0, 1, 0, 1):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(adapters[number])], cwd=tmp_path, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.05, 0.4))
        process.kill()
        process.communicate()
        assert state_of(out) in found
        assert (out / "README.md").read_text() == "mine"
    subprocess.run([sys.executable, "-c", program, str(adapters[0])], cwd=tmp_path, check=True, capture_output=True)
    assert state_of(out) == found[0]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def state_of(folder: Path) -> tuple[bytes, bytes]:
    """The configuration and the bytes of the weights of a directory."""
    weights = load_file(folder / "adapter_model.safetensors")
    return (folder / "adapter_config.json").read_bytes(), b"".join(weights[key].tobytes() for key in sorted(weights))
