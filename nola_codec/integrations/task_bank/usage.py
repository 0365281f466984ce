"""How much memory a bank takes, by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskUsage:
    """The memory of one task.

    Attributes:
        packed: The bytes of its file.
        rebuilt: The bytes of its rebuilt factors in the cache; 0 if they are not there.
    """

    packed: int
    rebuilt: int


@dataclass(frozen=True)
class BankUsage:
    """The memory of a bank.

    Attributes:
        tasks: The memory of each task, by its name.
        packed: The bytes of all files together, with the earlier versions that they need. A file that several tasks
            need counts once.
        rebuilt: The bytes of all rebuilt tasks in the cache; at most the budget.
        applied: The bytes of the factors that run beside the model's weights now.
        kept: The bytes of copies of the base model's weights that the applied task has changed.
    """

    tasks: Mapping[str, TaskUsage]
    packed: int
    rebuilt: int
    applied: int
    kept: int
