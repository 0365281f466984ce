"""Run an engine over a plan: what `encode_many`, `decode_many` and `verify_many` share."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from nola_codec.errors import NolaError
from nola_codec.fleet.engine import ENGINES, Engine, available_memory, processors
from nola_codec.fleet.items import Item, Job, Outcome
from nola_codec.fleet.schedule import Limits, Schedule
from nola_codec.fleet.watcher import Watcher
from nola_codec.sizes import parse_size

_MOST_WORKERS = 10_000


@dataclass(frozen=True)
class RunSettings:
    """The options of `keywords.RunKeywords`, checked.

    Raises:
        NolaError: ``option``: A value is out of range.
        EncodeError: ``option``: The memory is no size.
    """

    engine: str = "local"
    workers: int | None = None
    memory: int | str | None = None
    retries: int = 1
    ray_address: str | None = None
    watch: Watcher | None = None
    begin: float = field(default_factory=time.perf_counter)
    """When the run began, for its seconds."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise _refusal(f"engine: expected one of {', '.join(ENGINES)}, found {self.engine!r}")
        if self.workers is not None and not 1 <= self.workers <= _MOST_WORKERS:
            raise _refusal(f"workers: expected 1 to {_MOST_WORKERS}, found {self.workers}")
        if self.retries < 0:
            raise _refusal(f"retries: expected 0 or more, found {self.retries}")
        if self.ray_address is not None and self.engine != "ray":
            raise _refusal("ray_address serves the engine ray")
        if self.memory_bytes <= 0:
            raise _refusal(f"memory: expected a positive size, found {self.memory}")

    @property
    def memory_bytes(self) -> int:
        """The bytes that all workers may take together."""
        if self.memory is None:
            return available_memory()
        return parse_size(self.memory) if isinstance(self.memory, str) else self.memory

    def open_engine(self, jobs: int) -> Engine:
        """Return the engine for a number of jobs."""
        workers = self.workers or processors()
        if self.engine == "ray":
            from nola_codec.fleet.ray_engine import RayEngine

            return RayEngine(self.ray_address, self.workers)
        from nola_codec.fleet.local_engine import LocalEngine

        workers = max(1, min(workers, jobs))
        return LocalEngine(workers, threads=max(1, processors() // workers))


@dataclass(frozen=True)
class RunResult:
    """The counts at the end of a run, and True if it was stopped before all items were finished."""

    done: int
    unchanged: int
    retries: int
    is_stopped: bool


def run_items(
    items: Sequence[Item],
    settings: RunSettings,
    *,
    make_job: Callable[[Item, int], Job],
    record: Callable[[Item, Outcome, int], None],
) -> RunResult:
    """Run the engine over items until all are finished, or until Ctrl-C; arguments as of `Schedule`."""
    if not items:
        return RunResult(0, 0, 0, is_stopped=False)
    engine = settings.open_engine(len(items))
    try:
        limits = Limits(settings.memory_bytes, settings.retries)
        schedule = Schedule(items, engine, limits, make_job=make_job, record=record, watch=settings.watch)
        with _stop_on_interrupt() as stop:
            is_whole = schedule.run(stop)
    finally:
        engine.close()
    counts = schedule.counts
    return RunResult(counts["done"], counts["unchanged"], schedule.retries, is_stopped=not is_whole)


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets. A second Ctrl-C raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _refusal(message: str) -> NolaError:
    return NolaError(message, code="option")
