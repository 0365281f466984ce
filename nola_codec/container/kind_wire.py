"""Write and parse the kinds of the header (specification, "Kinds")."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nola_codec.basis import basis_by_id
from nola_codec.container import fields
from nola_codec.container.draw_wire import draw_from_wire, draw_to_wire
from nola_codec.container.limits import Limits
from nola_codec.model.adapter import Layout
from nola_codec.model.records import FORMS, CodedKind, DrawnKind, Kind, RawKind, Side, coded_sides
from nola_codec.model.tensors import DTYPE_BYTES, DTYPES

_PAIR, _RAW, _VECTOR, _DRAWN = 0, 1, 2, 3
RECORD_ORDER = (_PAIR, _VECTOR, _RAW, _DRAWN)
"""The record types in the order in which the records of a file come."""
_LAYOUTS: tuple[Layout, ...] = ("linear", "conv", "embedding")


def record_type(kind: Kind) -> int:
    """Return the number of the record type of a kind."""
    if isinstance(kind, CodedKind):
        return _PAIR if kind.is_pair else _VECTOR
    return _RAW if isinstance(kind, RawKind) else _DRAWN


def kind_to_wire(kind: Kind) -> list[Any]:
    """Return a kind as a list, the record type first; the specification gives the order of the other items.

    Tables, shifts and amplitude are not in it, but in the units section of rung 0.
    """
    if isinstance(kind, DrawnKind):
        return [_DRAWN, kind.template, *draw_to_wire(kind.draw)]
    if isinstance(kind, RawKind):
        return [_RAW, kind.template, DTYPES.index(kind.dtype), list(kind.shape)]
    full = kind.num_basis == kind.vector_lengths
    if not kind.is_pair:
        (side,) = kind.sides
        return [
            _VECTOR,
            kind.template,
            DTYPES.index(kind.dtype),
            kind.basis,
            None if full else side.num_basis,
            list(side.stored_shape),
        ]
    return [
        _PAIR,
        kind.template,
        _LAYOUTS.index(kind.layout),
        kind.scaling,
        int(kind.fan_in_fan_out),
        DTYPES.index(kind.dtype),
        kind.basis,
        FORMS.index(kind.split),
        None if full else list(kind.num_basis),
        *(list(shape) for shape in kind.stored_shapes),
    ]


def kind_from_wire(value: Any, limits: Limits) -> Kind:
    """Parse and check one kind.

    Raises:
        FormatError: ``header``, ``limit`` or ``basis``: A field has a wrong value.
    """
    items = fields.items(value, "kinds")
    parsers: dict[int, Callable[[Any, Limits], Kind]] = {
        _PAIR: _parse_pair, _RAW: _parse_raw, _VECTOR: _parse_vector, _DRAWN: _parse_drawn,
    }  # fmt: skip
    number = fields.integer(items[0] if items else None, "kinds record type", 0, 255)
    if number not in parsers:
        raise fields.header_error("kinds record type", "0 to 3", number)
    return parsers[number](value, limits)


def _parse_raw(value: Any, limits: Limits) -> RawKind:
    _, template, dtype, shape = fields.items(value, "kinds", count=4)
    raw = RawKind(
        fields.text(template, "kinds template", limits),
        DTYPES[fields.integer(dtype, "kinds dtype", 0, len(DTYPES) - 1)],
        fields.shape(shape, limits, least=0),
    )
    limits.require("factor_elements", -(-raw.nbytes // max(DTYPE_BYTES.values())), "header `kinds shape` (bytes / 8)")
    return raw


def _parse_drawn(value: Any, limits: Limits) -> DrawnKind:
    _, template, *rest = fields.items(value, "kinds", count=12)
    return DrawnKind(fields.text(template, "kinds template", limits), draw_from_wire(rest, limits))


def _parse_pair(value: Any, limits: Limits) -> CodedKind:
    _, template, layout, scaling, fan, dtype, basis, split, num_basis, b_shape, a_shape = fields.items(
        value, "kinds", count=11
    )
    b_shape, a_shape = fields.shape(b_shape, limits, least=1), fields.shape(a_shape, limits, least=1)
    _check_factors(b_shape, a_shape, limits)
    kind = CodedKind(
        template=fields.text(template, "kinds template", limits),
        layout=_LAYOUTS[fields.integer(layout, "kinds layout", 0, len(_LAYOUTS) - 1)],
        scaling=fields.real(scaling, "kinds scaling"),
        fan_in_fan_out=bool(fields.integer(fan, "kinds fan_in_fan_out", 0, 1)),
        dtype=DTYPES[fields.integer(dtype, "kinds dtype", 0, 2)],
        basis=basis_by_id(fields.integer(basis, "kinds basis", 0, 255)).id,
        split=FORMS[fields.integer(split, "kinds split", 0, len(FORMS) - 1)],
        sides=(),
    )
    sides = coded_sides(
        (b_shape, a_shape),
        kind.split,
        None if num_basis is None else _pair(num_basis, "kinds num_basis", 1, limits.dimension),
    )
    most = tuple(_most_coefficients(kind.basis, side, limits) for side in sides)
    counts = tuple(side.num_basis for side in sides)
    if any(count > bound for count, bound in zip(counts, most, strict=True)):
        raise fields.header_error("kinds num_basis", f"at most {most}", counts)
    return replace(kind, sides=sides)


def _parse_vector(value: Any, limits: Limits) -> CodedKind:
    _, template, dtype, basis, num_basis, shape = fields.items(value, "kinds", count=6)
    shape = fields.shape(shape, limits, least=1)
    elements = math.prod(shape)
    limits.require("factor_elements", elements, "header `kinds shape`")
    basis = basis_by_id(fields.integer(basis, "kinds basis", 0, 255)).id
    (side,) = coded_sides((shape,))
    if num_basis is not None:
        most = _most_coefficients(basis, side, limits)
        side = replace(side, num_basis=fields.integer(num_basis, "kinds num_basis", 1, most))
    return CodedKind(
        template=fields.text(template, "kinds template", limits),
        dtype=DTYPES[fields.integer(dtype, "kinds dtype", 0, 2)],
        basis=basis,
        sides=(side,),
    )


def _most_coefficients(basis: int, side: Side, limits: Limits) -> int:
    """Return the largest number of coefficients that a vector of a side may have."""
    most = basis_by_id(basis).max_num_basis(side.length)
    return limits.dimension if most is None else most


def _pair(value: Any, what: str, low: int, high: int) -> tuple[int, int]:
    first, second = fields.integers(value, what, low, high, count=2)
    return first, second


def _check_factors(b_shape: tuple[int, ...], a_shape: tuple[int, ...], limits: Limits) -> None:
    if len(b_shape) < 2 or len(a_shape) < 2 or any(d != 1 for d in b_shape[2:]):
        raise fields.header_error("kinds shape", "(out, r[, 1...]) and (r, in[, k...])", (b_shape, a_shape))
    rank = a_shape[0]
    if b_shape[1] != rank:
        raise fields.header_error("kinds shape", f"one rank in both factors ({rank})", b_shape)
    limits.require("rank", rank, "header `kinds rank`")
    for elements in (b_shape[0] * rank, math.prod(a_shape)):
        limits.require("factor_elements", elements, "header `kinds shape`")
