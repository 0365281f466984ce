"""What programs that measure share: time and memory of work in a process of its own, the state before it, options."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, short: str) -> None:
    """Add the options of programs that keep their figures; `short` is the help of --short."""
    parser.add_argument("--short", action="store_true", help=short)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--keep", action="store_true", help="keep the figures (tools/experiments/results.py)")
    parser.add_argument("--child", help=argparse.SUPPRESS)


STATUS = Path("/proc/self/status")
"""Where Linux tells about this process; other systems have none."""


def resident_peak() -> int:
    """Return the peak resident set of this process in bytes.

    The `ru_maxrss` of Linux will not do: a process inherits it from the one that started it.
    """
    if STATUS.exists():
        return _read_status("VmHWM", STATUS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _read_status(key: str, file: Path) -> int:
    """Return a value in bytes from the status that Linux gives of a process; 0 for a process that has ended."""
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def _begin_peak() -> int:
    """Let the peak of this process begin anew where the system allows it, and return the peak in bytes."""
    if STATUS.exists():
        with contextlib.suppress(OSError):
            STATUS.with_name("clear_refs").write_text("5")
    return resident_peak()


def measure_call(work: Callable[[], object], least: float = 0.5, most_calls: int = 50) -> Figures:
    """Call a function three times, and further until `least` seconds are over, and return what the best call took.

    The first call loads and makes what is needed once. A function that takes over `least` seconds is called twice.

    Returns:
        ``seconds``, the shortest time; ``cpu``, the least processor time of all threads in seconds; ``memory``, the
        bytes that the peak resident set grew by in the first call; ``calls``.
    """
    gc.collect()
    before = _begin_peak()
    begin = time.process_time()
    times: list[tuple[float, float]] = []
    memory = 0
    while len(times) < most_calls:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - start, time.process_time() - cpu))
        if len(times) == 1:
            memory = resident_peak() - before
        elif time.process_time() - begin > least and (len(times) > 2 or times[-1][1] > least):
            break
    seconds, processor = (min(each) for each in zip(*times, strict=True))
    return {"seconds": seconds, "cpu": processor, "memory": memory, "calls": len(times)}


def run_child(program: str, task: object, environment: Mapping[str, str] | None = None) -> Figures:
    """Run ``program --child TASK`` in a new process, and return the JSON of the last line that it prints.

    Raises:
        SystemExit: The child failed.
    """
    command = [sys.executable, program, "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        sys.exit(f"{Path(program).name}: {json.dumps(task)[:200]} failed")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def warm(folder: Path) -> None:
    """Read every file of a directory, so that it is in the page cache if memory allows."""
    for file in sorted(folder.iterdir()):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def sync(folder: Path) -> None:
    """Sync every file of a directory to disk."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _peak_of(process: subprocess.Popen[bytes]) -> int:
    """Return the peak resident set in bytes of a process, read from /proc until it ends."""
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, _read_status("VmHWM", Path(f"/proc/{process.pid}/status")))
        except OSError:
            break
        time.sleep(0.01)
    return peak


def measure_command(command: Sequence[str], out: Path | None = None, **environment: str) -> Figures:
    """Run a command and measure its process.

    Args:
        command: The command line.
        out: A directory that the command writes, which is synced to disk afterwards; None for no sync.
        **environment: Variables to set.

    Returns:
        ``seconds``; ``synced``, the seconds with the sync; ``cpu``, the processor time in seconds; ``peak``, the peak
        resident set in bytes; ``output``. For a command that fails only ``failed``, the last line that it printed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment)
    result: dict[str, int] = {}
    watcher = threading.Thread(target=lambda: result.update(peak=_peak_of(process)))
    watcher.start()
    output = process.communicate()[0].decode(errors="replace")
    seconds = time.perf_counter() - start
    if out is not None and not process.returncode:
        sync(out)
    synced = time.perf_counter() - start
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        return {"failed": " ".join(output.strip().splitlines()[-1:])[:100] or f"exit {process.returncode}"}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "synced": synced, "cpu": cpu, "peak": result["peak"], "output": output}
