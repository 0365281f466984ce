"""Kinds (families of records) in the header."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.basis import basis_by_id
from nola_codec.container import fields
from nola_codec.container.draw_wire import draw_from_wire, draw_to_wire
from nola_codec.container.limits import Limits
from nola_codec.model.adapter import Layout
from nola_codec.model.records import DrawnKind, Kind, LowRankKind, RawKind, VectorKind
from nola_codec.model.tensors import DTYPE_BYTES, DTYPES

_LOWRANK, _RAW, _VECTOR, _DRAWN = 0, 1, 2, 3
_LAYOUTS: tuple[Layout, ...] = ("linear", "conv", "embedding")
_MAX_PRECISION_SHIFT = 1023
_MAX_AMPLITUDE = 1 << 14
_MAX_TABLES = 256


def kind_to_wire(kind: Kind) -> list[Any]:
    """A list whose first item tells the record type; see the specification for the order."""
    if isinstance(kind, DrawnKind):
        return [_DRAWN, kind.template, *draw_to_wire(kind.draw)]
    if isinstance(kind, RawKind):
        return [_RAW, kind.template, DTYPES.index(kind.dtype), list(kind.shape)]
    full = kind.num_basis == kind.vector_lengths
    if isinstance(kind, VectorKind):
        return [
            _VECTOR,
            kind.template,
            DTYPES.index(kind.dtype),
            list(kind.shape),
            kind.basis,
            None if full else kind.num_basis[0],
            kind.tables[0],
            kind.shift[0],
            kind.amplitude,
        ]
    return [
        _LOWRANK,
        kind.template,
        _LAYOUTS.index(kind.layout),
        list(kind.b_shape),
        list(kind.a_shape),
        kind.scaling,
        int(kind.fan_in_fan_out),
        DTYPES.index(kind.dtype),
        kind.basis,
        0 if kind.split == "component" else 1,
        None if full else list(kind.num_basis),
        list(kind.tables),
        list(kind.shift),
        kind.amplitude,
    ]


def kind_from_wire(value: Any, limits: Limits) -> Kind:
    """Parse and check one kind. Raises FormatError."""
    items = fields.listed(value, "kinds")
    record = fields.integer(items[0] if items else None, "kinds record type", 0, 255)
    if record == _RAW:
        _, template, dtype, shape = fields.listed(value, "kinds", count=4)
        raw = RawKind(
            fields.text(template, "kinds template", limits.name),
            DTYPES[fields.integer(dtype, "kinds dtype", 0, len(DTYPES) - 1)],
            fields.shape(shape, limits, least=0),
        )
        if raw.nbytes > limits.factor_elements * max(DTYPE_BYTES.values()):
            raise fields.over("kinds shape", limits.factor_elements, raw.nbytes)
        return raw
    if record == _VECTOR:
        return _vector(value, limits)
    if record == _DRAWN:
        _, template, *rest = fields.listed(value, "kinds", count=12)
        return DrawnKind(fields.text(template, "kinds template", limits.name), draw_from_wire(rest, limits))
    if record != _LOWRANK:
        raise fields.bad("kinds record type", "0 to 3", record)
    (_, template, layout, b_shape, a_shape, scaling, fan, dtype, basis, split, num_basis, tables, shift, amplitude) = (
        fields.listed(value, "kinds", count=14)
    )
    b_shape, a_shape = fields.shape(b_shape, limits, least=1), fields.shape(a_shape, limits, least=1)
    _check_factors(b_shape, a_shape, limits)
    kind = LowRankKind(
        template=fields.text(template, "kinds template", limits.name),
        layout=_LAYOUTS[fields.integer(layout, "kinds layout", 0, len(_LAYOUTS) - 1)],
        b_shape=b_shape,
        a_shape=a_shape,
        scaling=fields.real(scaling, "kinds scaling"),
        fan_in_fan_out=bool(fields.integer(fan, "kinds fan_in_fan_out", 0, 1)),
        dtype=DTYPES[fields.integer(dtype, "kinds dtype", 0, 2)],
        basis=basis_by_id(fields.integer(basis, "kinds basis", 0, 255)).id,
        split="component" if fields.integer(split, "kinds split", 0, 1) == 0 else "factor",
        num_basis=(0, 0),
        tables=_pair(tables, "kinds tables", 0, _MAX_TABLES - 1),
        shift=_pair(shift, "kinds shift", -_MAX_PRECISION_SHIFT, _MAX_PRECISION_SHIFT),
        amplitude=fields.integer(amplitude, "kinds amplitude", -_MAX_AMPLITUDE, _MAX_AMPLITUDE),
    )
    lengths = kind.vector_lengths
    # A dense basis may have more rows than a vector has elements; a Hadamard basis has no more to give.
    most = lengths if kind.basis == 1 else (limits.dimension, limits.dimension)
    counts = lengths if num_basis is None else _pair(num_basis, "kinds num_basis", 1, limits.dimension)
    if counts[0] > most[0] or counts[1] > most[1]:
        raise fields.bad("kinds num_basis", f"at most {most}", counts)
    return replace(kind, num_basis=counts)


def _vector(value: Any, limits: Limits) -> VectorKind:
    _, template, dtype, shape, basis, num_basis, table, shift, amplitude = fields.listed(value, "kinds", count=9)
    shape = fields.shape(shape, limits, least=1)
    elements = math.prod(shape)
    if elements > limits.factor_elements:
        raise fields.over("kinds shape", limits.factor_elements, elements)
    basis = basis_by_id(fields.integer(basis, "kinds basis", 0, 255)).id
    most = elements if basis == 1 else limits.dimension
    return VectorKind(
        template=fields.text(template, "kinds template", limits.name),
        dtype=DTYPES[fields.integer(dtype, "kinds dtype", 0, 2)],
        shape=shape,
        basis=basis,
        num_basis=(elements if num_basis is None else fields.integer(num_basis, "kinds num_basis", 1, most),),
        tables=(fields.integer(table, "kinds tables", 0, _MAX_TABLES - 1),),
        shift=(fields.integer(shift, "kinds shift", -_MAX_PRECISION_SHIFT, _MAX_PRECISION_SHIFT),),
        amplitude=fields.integer(amplitude, "kinds amplitude", -_MAX_AMPLITUDE, _MAX_AMPLITUDE),
    )


def _pair(value: Any, what: str, low: int, high: int) -> tuple[int, int]:
    first, second = fields.integers(value, what, low, high, count=2)
    return first, second


def _check_factors(b_shape: tuple[int, ...], a_shape: tuple[int, ...], limits: Limits) -> None:
    if len(b_shape) < 2 or len(a_shape) < 2 or any(d != 1 for d in b_shape[2:]):
        raise fields.bad("kinds shape", "(out, r[, 1...]) and (r, in[, k...])", (b_shape, a_shape))
    rank = a_shape[0]
    if b_shape[1] != rank:
        raise fields.bad("kinds shape", f"one rank in both factors ({rank})", b_shape)
    if rank > limits.rank:
        raise fields.over("kinds rank", limits.rank, rank)
    for elements in (b_shape[0] * rank, int(np.prod(a_shape, dtype=object))):
        if elements > limits.factor_elements:
            raise fields.over("kinds shape", limits.factor_elements, elements)
