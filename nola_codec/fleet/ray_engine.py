"""An engine of Ray tasks: on a cluster that is there, or on a new one on this machine.

A job is one task. Ray starts a task only where the processors and the memory that it asks for are free. Tasks that wait
are bounded, so that millions of items do not fill the driver. If a worker or a node dies, only its tasks are lost, and
the run starts them again. All nodes must see the sources and the destination under the same paths or URLs.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from typing import Any

from nola_codec.errors import NolaError, require_package
from nola_codec.fleet.engine import Finished
from nola_codec.fleet.items import Job, Outcome

_AHEAD = 2  # tasks for each processor: one that runs and one that waits
_REFRESH = 5.0  # seconds
_SHARE_OF_NODE = 0.9


class RayEngine:
    """Tasks of a Ray cluster; see `engine.Engine`."""

    keeps_to_memory = True

    def __init__(self, address: str | None, workers: int | None) -> None:
        """Connect to a cluster, or start one.

        Args:
            address: The address of the cluster; None is $RAY_ADDRESS, or a new cluster on this machine.
            workers: The most tasks at a time; of a new cluster also its processors. None is as many as there are.

        Raises:
            MissingPackage: ``needs-ray``.
            NolaError: ``no-cluster``: The cluster does not answer.
        """
        require_package("the engine ray", "ray", "ray", instead="the engine local needs no package")
        # Ray has types, but only where it is installed.
        ray: Any = importlib.import_module("ray")
        self._ray = ray
        self._is_own = not ray.is_initialized()
        if self._is_own:
            found = address or os.environ.get("RAY_ADDRESS") or "local"
            settings: dict[str, Any] = {}
            if found == "local":
                settings = {"num_cpus": workers, "include_dashboard": False}
                logging.getLogger("ray").setLevel(logging.ERROR)  # its advice is for clusters that others can reach
            try:
                ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, **settings)
            except (ConnectionError, RuntimeError, ValueError) as e:
                message = f"no Ray cluster answers: {str(e).splitlines()[0]}"
                raise NolaError(message, code="no-cluster", where=found) from e
        self._workers = workers
        self._running: dict[Any, int] = {}
        self._looked = -_REFRESH
        self._capacity, self._node_memory = 1, 0
        self._task = ray.remote(num_cpus=1, max_retries=0)(_run_job_in_task)

    def room(self) -> int:
        self._look()
        return self._capacity - len(self._running)

    def start(self, ticket: int, job: Job, memory: int) -> None:
        self._look()
        # A task that asks for more than the largest node has would wait for ever.
        asked = min(memory, int(_SHARE_OF_NODE * self._node_memory))
        task = self._task.options(memory=asked) if asked > 0 else self._task
        self._running[task.remote(job)] = ticket

    def wait(self, seconds: float) -> list[Finished]:
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready:  # whatever else is ready by now
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [Finished(self._running.pop(task), self._outcome(task)) for task in ready]

    def close(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        if self._is_own:
            self._ray.shutdown()

    def _outcome(self, task: Any) -> Outcome | None:
        try:
            outcome: Outcome = self._ray.get(task)
        except self._ray.exceptions.RayTaskError:  # nola-codec is missing there, or another version
            raise
        except self._ray.exceptions.RayError:
            return None
        return outcome

    def _look(self) -> None:
        """Ask for the size of the cluster, which may grow while a run lasts."""
        now = time.monotonic()
        if now - self._looked < _REFRESH:
            return
        self._looked = now
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        processors = int(sum(node.get("CPU", 0) for node in nodes))
        self._node_memory = int(max((node.get("memory", 0) for node in nodes), default=0))
        most = processors if self._workers is None else min(processors, self._workers)
        self._capacity = max(1, _AHEAD * most)


def _run_job_in_task(job: Job) -> Outcome:
    """Do a job with one thread; Ray gives each task one processor."""
    os.environ["NOLA_THREADS"] = "1"
    from nola_codec.fleet.jobs import run_job

    return run_job(job)
