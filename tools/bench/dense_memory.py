"""Measure the memory of an encode of the change of a whole model, on synthetic checkpoints of 1, 2, 4 ... shards.

    python tools/bench/dense_memory.py [--shards 1 2 4] [--matrices 16] [--side 2048] [--json]

Each shard holds matrices in bfloat16 that change by a few strong components and noise. Every encode runs in a process
of its own, whose peak of anonymous memory is sampled. Arrays over 64 MiB do not count: they lie in nameless files under
$TMPDIR, whose pages the system may drop. That folder must not be in memory itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import table


def checkpoint(folder: Path, shards: int, matrices: int, side: int) -> tuple[Path, Path]:
    """Make a base and a tuned model, and return the directories (tuned, base)."""
    import torch
    from safetensors.torch import save_file

    paths = folder / "tuned", folder / "base"
    weight_map: dict[str, str] = {}
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"model_type": "llama"}')
    torch.manual_seed(0)
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        base = {f"model.layers.{shard}.{i}.weight": torch.randn(side, side).bfloat16() for i in range(matrices)}
        tuned = {}
        for key, value in base.items():
            change = torch.randn(side, 4) @ torch.randn(4, side) * 0.01 + torch.randn(side, side) * 0.01
            tuned[key] = (value.float() + change).bfloat16()
        for path, tensors in zip(paths, (tuned, base), strict=True):
            save_file(tensors, path / name, {"format": "pt"})
        weight_map |= dict.fromkeys(base, name)
    for path in paths:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return paths


def encode(tuned: Path, base: Path) -> dict[str, float]:
    """Encode in this process, and return the peak of anonymous memory in bytes, the seconds and the size."""
    import nola_codec

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, 1024 * int(status.split("RssAnon:")[1].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    report = nola_codec.encode_delta(tuned, base, ratio=16)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"anonymous": peak, "seconds": seconds, "bytes": report.bytes, "parameters": report.parameters}


def main() -> None:
    """Measure, and print a table (or JSON with --json)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(encode(*arguments.one)))
        return
    found: list[dict[str, Any]] = []
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            paths = checkpoint(Path(folder), shards, arguments.matrices, arguments.side)
            command = [sys.executable, __file__, "--one", *map(str, paths)]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        shard = 2 * arguments.matrices * arguments.side**2
        found.append({"shards": shards, "shard_bytes": shard, **json.loads(made.stdout)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        [r["shards"], f"{r['parameters']:,}", f"{r['shard_bytes'] / 1e6:.0f} MB", f"{r['anonymous'] / 1e6:.0f} MB",
         f"{r['anonymous'] / r['shard_bytes']:.2f}", f"{r['seconds']:.0f} s"]
        for r in found
    ]  # fmt: skip
    print(table(rows, ["shards", "parameters", "a shard", "peak, anonymous", "of a shard", "time"]))


if __name__ == "__main__":
    main()
