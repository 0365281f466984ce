"""An engine of processes on this machine.

Each worker is a `ProcessPoolExecutor` of one process. If a process dies, by a fault or because the system ran out of
memory, only its own job is lost, and one new process takes its place. One pool of many processes would lose the jobs of
all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import FrameType

from nola_codec.errors import NolaError
from nola_codec.fleet.engine import Finished
from nola_codec.fleet.items import Job, Outcome
from nola_codec.fleet.jobs import run_job

_BAD_STARTS = 3
"""How many processes may die while they start, before any has worked, until this is taken for a lasting fault."""
_PATIENCE = 3.0  # seconds that a worker has to end by itself


class LocalEngine:
    """Processes that are started when they are first needed; see `engine.Engine`."""

    keeps_to_memory = False

    def __init__(self, workers: int, threads: int) -> None:
        """Prepare the workers.

        Args:
            workers: How many jobs run at the same time.
            threads: The threads of a worker.
        """
        self._workers = [_Worker(threads) for _ in range(workers)]
        self._has_worked = False
        self._bad_starts = 0

    def room(self) -> int:
        return sum(worker.ticket is None for worker in self._workers)

    def start(self, ticket: int, job: Job, memory: int) -> None:
        next(worker for worker in self._workers if worker.ticket is None).start(ticket, job)

    def wait(self, seconds: float) -> list[Finished]:
        futures = [worker.future for worker in self._workers if worker.future is not None]
        wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        return [self._take(worker) for worker in self._workers if worker.future is not None and worker.future.done()]

    def _take(self, worker: _Worker) -> Finished:
        finished = worker.take()
        self._has_worked = self._has_worked or worker.has_started
        self._bad_starts += not worker.has_started
        if self._bad_starts >= _BAD_STARTS and not self._has_worked:
            message = (
                "worker processes cannot start, for the reason above; a script that calls this needs its main part "
                'under `if __name__ == "__main__":`'
            )
            raise NolaError(message, code="no-workers")
        return finished

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        limit = time.monotonic() + _PATIENCE
        for worker in self._workers:
            worker.join(limit)


class _Worker:
    """One process, the job that it does, and the number of the job."""

    def __init__(self, threads: int) -> None:
        self.ticket: int | None = None
        self.has_started = False
        self.future: Future[Outcome] | None = None
        self._threads = threads
        self._executor: ProcessPoolExecutor | None = None
        self._process_id: Future[int] | None = None

    def start(self, ticket: int, job: Job) -> None:
        try:
            self._submit(job)
        except BrokenProcessPool:  # the process died between two jobs
            self._executor = None
            self._submit(job)
        self.ticket = ticket

    def _submit(self, job: Job) -> None:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(self._threads,))
            self._process_id = self._executor.submit(os.getpid)
        self.future = self._executor.submit(run_job, job)

    def take(self) -> Finished:
        """Return the finished job, and note if its process had started at all."""
        assert self.future is not None, "no job was started"
        assert self.ticket is not None, "no job was started"
        future, ticket = self.future, self.ticket
        self.future = self.ticket = None
        try:
            outcome = future.result()
            self.has_started = True
            return Finished(ticket, outcome)
        except BrokenProcessPool:
            assert self._process_id is not None, "the process was asked for its number"
            self.has_started = self._process_id.exception() is None
            self._executor = None
            return Finished(ticket, None)

    def end(self) -> None:
        """Ask the process to end: to clean up behind its job, if it has one."""
        if self._executor is None:
            return
        if self.future is not None and (process := self._process()) is not None:
            process.terminate()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self, limit: float) -> None:
        """Wait for the end of the process until a time of the monotonic clock, and kill it then."""
        process = self._process()
        if process is None:
            return
        process.join(max(0.0, limit - time.monotonic()))
        if process.is_alive():
            process.kill()

    def _process(self) -> multiprocessing.process.BaseProcess | None:
        if self._process_id is None or not self._process_id.done() or self._process_id.exception() is not None:
            return None
        number = self._process_id.result()
        return next((child for child in multiprocessing.active_children() if child.pid == number), None)


def _prepare(threads: int) -> None:
    """Set up a worker process before NumPy is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = "1"
    os.environ["NOLA_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _leave(number: int, frame: FrameType | None) -> None:
    """End by an exception, so that a temporary file is removed."""
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone; else it would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
