"""`FactorCache`: rebuilt tasks within a budget of bytes, the least recently used leave first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from nola_codec.integrations.task_bank.rebuilding import RebuiltTask


class FactorCache:
    """Rebuilt tasks by key. All methods may be called from any thread.

    Attributes:
        budget: The most bytes that the tasks in the cache take together. A task that is larger is not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._there: OrderedDict[Hashable, RebuiltTask] = OrderedDict()
        self._making: dict[Hashable, Future[RebuiltTask]] = {}
        self._nbytes = 0

    def get(self, key: Hashable, make: Callable[[], RebuiltTask]) -> RebuiltTask:
        """Return the task of a key. The first thread that asks makes it, and others wait for that.

        Args:
            key: The key.
            make: A function that rebuilds the task; what it raises is raised in all threads that wait.
        """
        with self._lock:
            found = self._there.get(key)
            if found is not None:
                self._there.move_to_end(key)
                return found
            waiting = self._making.get(key)
            if waiting is None:
                mine = self._making[key] = Future[RebuiltTask]()
        if waiting is not None:
            return waiting.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                if self._making.get(key) is mine:
                    del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            if self._making.get(key) is mine:  # else the task was removed meanwhile
                del self._making[key]
                self._put(key, made)
        mine.set_result(made)
        return made

    def put(self, key: Hashable, task: RebuiltTask) -> None:
        """Put a task into the cache."""
        with self._lock:
            self._put(key, task)

    def discard(self, key: Hashable) -> None:
        """Remove the task of a key, also one that a thread is making now."""
        with self._lock:
            self._making.pop(key, None)
            found = self._there.pop(key, None)
            self._nbytes -= 0 if found is None else found.nbytes

    def sizes(self) -> dict[Hashable, int]:
        """Return the bytes of each task in the cache."""
        with self._lock:
            return {key: task.nbytes for key, task in self._there.items()}

    def _put(self, key: Hashable, task: RebuiltTask) -> None:
        if task.nbytes > self.budget or key in self._there:
            return
        self._there[key] = task
        self._nbytes += task.nbytes
        while self._nbytes > self.budget:
            _, oldest = self._there.popitem(last=False)
            self._nbytes -= oldest.nbytes
