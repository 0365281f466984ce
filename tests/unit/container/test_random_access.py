"""Threads and forked processes that read one open file at once get the right bytes."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import nola_codec
from nola_codec.api.opened import NolaFile
from nola_codec.container import reader
from nola_codec.container.random_access import RandomAccess

THREADS, FORKS, CALLS = 8, 4, 25


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns every ten microseconds, so that a race shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def data() -> bytes:
    """A file of many blocks."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for layer in range(24):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((4, 64)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((48, 4)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    made, _ = nola_codec.encode_bytes(tensors, config=config, nmse=0.05, block_size=500)
    return made


def faults(file: NolaFile[Any], wanted: dict[str, tuple[bytes, ...]], seed: int) -> list[str]:
    """Decode tensors drawn at random, and return what went wrong."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(CALLS):
        name = list(wanted)[int(rng.integers(len(wanted)))]
        try:
            if tuple(factor.tobytes() for factor in file.factors(name)) != wanted[name]:
                found.append(f"{name}: other bits")
        except nola_codec.NolaError as error:
            found.append(str(error))
    return found


def in_fork(work: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """Start a forked process, and return a function that waits for what it found."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(send, "wb") as stream:
            stream.write(pickle.dumps(work()))
        os._exit(0)
    os.close(send)

    def wait() -> list[str]:
        with os.fdopen(receive, "rb") as stream:
            got = stream.read()
        os.waitpid(child, 0)
        found: list[str] = pickle.loads(got) if got else ["the process died"]
        return found

    return wait


def wanted_of(data: bytes) -> dict[str, tuple[bytes, ...]]:
    with nola_codec.load(data, "numpy") as file:
        assert len(file.header.blocks) > 5
        return {name: tuple(factor.tobytes() for factor in file.factors(name)) for name in file.names()}


@pytest.mark.parametrize("kind", ["path", "bytes", "file", "stream"])
def test_threads(kind: str, data: bytes, tmp_path: Path) -> None:
    wanted, path = wanted_of(data), tmp_path / "task.nola"
    path.write_bytes(data)
    sources: dict[str, Callable[[], Any]] = {
        "path": lambda: path, "bytes": lambda: data, "file": lambda: path.open("rb"), "stream": lambda: io.BytesIO(data)
    }  # fmt: skip
    source = sources[kind]()
    with nola_codec.load(source, "numpy") as file, ThreadPoolExecutor(THREADS) as pool:
        assert not any(pool.map(lambda seed: faults(file, wanted, seed), range(THREADS)))
    if kind == "file":
        source.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forks(data: bytes, tmp_path: Path) -> None:
    wanted, path = wanted_of(data), tmp_path / "task.nola"
    path.write_bytes(data)
    with nola_codec.load(path, "numpy") as file:
        waits = [in_fork(lambda seed=seed: faults(file, wanted, seed)) for seed in range(FORKS)]  # type: ignore[misc]
        assert not faults(file, wanted, FORKS)
        assert not [found for wait in waits for found in wait()]


def test_a_check_of_all_rungs_disturbs_nobody(tmp_path: Path) -> None:
    """`verify` looks at every rung, while other threads read the last one."""
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {
        "base_model.model.q_proj.lora_A.weight": rng.standard_normal((8, 256)).astype(np.float32),
        "base_model.model.q_proj.lora_B.weight": rng.standard_normal((256, 8)).astype(np.float32),
    }
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    made, report = nola_codec.encode_bytes(tensors, config=config, size=3000, rungs=(700, 1500))
    assert len(report.rungs) == 3
    wanted = {}
    with nola_codec.load(made, "numpy") as file:
        wanted = {name: tuple(factor.tobytes() for factor in file.factors(name)) for name in file.names()}
    with nola_codec.load(made, "numpy") as file, ThreadPoolExecutor(2) as pool:
        checks = pool.submit(lambda: [file.verify() for _ in range(5)])
        assert not faults(file, wanted, 0)
        checks.result()


def test_a_stream_stays_where_it_was(data: bytes) -> None:
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    with reader.open_container(stream) as container:
        container.check_content()
        assert stream.tell() == 6


def test_the_end_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"0123456789")
    sources: list[bytes | BinaryIO] = [b"0123456789", io.BytesIO(b"0123456789"), path.open("rb")]
    for source in sources:
        access = RandomAccess(source)
        assert access.length == 10
        assert access.read(8, 5) == b"89"
        assert access.read(20, 5) == b""
    sources[-1].close()  # type: ignore[union-attr]
