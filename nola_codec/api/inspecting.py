"""`inspect`: what a file says of itself, from its first few hundred bytes; nothing is decoded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nola_codec.adapters import Dialect, find_dialect
from nola_codec.adapters.registry import UNKNOWN
from nola_codec.basis import basis_by_id
from nola_codec.container.reader import Source, open_container
from nola_codec.entropy import CODECS
from nola_codec.model.header import Header
from nola_codec.model.records import CodedRecord
from nola_codec.prng import generator_name


def inspect(source: Source) -> dict[str, Any]:
    """Describe a file: versions, sizes, generator, rates, what was lost, and every tensor.

    Raises:
        FormatError, ChecksumMismatch: prelude or header are not well-formed. Sections are not read.
    """
    with open_container(source) as container:
        header = container.header
        parameters = _parameters(header) + sum(int(np.prod(r.kind.shape, dtype=np.int64)) for r in header.raw)
        lengths = [s.length for s in header.sections]
        rungs = range(len(header.rungs))
        units = [header.units_section(rung) for rung in rungs]
        blocks = [unit + 1 + block for unit in units for block in range(len(header.blocks))]
        coefficients = sum(_coefficients(r) for r in header.coded)
        return {
            "format_version": container.prelude.version,
            "format_revision": container.prelude.revision,
            "draft": container.prelude.version == 0,
            "writer": header.writer,
            "dialect": header.dialect,
            "base_model": _base_model(header),
            "base_revision": (header.config or {}).get("revision"),
            "bytes": container.file_length,
            "parameters": parameters,
            "ratio": 2 * parameters / container.file_length,
            "generator": generator_name(header.generator),
            "seed": header.seed,
            "bases": sorted({basis_by_id(r.kind.basis).name for r in header.coded}),
            "form": sorted({r.kind.split for r in header.coded}),
            "quantizers": len(header.quantizers),
            "entropy": sorted(
                {CODECS[header.sections[i].codec].name for i in (*units, *blocks) if header.sections[i].codec in CODECS}
            ),
            "coefficients": coefficients,
            "bits_per_coefficient": 8 * sum(lengths[i] for i in blocks) / coefficients if coefficients else 0.0,
            "bytes_by_part": {
                "header": container.header_length,
                "units": sum(lengths[i] for i in units),
                "coefficients": sum(lengths[i] for i in blocks),
                "carried": sum(lengths[header.raw_section(i)] for i in range(len(header.raw))),
            },
            "measured": dict(header.measured),
            "rungs": [{"bytes": container.rung_bytes(rung), **header.rungs[rung].measured} for rung in rungs],
            "config": header.config,
            "metadata": dict(header.metadata),
            "content_sha256": container.prelude.content_sha256.hex(),
            "factors_sha256": header.decoded_sha256.hex(),
            "tensors": _tensors(header),
        }


def _base_model(header: Header) -> str | None:
    """What the adapter says of its base: PEFT's and MLX's configuration, kohya's metadata."""
    return _dialect(header).base_model(header.config or {}, header.metadata)


def _dialect(header: Header) -> Dialect:
    """Return the file's dialect; of one that is not known here, what holds for all of them."""
    return find_dialect(header.dialect) or UNKNOWN


def _tensors(header: Header) -> list[dict[str, Any]]:
    return (
        [
            {
                "name": r.name,
                "record": "lowrank",
                "layout": r.kind.layout,
                "shape": [r.kind.product_shape[0], *r.kind.stored_shapes[1][1:]],
                "rank": r.kind.rank,
                "units": r.units,
                "coefficients": _coefficients(r),
                "scaling": r.kind.scaling,
                "stream": r.stream,
            }
            for r in header.pairs
        ]
        + [
            {
                "name": r.name,
                "record": "vector",
                "dtype": r.kind.dtype,
                "shape": list(r.kind.stored_shapes[0]),
                "units": r.units,
                "coefficients": _coefficients(r),
                "stream": r.stream,
            }
            for r in header.vectors
        ]
        + [
            {
                "name": r.name,
                "record": "raw",
                "dtype": r.kind.dtype,
                "shape": list(r.kind.shape),
                "bytes": r.kind.nbytes,
            }
            for r in header.raw
        ]
        + [
            {
                "name": r.name,
                "record": "drawn",
                "dtype": r.kind.draw.dtype,
                "shape": list(r.kind.draw.shape),
                "bytes": 0,
                "method": r.kind.draw.method,
                "seed": r.kind.draw.seed,
            }
            for r in header.drawn
        ]
    )


def _parameters(header: Header) -> int:
    """Numbers in the factors and vectors; in the dialects `delta` and `parameters`, in the weights that they make."""
    dialect = _dialect(header)
    if not dialect.holds_whole_weights:
        return sum(r.kind.elements for r in header.coded)
    weights = {dialect.weight_of_record(r.name): r.kind.elements for r in header.vectors}
    weights |= {r.name: math.prod(r.kind.product_shape) for r in header.pairs}
    return sum(weights.values())


def _coefficients(record: CodedRecord) -> int:
    return record.kind.vectors(record.units) * sum(record.kind.num_basis)
