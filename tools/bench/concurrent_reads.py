"""Read one open file from several threads and forked processes at once, and compare each tensor with the right one.

    python tools/bench/concurrent_reads.py [--calls 10000] [--threads 8] [--forks 4] [--json]

The file has many blocks, so that reads go to different places of it. It is opened once; its threads and the processes
that are forked from it share the open file. Each call decodes one tensor. A row counts the calls, those with other
bits, and those that raised an error.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import nola_codec
from nola_codec.api.opened import NolaFile
from nola_codec.rendering import render_table

MODULES = 96
"""Modules of the adapter that is made here; as large as they are, a block holds a few of them."""


def make_file(path: Path) -> None:
    """Encode an adapter of random factors, 1536 x 1536 at rank 16, which takes several blocks."""
    rng = np.random.default_rng(0)
    tensors = {}
    for number in range(MODULES):
        for side, shape in (("lora_A", (16, 1536)), ("lora_B", (1536, 16))):
            key = f"base_model.model.model.layers.{number}.self_attn.q_proj.{side}.weight"
            tensors[key] = rng.standard_normal(shape).astype(np.float32)
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": ["q_proj"]}
    nola_codec.encode(tensors, path, config=config, nmse=0.1)


def count_faults(file: NolaFile[Any], wanted: Mapping[str, tuple[bytes, ...]], calls: int, seed: int) -> list[int]:
    """Decode tensors drawn at random; return how many were wrong, and how many calls raised an error."""
    rng = np.random.default_rng(seed)
    names = list(wanted)
    wrong = failed = 0
    for _ in range(calls):
        name = names[int(rng.integers(len(names)))]
        try:
            found = tuple(factor.tobytes() for factor in file.factors(name))
        except nola_codec.NolaError:
            failed += 1
        else:
            wrong += found != wanted[name]
    return [wrong, failed]


def in_threads(read: Callable[[int], list[int]], threads: int) -> list[int]:
    """Run a reader in several threads, and return the sum of what each counts."""
    with ThreadPoolExecutor(threads) as pool:
        return [sum(each) for each in zip(*pool.map(read, range(threads)), strict=True)]


def in_forks(read: Callable[[int], list[int]], forks: int) -> list[int]:
    """Run a reader in several forked processes at once, and return the sum of what each counts."""
    children = []
    for number in range(forks):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(send, json.dumps(read(number)).encode())
            os._exit(0)
        os.close(send)
        children.append((child, receive))
    counted = []
    for child, receive in children:
        with os.fdopen(receive) as stream:
            counted.append(json.loads(stream.read() or "[0, 1]"))  # a child that died counts as a call that failed
        os.waitpid(child, 0)
    return [sum(each) for each in zip(*counted, strict=True)]


def main() -> None:
    """Count the faults of threads, then of forks, then of threads in forks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="calls of each row")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--forks", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.nola"
        make_file(path)
        with nola_codec.load(path, "numpy") as file:
            wanted = {name: tuple(factor.tobytes() for factor in file.factors(name)) for name in file.names()}
            blocks = len(file.header.blocks)
            share = given.calls // (given.threads * given.forks)

            def read(seed: int, calls: int) -> list[int]:
                return count_faults(file, wanted, calls, seed)

            def in_both(fork: int) -> list[int]:
                return in_threads(lambda number: read(100 * fork + number, share), given.threads)

            runs: dict[str, Callable[[], list[int]]] = {
                f"{given.forks} forks": lambda: in_forks(lambda n: read(n, given.calls // given.forks), given.forks),
                f"{given.forks} forks of {given.threads} threads": lambda: in_forks(in_both, given.forks),
                f"{given.threads} threads": lambda: in_threads(
                    lambda n: read(n, given.calls // given.threads), given.threads
                ),
            }
            for name, run in runs.items():
                start = time.perf_counter()
                wrong, failed = run()
                rows.append({
                    "readers": name, "blocks": blocks, "calls": given.calls, "wrong": wrong, "failed": failed,
                    "seconds": round(time.perf_counter() - start, 1),
                })  # fmt: skip
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        print("\n".join(render_table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])))


if __name__ == "__main__":
    main()
