"""Tables in Parquet, through pyarrow: the manifest that a run writes, and a manifest of sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nola_codec.errors import AdapterError
from nola_codec.fleet.rows import Row

_BATCH = 10_000  # rows

_SCHEMA = pa.schema([
    ("output", pa.string()), ("source", pa.string()), ("status", pa.string()), ("code", pa.string()),
    ("reason", pa.string()), ("attempts", pa.int32()), ("source_bytes", pa.int64()), ("source_digest", pa.string()),
    ("source_stamp", pa.string()), ("bytes", pa.int64()), ("output_digest", pa.string()),
    ("decoded_sha256", pa.string()), ("parameters", pa.int64()), ("ratio", pa.float64()), ("dialect", pa.string()),
    ("objective", pa.string()), ("nmse", pa.float64()), ("effective_error", pa.float64()),
    ("scale_low", pa.float64()), ("scale_high", pa.float64()), ("scale_origin", pa.string()),
    ("notes", pa.list_(pa.string())), ("seconds", pa.float64()), ("cpu_seconds", pa.float64()),
    ("stages", pa.map_(pa.string(), pa.float64())),
    ("options", pa.string()), ("options_digest", pa.string()), ("version", pa.string()), ("finished", pa.string()),
])  # fmt: skip


def write_rows(rows: Sequence[Row], stream: BinaryIO) -> None:
    """Write rows as a Parquet file; equal rows give equal columns and types, whatever is None in them."""
    with pq.ParquetWriter(stream, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(rows), _BATCH):
            values = [{name: getattr(row, name) for name in _SCHEMA.names} for row in rows[start : start + _BATCH]]
            for value in values:
                value["stages"] = list(value["stages"].items())
            writer.write_table(pa.Table.from_pylist(values, schema=_SCHEMA))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file as mappings, some thousand at a time in memory.

    Raises:
        AdapterError: ``bad-manifest``: It is no Parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as e:
        message = f"cannot be read as Parquet: {str(e).splitlines()[0]}"
        raise AdapterError(message, code="bad-manifest", where=str(path)) from e
