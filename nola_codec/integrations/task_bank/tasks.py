"""`TaskTable`: the tasks of a bank by name, and the bytes that their files take together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nola_codec.decoder.prediction import KnownRecords
from nola_codec.errors import AdapterError, NolaError, mismatch
from nola_codec.integrations.task_bank.packed import PackedFile
from nola_codec.merger.weight_places import Place
from nola_codec.rendering import list_first


@dataclass(eq=False, slots=True)
class Task:
    """One task.

    Attributes:
        name: Its name.
        packed: Its file.
        places: The place of each pair of factors, by weight; None if only the decoded file tells what it changes.
        is_verified: True after the decoded SHA-256 was compared.
    """

    name: str
    packed: PackedFile
    places: Mapping[str, Place] | None
    is_verified: bool = False


class TaskTable:
    """The tasks of a bank by name. Threads may call its methods at once.

    Attributes:
        most_bytes: The most bytes of all files together. A file that several tasks need counts once.
        packed_bytes: The bytes of all files together.
        current: The task that is applied, or None; it cannot be removed.
        guard: A lock that each method takes for a moment. A caller may hold it over several calls.
    """

    def __init__(self, most_bytes: int, on_drop: Callable[[Task], None]) -> None:
        """Make an empty table; `on_drop` is called with each task that leaves it."""
        self.most_bytes = most_bytes
        self.packed_bytes = 0
        self.current: Task | None = None
        self.guard = threading.RLock()
        self._on_drop = on_drop
        self._tasks: dict[str, Task] = {}
        self._places: dict[tuple[Any, ...], Mapping[str, Place]] = {}
        self._uses: Counter[int] = Counter()  # of packed files and records, by their ids
        self._entering: Task | None = None
        self._is_closed = False

    def all(self) -> list[Task]:
        """Return all tasks, in the order in which they were added."""
        with self.guard:
            return list(self._tasks.values())

    def find(self, name: str) -> Task:
        """Return a task by its name. Raises AdapterError ``unknown-task``, or NolaError ``closed``."""
        with self.guard:
            task = self._tasks.get(name)
            if task is None:
                self.require_open()
                raise _unknown(name, list(self._tasks))
            return task

    def has(self, task: Task) -> bool:
        """Return True if a task is still there."""
        return self._tasks.get(task.name) is task

    def require_free(self, name: str, *, replace: bool) -> None:
        """Check that a task of this name can be added; the errors are those of `insert`."""
        with self.guard:
            self.require_open()
            earlier = self._tasks.get(name)
            if earlier is not None:
                self._require_replaceable(earlier, replace=replace)

    def insert(self, task: Task, *, replace: bool) -> None:
        """Add a task; with `replace`, in place of the one of the same name.

        Raises:
            AdapterError: ``task-exists``, ``task-active``; ``limit``: all files together would take too many bytes.
            NolaError: ``closed``.
        """
        with self.guard:
            self.require_free(task.name, replace=replace)
            parts = list(task.packed.chain())
            more = sum(_size(part) for part in parts if not self._uses[id(part)])
            if self.packed_bytes + more > self.most_bytes:
                message = mismatch("packed bytes", f"at most {self.most_bytes}", self.packed_bytes + more)
                raise AdapterError(message, code="limit", where=f"task {task.name!r}")
            if task.name in self._tasks:
                self.remove(task.name)
            for part in parts:
                self.packed_bytes += 0 if self._uses[id(part)] else _size(part)
                self._uses[id(part)] += 1
            self._tasks[task.name] = task

    def remove(self, name: str) -> None:
        """Let go of a task. Raises AdapterError ``unknown-task`` or ``task-active``."""
        with self.guard:
            task = self.find(name)
            self._require_inactive(task)
            del self._tasks[name]
            self._on_drop(task)
            for part in task.packed.chain():
                self._uses[id(part)] -= 1
                if not self._uses[id(part)]:
                    del self._uses[id(part)]
                    self.packed_bytes -= _size(part)

    def enter(self, task: Task | None) -> bool:
        """Begin to apply a task, which cannot be removed from now on; `leave` must follow.

        Returns:
            False if it is applied already, and nothing begins.

        Raises:
            AdapterError: ``unknown-task``: it was removed.
            NolaError: ``closed``.
        """
        with self.guard:
            self.require_open()
            if task is self.current:
                return False
            if task is not None and not self.has(task):
                raise _unknown(task.name, list(self._tasks))
            self._entering = task
            return True

    def leave(self) -> None:
        """End what `enter` began; `current` says how."""
        self._entering = None

    def close(self) -> None:
        """Let go of all tasks, and take no others."""
        with self.guard:
            self._is_closed = True
            for name in list(self._tasks):
                self.remove(name)

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._is_closed

    def shared(self, places: Mapping[str, Place] | None) -> Mapping[str, Place] | None:
        """Return the places as the table holds them already for a task that changes the same weights."""
        if places is None:
            return None
        with self.guard:
            return self._places.setdefault(tuple(places.items()), places)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def require_open(self) -> None:
        """Raise NolaError ``closed`` after `close`."""
        if self._is_closed:
            raise NolaError("the bank is closed", code="closed")

    def _require_replaceable(self, task: Task, *, replace: bool) -> None:
        if not replace:
            message = f"the bank has a task {task.name!r}; replace=True replaces it"
            raise AdapterError(message, code="task-exists")
        self._require_inactive(task)

    def _require_inactive(self, task: Task) -> None:
        if task is self.current or task is self._entering:
            message = f"the task {task.name!r} is applied; call switch(None) first"
            raise AdapterError(message, code="task-active")


def _unknown(name: str, names: Sequence[str]) -> AdapterError:
    known = f"it has {list_first(names, 5)}" if names else "it has none"
    return AdapterError(f"the bank has no task {name!r}; {known}", code="unknown-task")


def _size(part: PackedFile | KnownRecords) -> int:
    """Return the bytes of a packed file, or of the records of an earlier version that was never coded."""
    if isinstance(part, PackedFile):
        return part.nbytes
    return sum(side.nbytes for record in part.records.values() for side in record.sides)
