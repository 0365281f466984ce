"""Read a manifest of sources: JSON lines, CSV or Parquet, with the columns `source`, `output` and options."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nola_codec.errors import AdapterError, require_package
from nola_codec.fleet.items import Source
from nola_codec.fleet.naming import make_safe, require_safe, without_ending
from nola_codec.remote import is_url
from nola_codec.remote.addresses import last_name

_MOST_LINE = 1_000_000  # characters
_MOST_ROWS = 20_000_000
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NUMBERS = ("ratio", "nmse", "error", "scale")
_INTEGERS = ("num_basis", "bits", "rank", "seed", "rung")
_FLAGS = ("thorough", "progressive", "shared_basis", "carry_unknown", "trim")


def read_source_manifest(path: Path, option_names: Iterable[str]) -> list[Source]:
    """Return the sources of a manifest, in order.

    A relative source or base model is relative to the directory of the manifest. A column that begins with an
    underscore is the user's own. An empty cell, or null, is an option that is not given.

    Args:
        path: The file; its suffix says its type: ``.jsonl`` or ``.ndjson``, ``.csv``, ``.parquet``.
        option_names: The columns that may be there beside `source` and `output`.

    Raises:
        AdapterError: ``not-found``; ``bad-manifest``: no such type of file, a line that cannot be read, a row without
            a source, an unknown column.
        NolaError: ``output-name``: An output that is not a safe relative path.
        MissingPackage: ``needs-pyarrow``.
    """
    if not path.is_file():
        raise AdapterError("no such file or directory", code="not-found", where=str(path))
    known = ("source", "output", *option_names)
    sources = []
    for number, row in enumerate(_rows(path), start=1):
        where = f"{path}: row {number}"
        if number > _MOST_ROWS:
            raise AdapterError(f"more than {_MOST_ROWS} rows; split it", code="limit", where=str(path))
        sources.append(_source(row, path.resolve().parent, known, where))
    if not sources:
        raise AdapterError("the manifest has no rows", code="no-sources", where=str(path))
    return sources


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(path)
    if suffix == ".csv":
        return _csv_rows(path)
    if suffix == ".parquet":
        require_package(f"reading {path}", "pyarrow", "fleet")
        from nola_codec.fleet.parquet import read_rows

        return read_rows(path)
    message = f"expected a file that ends in .jsonl, .csv or .parquet, found {path.suffix or 'no suffix'}"
    raise AdapterError(message, code="bad-manifest", where=str(path))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        number = 0
        while line := stream.readline(_MOST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                message = f"line {number}: not valid JSON: {e}"
                raise AdapterError(message, code="bad-manifest", where=str(path)) from e
            if not isinstance(row, dict):
                raise AdapterError(f"line {number}: not a JSON object", code="bad-manifest", where=str(path))
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream, restkey="", strict=True)
        try:
            for row in reader:
                if "" in row:
                    message = f"line {reader.line_num}: more cells than columns"
                    raise AdapterError(message, code="bad-manifest", where=str(path))
                yield {name: _parse_cell(name, cell) for name, cell in row.items()}
        except csv.Error as e:
            message = f"line {reader.line_num}: not valid CSV: {e}"
            raise AdapterError(message, code="bad-manifest", where=str(path)) from e


def _parse_cell(name: str, cell: str | None) -> Any:
    """Return the value of a cell by the type of its option; text that is none is left for the check of options."""
    text = (cell or "").strip()
    if not text:
        return None
    try:
        if name in _NUMBERS:
            return float(text)
        if name in _INTEGERS:
            return int(text)
    except ValueError:
        return text
    return _TRUTHS.get(text.lower(), text) if name in _FLAGS else text


def _source(row: Mapping[str, Any], folder: Path, known: tuple[str, ...], where: str) -> Source:
    values = {name: value for name, value in row.items() if value is not None and not name.startswith("_")}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the columns are {', '.join(known)}."
            message = f"unknown column {name!r}; {hint} A column of your own begins with an underscore"
            raise AdapterError(message, code="bad-manifest", where=where)
    text, output = values.pop("source", None), values.pop("output", None)
    if not isinstance(text, str) or not text:
        raise AdapterError("expected the path of a source in the column `source`", code="bad-manifest", where=where)
    if output is not None and not isinstance(output, str):
        message = f"expected text in the column `output`, found {output!r:.80}"
        raise AdapterError(message, code="bad-manifest", where=where)
    path = text if is_url(text) else os.path.abspath(folder / text)
    base = values.get("base")
    if isinstance(base, str) and not is_url(base):
        values["base"] = os.path.abspath(folder / base)
    if isinstance(values.get("rungs"), str):
        values["rungs"] = [part.strip() for part in values["rungs"].split(",")]
    if output is not None:
        return Source(path, require_safe(output, where), is_named=True, options=values)
    name = last_name(path) if is_url(path) else Path(path).name
    return Source(path, make_safe(without_ending(name)), options=values)
