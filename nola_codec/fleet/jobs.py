"""What a worker does with one item. It runs in another process, and imports what it needs when it is called.

Every error of an item is an outcome, so that one bad source does not end a run. Only the death of the process is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nola_codec.errors import AdapterError, ChecksumMismatch, EncodeError, NolaError
from nola_codec.fleet.items import Job, Outcome
from nola_codec.fleet.stamps import digest_files, digest_output, source_files, stamp
from nola_codec.remote import is_url, local_path, shown_url

_MOST_REASON = 500  # characters
_FRAMES = 2  # of a traceback, for a bug


def run_job(job: Job) -> Outcome:
    """Do a job, and return what became of it. No exception but SystemExit and KeyboardInterrupt leaves this."""
    start, cpu_start = time.perf_counter(), time.process_time()
    place = Path(job.source)
    try:
        place = local_path(job.source)  # of a URL, a copy in the disk cache
        outcome = _VERBS[job.verb](job, place)
    except NolaError as error:
        outcome = _failure(error.code, str(error))
    except MemoryError:
        outcome = _failure("memory", "not enough memory; give --memory less than this machine has, or fewer workers")
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        code = "not-found" if isinstance(error, FileNotFoundError) else "system"
        outcome = _failure(code, f"{where}{error.strerror or error}")
    except Exception as error:
        outcome = _failure("bug", f"this is a bug in nola-codec: {_describe(error)}")
    if is_url(job.source):
        outcome = replace(outcome, reason=outcome.reason.replace(str(place), shown_url(job.source)))
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    return replace(outcome, facts={**outcome.facts, **spent})


def _encode(job: Job, source: Path) -> Outcome:
    from nola_codec.api.encoding import encode_bytes
    from nola_codec.stores.files import atomic_file, require_free

    assert job.target is not None, "an encode writes a file"
    target, stages = Path(job.target), _Stages()
    facts, is_known = _examine(job, source, target, stages)
    if is_known:
        return Outcome("unchanged", facts)
    require_free(target, overwrite=job.overwrite)
    begin = time.perf_counter()
    try:
        data, report = encode_bytes(source, **job.options)
    except EncodeError as error:
        if error.code != "reference" or "reference" not in job.options:
            raise
        before = Path(job.options["reference"]).name
        message = f"{error}. --chain codes it as the difference to {before}: leave --chain out for unrelated adapters"
        raise EncodeError(message, code=error.code) from error
    stages.seconds |= {"read": time.perf_counter() - begin - report.seconds, **report.stages}
    _require_same(source, job, facts["source_stamp"])
    with stages.stage("write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as stream:
            stream.write(data)
    return Outcome("done", facts | _facts_of_file(data) | {
        "parameters": report.parameters, "ratio": report.ratio, "dialect": report.dialect,
        "objective": report.objective, "nmse": report.nmse, "effective_error": report.effective_error,
        "scale_low": report.scalings[0] if report.scalings else None,
        "scale_high": report.scalings[-1] if report.scalings else None,
        "scale_origin": report.scale_origin, "notes": report.notes, "stages": stages.seconds,
    })  # fmt: skip


def _facts_of_file(data: bytes) -> dict[str, Any]:
    import hashlib

    from nola_codec.container.reader import open_container

    with open_container(data) as container:
        decoded = container.header.decoded_sha256.hex()
    return {"bytes": len(data), "output_digest": hashlib.sha256(data).hexdigest(), "decoded_sha256": decoded}


def _decode(job: Job, source: Path) -> Outcome:
    from nola_codec.api.decoding import decode

    assert job.target is not None, "a decode writes something"
    target, stages = Path(job.target), _Stages()
    facts, is_known = _examine(job, source, target, stages)
    if is_known:
        return Outcome("unchanged", facts)
    notes: list[str] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    with stages.stage("decode"):
        decode(source, target, overwrite=job.overwrite, note=notes.append, **job.options)
    with stages.stage("hash output"):
        digest, total = digest_output(target)
    return Outcome("done", facts | {
        "bytes": total, "output_digest": digest, "notes": tuple(notes), "stages": stages.seconds,
    })  # fmt: skip


def _verify(job: Job, source: Path) -> Outcome:
    from nola_codec.api.decoding import verify

    stages = _Stages()
    with stages.stage("verify"):
        found = verify(source, **job.options)
    if job.wanted_digest and found["file_sha256"] != job.wanted_digest:
        message = (
            f"a whole file, but another one than the manifest has: expected SHA-256 {job.wanted_digest}, "
            f"found {found['file_sha256']}"
        )
        raise ChecksumMismatch(message, code="manifest-mismatch", where=job.source)
    return Outcome("done", {
        "source_digest": found["file_sha256"], "source_bytes": found["bytes"],
        "decoded_sha256": found["decoded_sha256"], "stages": stages.seconds,
    })  # fmt: skip


_VERBS: dict[str, Callable[[Job, Path], Outcome]] = {"encode": _encode, "decode": _decode, "verify": _verify}


def _examine(job: Job, source: Path, target: Path, stages: _Stages) -> tuple[dict[str, Any], bool]:
    """Return what is known of the source, and True if the output was made from the same content and is still there."""
    with stages.stage("hash"):
        files = source_files(source, job.verb)
        for file in files:  # a pipe, which would be read for ever, is refused before it is opened
            if not file.is_file():
                found = "not a regular file" if file.exists() else "no such file or directory"
                raise AdapterError(found, code="unreadable" if file.exists() else "not-found", where=str(file))
        now, total = stamp(files)
        digest = digest_files(files)
        is_known = bool(job.known_digest) and digest == job.known_digest and target.exists()
        if is_known and job.wanted_digest:
            is_known = digest_output(target)[0] == job.wanted_digest
    return {"source_digest": digest, "source_stamp": now, "source_bytes": total}, is_known


def _require_same(source: Path, job: Job, before: str) -> None:
    """Raise AdapterError ``changed`` if a file of the source changed while it was read."""
    if stamp(source_files(source, job.verb))[0] != before:
        message = "the source changed while it was read; run again when it is whole"
        raise AdapterError(message, code="changed", where=job.source)


class _Stages:
    """A clock of the stages of a job, in seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _failure(code: str, reason: str) -> Outcome:
    line = " ".join(reason.split())
    if len(line) > _MOST_REASON:
        line = f"{line[:_MOST_REASON]} ..."
    return Outcome("failed", code=code, reason=line)


def _describe(error: Exception) -> str:
    """Return an exception and the innermost places it came from, on one line."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} ({places})"
