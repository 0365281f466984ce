"""encode-many, decode-many and verify-many as commands; workers and whole runs are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_adapters import make_tensors, write_adapter

import nola_codec
from nola_codec.fleet.manifest import read_manifest
from nola_codec.fleet.report import count_warnings
from nola_codec.fleet.rows import Row

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
_LONG = 120.0  # seconds that a loaded machine may take
_KEY = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """Two small adapters, and `long`, with which a worker is busy for about a second."""
    for seed, name in enumerate(("a", "b")):
        write_adapter(tmp_path / "loras" / name, make_tensors(seed))
    write_adapter(tmp_path / "loras" / "long", large_tensors(0), {"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    return tmp_path / "loras"


def large_tensors(seed: int) -> dict[str, Any]:
    """The tensors of an adapter of rank 4 on 12 weights of 512 by 512."""
    rng = np.random.default_rng(seed)
    return {
        _KEY.format(layer, name, side): rng.standard_normal((4, 512) if side == "A" else (512, 4)).astype(np.float32)
        for layer in range(6)
        for name in ("q_proj", "v_proj")
        for side in "AB"
    }


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, which is gone at the end."""
    command = [sys.executable, "-m", "nola_codec", *(str(a) for a in arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """The first true value of a condition, which comes true while the process runs."""
    end = time.monotonic() + _LONG
    while time.monotonic() < end:
        if value := condition():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a run."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or b"spawn_main" not in (folder / "cmdline").read_bytes():
                continue
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid:
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def begun(out: Path, name: str) -> bool:
    """True if a worker was given the item."""
    journal = out / ".fleet" / "journal.jsonl"
    return journal.exists() and name in journal.read_text()


def test_a_killed_worker_is_replaced_and_its_item_is_tried_again(loras: Path) -> None:
    out = loras.parent / "files"
    arguments = ("encode-many", loras, "-o", out, "--ratio", 4, "--workers", 1, "--json", "-q")
    with started(*arguments) as process:
        (worker,) = wait_for(lambda: begun(out, "long.nola") and workers_of(process), process)
        os.kill(worker, signal.SIGKILL)
        printed, errors = process.communicate(timeout=_LONG)
    report = json.loads(printed)
    assert (process.returncode, report["done"], report["retries"], report["failed"]) == (0, 3, 1, []), errors
    rows = read_manifest(out)
    assert {name: row.attempts for name, row in rows.items()} == {"a.nola": 1, "b.nola": 1, "long.nola": 2}
    assert all(nola_codec.verify(out / name)["file_sha256"] == row.output_digest for name, row in rows.items())


@pytest.mark.slow  # Ray starts a dozen processes
def test_ray_loses_nothing_and_does_nothing_twice_when_workers_are_killed(loras: Path) -> None:
    for number in range(4):
        write_adapter(loras / f"more{number}", large_tensors(number + 1), {"peft_type": "LORA", "r": 4})
    out = loras.parent / "files"
    arguments = ("encode-many", loras, "-o", out, "--ratio", 4, "--engine", "ray", "--workers", 2, "--json", "-q")
    with started(*arguments) as process:
        killed: list[int] = []
        while len(killed) < 2:
            busy = wait_for(lambda: [pid for pid in ray_workers() if pid not in killed], process)
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])
        printed, errors = process.communicate(timeout=_LONG)
    report = json.loads(printed)
    assert (process.returncode, report["done"], report["failed"]) == (0, 7, []), errors
    rows = read_manifest(out)
    assert 1 <= sum(row.attempts > 1 for row in rows.values()) <= 2
    alone = nola_codec.encode_many(loras, loras.parent / "alone", encoding={"ratio": 4.0})
    assert alone.done == 7
    assert {name: row.output_digest for name, row in read_manifest(loras.parent / "alone").items()} == {
        name: row.output_digest for name, row in rows.items()
    }


def ray_workers() -> list[int]:
    """The processes of Ray that do an item."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"ray::_run_job"):
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_what_it_did_and_goes_on(number: signal.Signals, loras: Path) -> None:
    out = loras.parent / "files"
    arguments = ("encode-many", loras, "-o", out, "--ratio", 4, "--workers", 1, "--json")
    with started(*arguments) as process:
        wait_for(lambda: begun(out, "long.nola") and workers_of(process), process)
        os.kill(process.pid, number)
        printed, errors = process.communicate(timeout=_LONG)
    report = json.loads(printed)
    assert (process.returncode, report["interrupted"], report["failed"]) == (130, True, [])
    assert report["done"] + report["unfinished"] == 3
    assert report["unfinished"] >= 1
    assert "the same command goes on" in errors
    assert list(out.rglob("*.tmp")) == []
    again = nola_codec.encode_many(loras, out, encoding={"ratio": 4.0}, workers=1)
    assert (again.done, again.unchanged, again.failed) == (report["unfinished"], report["done"], ())


def test_a_killed_run_goes_on_and_its_workers_end(loras: Path) -> None:
    out = loras.parent / "files"
    with started("encode-many", loras, "-o", out, "--ratio", 4, "--workers", 1, "-q") as process:
        # `long` comes first, and is finished when the next one begins.
        wait_for(lambda: begun(out, "a.nola") or begun(out, "b.nola"), process)
        workers = workers_of(process)
        process.kill()
        process.wait()
    end = time.monotonic() + _LONG
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.01)
    assert [worker for worker in workers if Path(f"/proc/{worker}/exe").exists()] == []
    (out / ".a.nola.0123456789ab.tmp").write_bytes(b"half")  # what a worker that was killed leaves
    again = nola_codec.encode_many(loras, out, encoding={"ratio": 4.0}, workers=1)
    assert again.unchanged >= 1
    assert (again.done + again.unchanged, again.failed) == (3, ())
    assert list(out.rglob("*.tmp")) == []
    assert not any(row.status == "started" for row in read_manifest(out).values())


def test_failures_are_listed_at_the_end(run: Callable[..., Any], loras: Path) -> None:
    (loras / "page.safetensors").write_text("<html>404</html>")
    out = loras.parent / "files"
    result = run("encode-many", f"{loras}/[ap]*", "-o", out, "--ratio", 2, "--workers", 1, "-q")
    assert result.status == 1
    lines = result.out.splitlines()
    assert lines[0].startswith("failed  page.nola: ")
    assert lines[0].endswith("[html-page]")
    assert lines[1].startswith("1 encoded, 0 unchanged, 1 failed of 2")
    assert "smaller than the sources" in lines[2]
    assert lines[3] == f"manifest  {out}/manifest.parquet"
    result = run("verify-many", out, "--json", "--workers", 1)
    assert (result.status, result.json["done"], result.json["total"], result.json["manifest"]) == (0, 1, 1, None)


def test_warnings_of_files_are_counted(run: Callable[..., Any], loras: Path) -> None:
    shutil.rmtree(loras / "long")
    shutil.copy(loras / "a" / "adapter_model.safetensors", loras / "c.safetensors")
    out = loras.parent / "files"
    arguments = ("encode-many", loras, "-o", out, "--error", 0.4, "--workers", 1, "-q")
    done = run(*arguments)
    assert done.status == 0
    warnings = "1 with an assumed scaling, 3 with an effective error over 0.25"
    assert done.out.splitlines()[-1].startswith("warnings  ")
    for count in warnings.split(", "):
        assert count in done.out
    assert run(*arguments, "--json").json["warnings"] == {
        "with an assumed scaling": 1,
        "with an effective error over 0.25": 3,
    }
    rounded = run("decode-many", out, "-o", loras.parent / "again", "--dtype", "bf16", "--workers", 1, "-q")
    assert "warnings  3 with notes; " in rounded.out


def test_a_chain_of_unrelated_adapters_names_the_option(run: Callable[..., Any], tmp_path: Path) -> None:
    for name, layers in (("run-1", (0, 1)), ("run-2", (7, 8))):
        tensors = {
            _KEY.format(layer, "q_proj", side): np.ones((4, 32) if side == "A" else (32, 4), np.float32)
            for layer in layers
            for side in "AB"
        }
        write_adapter(tmp_path / "runs" / name, tensors, {"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    done = run("encode-many", tmp_path / "runs", "-o", tmp_path / "files", "--chain", "-q")
    assert done.status == 1
    assert "--chain codes it as the difference to run-1.nola: leave --chain out for unrelated adapters" in done.out


@pytest.mark.parametrize("column", ["options", "sise"])
def test_an_unknown_column_is_refused_in_whole_sentences(column: str, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"source,{column}\na,b\n")
    err = run("encode-many", "--manifest", tmp_path / "list.csv", "-o", tmp_path / "files").err
    assert re.search(r"[.?] A column of your own begins with an underscore \[bad-manifest\]$", err)


def test_a_file_larger_than_fp16_is_counted() -> None:
    row = Row("a.nola", "a", "done", ratio=0.5, nmse=0.3)
    found = count_warnings([row, replace(row, ratio=2.0, nmse=0.1, notes=("the reference is needed",))])
    assert found == {"with an NMSE over 0.25": 1, "larger than fp16": 1, "with notes": 1}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("encode-many", "-o", "out"), 3, "no sources; give paths"),
        (("encode-many", "nothing/*", "-o", "out"), 3, "nothing/*: no adapters found"),
        (("encode-many", "loras", "-o", "out", "--ratio", "3", "--size", "3KB"), 2, "Give only one of --size, --ratio"),
        (("encode-many", "loras"), 2, "--output"),
        (("decode-many", "loras", "-o", "out", "--ending", ".zip"), 2, ".safetensors"),
        (("encode-many", "--manifest", "list.jsonl", "-o", "out"), 3, "list.jsonl: no such file"),
        (("encode-many", "loras", "-o", "loras/a/adapter_config.json"), 2, "expected a directory"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], status: int, message: str, run: Callable[..., Any], loras: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(loras.parent)
    result = run(*arguments)
    assert result.status == status
    assert message in result.err
    assert not (loras.parent / "out").exists()
