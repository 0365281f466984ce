"""The rows of the manifest that a run writes: one for each output, with the same columns for all verbs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from typing import Any

from nola_codec.fleet.items import Item, Outcome, Verb
from nola_codec.remote import is_url, shown_url
from nola_codec.version import __version__

STARTED = "started"
"""The status of an output whose worker had begun when a run was killed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Numbers that a verb does not have are None, and texts are then empty.

    Attributes:
        output: The path relative to the destination, with ``/``; for ``verify`` the path of the file.
        source: The absolute path, or the URL, of the source.
        status: ``done``, ``failed`` or ``started``.
        code: The code of the error of a failed row.
        reason: The message of the error.
        attempts: How often a worker began with the item in the last run that did.
        source_bytes: The bytes of the files of the source.
        source_digest: The digest of their content (`stamps.digest_files`).
        source_stamp: Changes with the size or the time of a file of the source.
        bytes: The bytes of the output.
        output_digest: The digest of the output: what `sha256sum` prints for a file.
        decoded_sha256: The SHA-256 of everything that the `.nola` file decodes to.
        parameters: The parameters of the adapter.
        ratio: 2 * parameters / bytes, which compares with fp16.
        dialect: The dialect of the adapter.
        objective: The objective of the encode.
        nmse: The share of ||delta_W||_F^2 that the file loses.
        effective_error: The effective error of the file.
        scale_low, scale_high: The smallest and the greatest scaling of the modules.
        scale_origin: The place that the scalings came from, as in `EncodeReport`.
        notes: Sentences that the user should read.
        seconds: The wall time of the item in its worker.
        cpu_seconds: The processor time of the item in its worker.
        stages: Parts of `seconds` by name: ``hash``, ``read``, the stages of the encoder, ``write``.
        options: The options as JSON.
        options_digest: The first 16 digits of the SHA-256 of the verb and the options.
        version: The version of nola-codec that did the work.
        finished: The time in UTC, in ISO 8601.
    """

    output: str
    source: str
    status: str
    code: str = ""
    reason: str = ""
    attempts: int = 0
    source_bytes: int | None = None
    source_digest: str = ""
    source_stamp: str = ""
    bytes: int | None = None
    output_digest: str = ""
    decoded_sha256: str = ""
    parameters: int | None = None
    ratio: float | None = None
    dialect: str = ""
    objective: str = ""
    nmse: float | None = None
    effective_error: float | None = None
    scale_low: float | None = None
    scale_high: float | None = None
    scale_origin: str = ""
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    cpu_seconds: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    options: str = ""
    options_digest: str = ""
    version: str = ""
    finished: str = ""


_NAMES = tuple(each.name for each in fields(Row))


def row_to_json(row: Row) -> str:
    """Return a row as one line of JSON without the line break; NaN and infinities become null."""
    values = {name: _finite(getattr(row, name)) for name in _NAMES}
    return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def row_from_values(values: Mapping[str, Any]) -> Row | None:
    """Return the row of a mapping, or None if it is none. Columns of a later version are left out."""
    if not all(isinstance(values.get(name), str) for name in ("output", "source", "status")):
        return None
    known = {name: values[name] for name in _NAMES if values.get(name) is not None}
    if "notes" in known:
        known["notes"] = tuple(known["notes"])
    if "stages" in known:
        known["stages"] = dict(known["stages"])
    return Row(**known)


def begun_row(item: Item, before: Row | None) -> Row:
    """Return the row that says that a worker begins with an item, so that its output is known to be the run's own.

    What an earlier run wrote about the output stays, so that content which has not changed is not encoded again.
    """
    if before is not None:
        return before if before.status == "done" else replace(before, status=STARTED, source=storable(item.source))
    return Row(item.output, storable(item.source), STARTED)


def finished_row(item: Item, verb: Verb, outcome: Outcome, *, attempts: int, before: Row | None) -> Row:
    """Return the row of an outcome.

    Args:
        item: The item.
        verb: What was done with it.
        outcome: What the worker said.
        attempts: How often a worker began with the item.
        before: The row of an earlier run; an unchanged source keeps what it says of the output.
    """
    values: dict[str, Any] = {"source_bytes": item.bytes, "source_stamp": item.stamp}
    if outcome.status == "unchanged" and before is not None:
        values |= {name: getattr(before, name) for name in _NAMES}
        values |= {"source_bytes": item.bytes, "source_stamp": item.stamp}
    else:
        values |= {"version": __version__, "finished": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
    values |= outcome.facts
    values |= {
        "output": item.output, "source": storable(item.source), "attempts": attempts,
        "status": "failed" if outcome.status == "failed" else "done",
        "code": outcome.code, "reason": storable(outcome.reason),
        "options": canonical_options(item.options), "options_digest": digest_options(verb, item.options),
    }  # fmt: skip
    return Row(**values)


def canonical_options(options: Mapping[str, Any]) -> str:
    """Return options as JSON that does not depend on their order."""
    return json.dumps({name: options[name] for name in sorted(options) if options[name] is not None}, default=str)


def digest_options(verb: Verb, options: Mapping[str, Any]) -> str:
    """Return 16 digits that change with the verb and with each option."""
    return hashlib.sha256(f"{verb} {canonical_options(options)}".encode()).hexdigest()[:16]


def storable(text: str) -> str:
    """Return a path or a URL as rows have it: without secrets in a URL, and with escapes for bytes that are no text."""
    if is_url(text):
        text = shown_url(text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return value
