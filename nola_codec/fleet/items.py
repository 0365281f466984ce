"""What a run is made of: items, the jobs that workers get, and the outcomes that come back. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verb = Literal["encode", "decode", "verify"]
Status = Literal["done", "unchanged", "failed"]

WORKER_DIED = "worker-died"
"""The code of an item whose worker process died, and died again in every retry."""
INTERRUPTED = "interrupted"
"""The code of an item that was running when the run was stopped."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source before its output has a name.

    Attributes:
        path: An absolute path, or a URL.
        name: The name that the output gets if no other output has it: a relative path with ``/``, without a suffix.
        is_named: True if the user gave the name, which is then never changed.
        options: Options of this source alone, from a row of a manifest.
    """

    path: str
    name: str
    is_named: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One source and its output.

    Attributes:
        source: An absolute path, or a URL.
        output: The path of the output, relative to the destination and with ``/``.
        options: All options of the item.
        bytes: The bytes of the source; 0 if they are not known.
        stamp: Changes when a file of the source gets another size or time (`stamps.stamp`); empty if not known.
        order: Items of a lower order are started first.
        is_stale: True if the present output is not to be kept, even if the source has the content that it had.
    """

    source: str
    output: str
    options: Mapping[str, Any]
    bytes: int = 0
    stamp: str = ""
    order: int = 0
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker has to do for one item. It travels to another process.

    Attributes:
        verb: What is done with the source.
        source: An absolute path, or a URL.
        target: The absolute path of the output; None if nothing is written.
        options: The keywords of the function of the verb.
        overwrite: True if the output may be replaced.
        known_digest: The digest of the source from which the present output was made; empty if there is none.
        wanted_digest: The digest that the output must have, or for ``verify`` the file; empty if it does not matter.
    """

    verb: Verb
    source: str
    target: str | None
    options: Mapping[str, Any]
    overwrite: bool = False
    known_digest: str = ""
    wanted_digest: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: ``done``; ``unchanged``: the source has the content that it had; ``failed``.
        facts: Values for the columns of the manifest (`rows.Row`).
        code: The code of the error.
        reason: The message of the error, on one line.
    """

    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    reason: str = ""
