"""What an engine is: something that does jobs elsewhere, several at a time, and survives the death of a worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nola_codec.fleet.items import Job, Outcome

ENGINES = ("local", "ray")

_WORKER_BYTES = 120_000_000
"""The memory of a worker before it has read anything: Python, NumPy and buffers."""
_WORK_FACTOR = 10
"""The bytes of memory that a byte of an fp16 source takes at most: docs/scale.md has the measurement."""
_SHARE_OF_MEMORY = 0.8
_FALLBACK_MEMORY = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that an engine is done with.

    Attributes:
        ticket: The number that the job was started under.
        outcome: What became of it; None if its worker died.
    """

    ticket: int
    outcome: Outcome | None


class Engine(Protocol):
    """Does jobs in other processes. One thread uses it."""

    keeps_to_memory: bool
    """True if the engine itself starts a job only where there is memory for it."""

    def room(self) -> int:
        """Return how many jobs can be started now."""
        ...

    def start(self, ticket: int, job: Job, memory: int) -> None:
        """Start a job that may take so many bytes of memory. Only call this if there is room."""
        ...

    def wait(self, seconds: float) -> list[Finished]:
        """Wait until a job is finished, but no longer than this; return all that are finished."""
        ...

    def close(self) -> None:
        """End the workers. Jobs that are not finished are given up, and leave no half output."""
        ...


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_memory(source_bytes: int) -> int:
    """Return an estimate of the memory in bytes that a worker takes for a source of this size."""
    return _WORKER_BYTES + _WORK_FACTOR * source_bytes


def available_memory() -> int:
    """Return the bytes that workers may take together: 80% of what is free, within the limit of a container."""
    free = [_FALLBACK_MEMORY]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or free
    except (OSError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        if most != "max":
            free.append(int(most) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no container, or an older kind of them
    return max(1, int(_SHARE_OF_MEMORY * min(free)))
