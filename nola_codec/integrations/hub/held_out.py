"""Losses on held-out rows for the card, as `nola-codec eval --json` and `nola-codec encode --json` print them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.integrations.hub.escaping import plain
from nola_codec.stores.files import read_json

UNIT = "nats a token"


@dataclass(frozen=True)
class HeldOut:
    """Losses on the same held-out rows.

    Attributes:
        file: The loss of what the file decodes to.
        adapter: The loss of the original adapter; None if it was not measured.
        base: The loss of the base model without an adapter; None if it was not measured.
        rows: The number of rows.
        unit: The unit of a loss.
    """

    file: float
    adapter: float | None
    base: float | None
    rows: int | None
    unit: str = UNIT

    @property
    def kept(self) -> float | None:
        """The share of the adapter's gain over the base model that the file keeps; None if that is not known."""
        if self.adapter is None or self.base is None or self.base <= self.adapter:
            return None
        return (self.base - self.file) / (self.base - self.adapter)


def read_held_out(metrics: str | os.PathLike[str] | Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, HeldOut]:
    """Read the losses of files, and check by name and size that they are those of these files.

    Args:
        metrics: The JSON that `nola-codec eval` or `nola-codec encode --fit task` prints with ``--json``: a path of
            it, or the parsed object.
        sizes: For the name of each file that is pushed, its size in bytes.

    Returns:
        The losses by the name of the file.

    Raises:
        AdapterError: ``bad-metrics``: there are no such losses in it (`--data self` measures none), or they are of
            another file; ``not-found``, ``unreadable``, ``bad-json``, ``limit``.
    """
    where = "metrics" if isinstance(metrics, Mapping) else os.fspath(metrics)
    value = metrics if isinstance(metrics, Mapping) else read_json(Path(metrics))
    if isinstance(value.get("measured"), Sequence) and not isinstance(value["measured"], str):
        return _from_evaluation(value, sizes, where)
    if isinstance(value.get("task"), Mapping):
        return _from_encode(value, sizes, where)
    printed = "what `nola-codec eval --json` or `nola-codec encode --fit task --json` printed"
    raise _bad(f"no losses on held-out rows; give {printed}", where)


def _from_evaluation(value: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> dict[str, HeldOut]:
    measured = [each for each in value["measured"] if isinstance(each, Mapping)]
    losses = {each.get("name"): each.get("loss") for each in measured}
    base = next((_number(each.get("loss"), where) for each in measured if each.get("kind") == "base"), None)
    reference = losses.get(value.get("reference"))
    adapter = None if reference is None else _number(reference, where)
    found = {}
    for each in measured:
        name = os.path.basename(str(each.get("name")))
        if name not in sizes:
            continue
        _check_size(each.get("bytes"), sizes[name], name, where)
        is_reference = each.get("name") == value.get("reference")
        rows = value.get("rows")
        found[name] = HeldOut(
            _number(each.get("loss"), where), None if is_reference else adapter, base,
            rows if isinstance(rows, int) else None,
        )  # fmt: skip
    if not found:
        listed = ", ".join(sorted(str(name) for name in losses if name)) or "none"
        raise _bad(mismatch("files with a measured loss", ", ".join(sizes), listed), where)
    return found


def _from_encode(value: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> dict[str, HeldOut]:
    if len(sizes) != 1:
        raise _bad("a report of one encode, but several files are pushed; use `nola-codec eval --json`", where)
    ((name, size),) = sizes.items()
    _check_size(value.get("bytes"), size, name, where)
    task = value["task"]
    if task.get("is_distance"):
        message = "it holds distances from the adapter's predictions, which are no losses of the task"
        raise _bad(f"{message}; measure the task with `nola-codec eval --json`", where)
    file, adapter, base = (_number(task.get(key), where) for key in ("file", "adapter", "base"))
    rows, unit = task.get("rows"), task.get("unit")
    losses = HeldOut(file, adapter, base, rows if isinstance(rows, int) else None)
    return {name: replace(losses, unit=plain(unit)) if isinstance(unit, str) else losses}


def _check_size(found: object, size: int, name: str, where: str) -> None:
    if found != size:
        raise _bad(f"it was measured on another file: {mismatch(f'bytes of {name}', size, found)}", where)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad(mismatch("a loss", "a number", repr(value)[:80]), where)
    return float(value)


def _bad(message: str, where: str) -> AdapterError:
    return AdapterError(message, code="bad-metrics", where=where)
