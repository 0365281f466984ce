"""The type of the object that is told what a run does."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Is told of each item of a run, by the thread that called the run. Items are named by their outputs.

    Attributes:
        total: The number of items, which the run sets when it knows it.
    """

    total: int

    def start(self, name: str) -> None:
        """An item was given to a worker."""

    def finish(self, name: str, *, failed: bool = False) -> None:
        """An item is over."""

    def skip(self, name: str) -> None:
        """An earlier run had done the item."""
