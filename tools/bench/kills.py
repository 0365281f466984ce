"""Kill encode, decode and merge at random moments, and look at what is left.

    python tools/bench/kills.py [--kills 300] [--seed 0] [--json]

Every command writes over an output of another content: a file, a PEFT directory of another scaling, a lone safetensors
file, and a merged model. It is killed with SIGKILL, SIGTERM or SIGINT at a moment that is drawn from the time that it
takes; a run that ends before that does not count. Then the output has to be the old one or the new one, to the byte.
"Torn" counts outputs that are neither and cannot be read, "mixed" those that can. After one more run, no temporary file
may be left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import ROOT, table

import nola_codec
from nola_codec.adapters import read
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import write_file

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_COUNTS = ("kills", "ended", "old", "new", "torn", "mixed")


@dataclass
class Job:
    """A command with two inputs, whose outputs differ.

    Attributes:
        name: The name of the row.
        out: The output.
        commands: The arguments of the command for each input.
        wanted: The hash of each output.
        seconds: The time that the command takes.
        counts: The outcomes.
    """

    name: str
    out: Path
    commands: Sequence[Sequence[str]]
    wanted: list[str] = field(default_factory=list)
    seconds: float = 0.0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kills", "ended", "old", "new", "torn", "mixed"), 0)
    )

    def run(self, number: int) -> subprocess.Popen[bytes]:
        """Start the command with one of its inputs."""
        arguments = [sys.executable, "-m", "nola_codec", *self.commands[number]]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def prepare(self) -> None:
        """Make both outputs once, and measure the time."""
        for number in (0, 1):
            begin = time.perf_counter()
            if self.run(number).wait() != 0:
                sys.exit(f"{self.name}: the command failed: {' '.join(self.commands[number])}")
            self.seconds = time.perf_counter() - begin
            self.wanted.append(hash_of(self.out))
        if self.wanted[0] == self.wanted[1]:
            sys.exit(f"{self.name}: both outputs are the same")

    def kill(self, moment: float, kind: signal.Signals) -> None:
        """Run with one input over the output of the other, kill it, and count what is there.

        A run that ends before the moment is no kill. It tells how long the command takes now.
        """
        begin = time.perf_counter()
        number = int(hash_of(self.out) == self.wanted[0])
        process = self.run(number)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
            process.wait()
            self.counts["kills"] += 1
        else:
            self.seconds = time.perf_counter() - begin
            self.counts["ended"] += 1
        found = hash_of(self.out)
        if found in self.wanted:
            self.counts["new" if found == self.wanted[number] else "old"] += 1
        else:
            self.counts["mixed" if can_be_read(self.out) else "torn"] += 1


def hash_of(path: Path) -> str:
    """The hash of a file, or of the names and the bytes of a directory; "-" if there is nothing."""
    if not path.exists():
        return "-"
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sha.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode() + file.read_bytes())
    return sha.hexdigest()


def can_be_read(path: Path) -> bool:
    """True if the output can be read, so that nothing tells a user that it is wrong."""
    try:
        read(path)
    except nola_codec.NolaError:
        return False
    return True


def make_model(folder: Path, adapter: Path) -> Path:
    """A base model of random weights with the shapes of an adapter."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    weights = {}
    for module in read(adapter).modules:
        name = module.name.removeprefix("base_model.model.")
        values = rng.standard_normal((module.lora_B.shape[0], module.lora_A.shape[1]), np.float32)
        weights[f"{name}.weight"] = values
    write_file(
        folder / "model.safetensors",
        {name: RawTensor("F32", value.shape, value.tobytes()) for name, value in weights.items()},
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neo"}))
    return folder


def make_jobs(folder: Path) -> list[Job]:
    """All commands, with two adapters of different weights and scalings."""
    sources, files = [], []
    for number, alpha in enumerate((2, 4)):
        source = folder / f"source{number}"
        shutil.copytree(ROOT / "examples" / "gptneo125m_movies", source)
        config = json.loads((source / "adapter_config.json").read_text())
        (source / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
        file = folder / f"{number}.nola"
        nola_codec.encode(source, file, size="3KB", seed=number)
        sources.append(source)
        files.append(str(file))
    base = make_model(folder / "base", sources[0])
    outs = {name: folder / "out" / name for name in ("a.nola", "adapter", "a.safetensors", "model")}
    (folder / "out").mkdir()
    encode = [["encode", str(s), "-q", "-f", "--size", "3KB", "-o", str(outs["a.nola"])] for s in sources]
    return [
        Job("encode", outs["a.nola"], [[*each, "--seed", str(i)] for i, each in enumerate(encode)]),
        Job("decode to a directory", outs["adapter"], [["decode", f, "-f", "-o", str(outs["adapter"])] for f in files]),
        Job("decode to a file", outs["a.safetensors"],
            [["decode", f, "-f", "-o", str(outs["a.safetensors"])] for f in files]),
        Job("decode --base", outs["model"],
            [["decode", f, "-q", "-f", "--base", str(base), "-o", str(outs["model"])] for f in files]),
    ]  # fmt: skip


def main() -> None:
    """Kill, count and print. The exit status is 1 if anything was torn, mixed or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    # A shell ignores SIGINT in what it runs in the background, and the commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        jobs = make_jobs(Path(temporary))
        for job in jobs:
            job.prepare()
        for turn in range(arguments.kills):
            job, kind = jobs[turn % len(jobs)], SIGNALS[turn // len(jobs) % len(SIGNALS)]
            before = job.counts["kills"]
            while job.counts["kills"] == before:
                job.kill(draw.uniform(0.4, 1.05) * job.seconds, kind)
        for job in jobs:
            job.run(0).wait()
        left = sorted(path.name for path in (Path(temporary) / "out").iterdir() if path.name.startswith("."))
        wrong = [job.name for job in jobs if hash_of(job.out) != job.wanted[0]]
    bad = sum(job.counts["torn"] + job.counts["mixed"] for job in jobs) + len(left) + len(wrong)
    if arguments.json:
        rows = [{"command": job.name, "seconds": job.seconds, **job.counts} for job in jobs]
        print(json.dumps({"rows": rows, "left": left, "wrong after one more run": wrong}, indent=2))
    else:
        print(table([[job.name, *job.counts.values()] for job in jobs], ["command", *jobs[0].counts]))
        print(f"left after one more run: {', '.join(left) or 'nothing'}; wrong: {', '.join(wrong) or 'nothing'}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
