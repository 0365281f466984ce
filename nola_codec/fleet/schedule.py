"""Give items to an engine, as many at a time as processors and memory allow, and write down what comes back.

The largest items come first: a small one fits into any gap at the end, and the time left is known early. An item that
needs more memory than there is runs alone. So does an item whose worker died, since lack of memory is the usual reason.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nola_codec.fleet.engine import Engine, Finished, work_memory
from nola_codec.fleet.items import INTERRUPTED, WORKER_DIED, Item, Job, Outcome
from nola_codec.fleet.watcher import Watcher

_TICK = 0.25  # seconds


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        memory: The bytes that all running items may take together, by estimate.
        retries: How often an item is started again after its worker died.
    """

    memory: int
    retries: int


@dataclass
class _Running:
    item: Item
    attempt: int
    memory: int
    is_alone: bool


class Schedule:
    """One run of an engine over items.

    Attributes:
        counts: The number of finished items by the status of their outcome.
        retries: How often a worker died and its item was started again.
    """

    def __init__(
        self,
        items: Sequence[Item],
        engine: Engine,
        limits: Limits,
        *,
        make_job: Callable[[Item, int], Job],
        record: Callable[[Item, Outcome, int], None],
        watch: Watcher | None,
    ) -> None:
        """Prepare a run.

        Args:
            items: The items to work on.
            engine: The engine that does the jobs.
            limits: What the run may take.
            make_job: Called with an item and the number of the attempt, from 1, just before it is started.
            record: Called with an item, its outcome and the number of attempts, once for each item that was started.
            watch: The object that is told what happens, or None.
        """
        self._waiting = deque(sorted(items, key=lambda item: (item.order, -item.bytes)))
        self._again: deque[tuple[Item, int]] = deque()
        self._running: dict[int, _Running] = {}
        self._engine, self._limits = engine, limits
        self._make_job, self._record, self._watch = make_job, record, watch
        self._next_ticket = 0
        self.counts: Counter[str] = Counter()
        self.retries = 0

    def run(self, stop: threading.Event) -> bool:
        """Work until all items are finished, or until `stop` is set; return True if all are."""
        while (self._waiting or self._again or self._running) and not stop.is_set():
            self._fill()
            for finished in self._engine.wait(_TICK):
                self._finish(finished)
        for running in self._running.values():
            outcome = Outcome("failed", code=INTERRUPTED, reason="the run was stopped; run it again to go on")
            self._record(running.item, outcome, running.attempt)
        return not (self._running or self._waiting or self._again)

    def _fill(self) -> None:
        """Start items as long as there is room for the next one."""
        while self._engine.room() > 0:
            if self._waiting:
                item, attempt, is_alone = self._waiting[0], 1, False
            elif self._again:  # last, so that a source which kills its worker holds up no other
                item, attempt, is_alone = *self._again[0], not self._engine.keeps_to_memory
            else:
                return
            memory = work_memory(item.bytes)
            if not self._fits(memory, is_alone):
                return
            (self._again if is_alone or not self._waiting else self._waiting).popleft()
            if self._watch is not None and attempt == 1:
                self._watch.start(item.output)
            self._engine.start(self._next_ticket, self._make_job(item, attempt), memory)
            self._running[self._next_ticket] = _Running(item, attempt, memory, is_alone)
            self._next_ticket += 1

    def _fits(self, memory: int, is_alone: bool) -> bool:
        if not self._running:
            return True
        if is_alone or any(running.is_alone for running in self._running.values()):
            return False
        if self._engine.keeps_to_memory:
            return True
        return memory + sum(running.memory for running in self._running.values()) <= self._limits.memory

    def _finish(self, finished: Finished) -> None:
        running = self._running.pop(finished.ticket)
        outcome = finished.outcome
        if outcome is None and running.attempt <= self._limits.retries:
            self._again.append((running.item, running.attempt + 1))
            self.retries += 1
            return
        if outcome is None:
            times = f"{running.attempt} times" if running.attempt > 1 else "once"
            reason = f"the worker process died {times}, by a fault or for lack of memory; --retries tries more often"
            outcome = Outcome("failed", code=WORKER_DIED, reason=reason)
        self._record(running.item, outcome, running.attempt)
        self.counts[outcome.status] += 1
        if self._watch is not None:
            self._watch.finish(running.item.output, failed=outcome.status == "failed")
