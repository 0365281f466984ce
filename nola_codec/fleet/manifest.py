"""The manifest beside the outputs: a journal while a run lasts, then one file that other tools read.

    DST/manifest.parquet or DST/manifest.jsonl    one row for each output, sorted by name; written whole
    DST/.fleet/journal.jsonl                      rows that are not in the manifest yet, one a line
    DST/.fleet/lock                               held by the run

A line is appended to the journal when a worker begins with an item, and one when it is finished. A run that is killed
loses no finished item: the next one reads the manifest, then the journal, in which the last row of an output counts. A
line that was cut short by the kill is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from nola_codec.errors import AdapterError, NolaError, OutputExists, require_package
from nola_codec.fleet.rows import Row, row_from_values, row_to_json
from nola_codec.stores.files import atomic_file

FORMATS = ("parquet", "jsonl")
_STATE = ".fleet"
_MOST_LINE_BYTES = 16_000_000


class Manifest:
    """The rows of a destination. As a context manager it holds the lock, and writes the manifest at its end.

    Attributes:
        rows: The rows by output.
        is_interrupted: True if the journal of a killed run was there.
    """

    def __init__(self, directory: Path, *, file_format: str | None = None) -> None:
        """Prepare to open the manifest of a directory.

        Args:
            directory: The destination; it is made when the manifest is entered.
            file_format: One of FORMATS; None is that of the manifest which is there, else Parquet if pyarrow is
                installed, else JSON lines.

        Raises:
            NolaError: ``option``: no such format.
            MissingPackage: ``needs-pyarrow``.
        """
        if file_format is not None and file_format not in FORMATS:
            message = f"manifest_format: expected one of {', '.join(FORMATS)}, found {file_format!r}"
            raise NolaError(message, code="option")
        self.directory = directory
        self.rows: dict[str, Row] = {}
        self.is_interrupted = False
        self._asked = file_format
        self._state = directory / _STATE
        self._journal: int | None = None
        self._stack = contextlib.ExitStack()
        if file_format == "parquet":
            require_package("a manifest in Parquet", "pyarrow", "fleet", instead="JSON lines need no package")

    def __enter__(self) -> Manifest:
        self._state.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_lock(self._state / "lock", self.directory))
            self.rows = read_manifest(self.directory)
            self.is_interrupted = self._journal_path.exists() and self._journal_path.stat().st_size > 0
            self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            stack.callback(os.close, self._journal)
            if self.is_interrupted:
                os.write(self._journal, b"\n")  # ends a line that was cut short
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.compact()

    @property
    def path(self) -> Path:
        """The file that other tools read."""
        return self.directory / f"manifest.{self._format}"

    def record(self, row: Row) -> None:
        """Add a row, or replace that of the same output. It is on disk when this returns."""
        self.rows[row.output] = row
        assert self._journal is not None, "the manifest is not entered"
        data = row_to_json(row).encode("ascii") + b"\n"
        while data:
            data = data[os.write(self._journal, data) :]

    def compact(self) -> None:
        """Write the manifest with all rows, and empty the journal."""
        has_news = self._journal_path.stat().st_size > 0
        is_right = self.path.exists() and not (self.directory / f"manifest.{self._other_format}").exists()
        if not has_news and (is_right or not self.rows):
            return
        rows = [self.rows[output] for output in sorted(self.rows)]
        with atomic_file(self.path) as stream:
            if self._format == "parquet":
                from nola_codec.fleet.parquet import write_rows

                write_rows(rows, stream)
            else:
                stream.writelines(row_to_json(row).encode("ascii") + b"\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())  # the journal is emptied next
        (self.directory / f"manifest.{self._other_format}").unlink(missing_ok=True)
        assert self._journal is not None, "the manifest is not entered"
        os.ftruncate(self._journal, 0)

    @property
    def _journal_path(self) -> Path:
        return self._state / "journal.jsonl"

    @property
    def _other_format(self) -> str:
        return FORMATS[1 - FORMATS.index(self._format)]

    @property
    def _format(self) -> str:
        if self._asked is not None:
            return self._asked
        there = [name for name in FORMATS if (self.directory / f"manifest.{name}").exists()]
        return there[0] if there else "parquet" if find_spec("pyarrow") is not None else "jsonl"


def has_manifest(directory: Path) -> bool:
    """Return True if a run wrote its outputs to a directory."""
    return any((directory / f"manifest.{name}").exists() for name in FORMATS) or (directory / _STATE).is_dir()


def read_manifest(directory: Path) -> dict[str, Row]:
    """Return the rows of a destination by output, those of a killed run too; none if there is no manifest.

    Raises:
        AdapterError: ``bad-manifest``: The manifest is no file of that type.
        MissingPackage: ``needs-pyarrow``: The manifest is in Parquet.
    """
    rows: dict[str, Row] = {}
    table = directory / "manifest.parquet"
    if table.exists():
        require_package(f"reading {table}", "pyarrow", "fleet")
        from nola_codec.fleet.parquet import read_rows

        values: Iterator[dict[str, Any]] = read_rows(table)
        rows |= {row.output: row for row in map(row_from_values, values) if row is not None}
    for path, must_be_whole in (
        (directory / "manifest.jsonl", True),
        (directory / _STATE / "journal.jsonl", False),
    ):
        if path.exists():
            rows |= {row.output: row for row in _read_lines(path, must_be_whole=must_be_whole)}
    return rows


def _read_lines(path: Path, *, must_be_whole: bool) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines. A line that is no row is an error, or left out, as lines of a journal."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(_MOST_LINE_BYTES):
            number += 1
            row = None
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                values = json.loads(line) if line.strip() else None
                row = row_from_values(values) if isinstance(values, dict) else None
            if row is not None:
                yield row
            elif must_be_whole and line.strip():
                message = f"line {number}: expected a row of a manifest; restore the file, or remove it to begin anew"
                raise AdapterError(message, code="bad-manifest", where=str(path))


@contextlib.contextmanager
def _lock(path: Path, directory: Path) -> Iterator[None]:
    """Hold the lock of a destination. Raises OutputExists ``in-use`` if another run has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        message = "another run writes to this directory; wait for it, or give another one"
        raise OutputExists(message, code="in-use", where=str(directory)) from None
    try:
        yield
    finally:
        lock.release()
