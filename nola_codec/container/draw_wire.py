"""Write and parse the kinds of drawn tensors in the header (specification, "Drawn tensors")."""

from __future__ import annotations

import struct
from typing import Any

from nola_codec.container import fields
from nola_codec.container.limits import Limits
from nola_codec.model.tensors import DTYPE_BYTES, DTYPES, Draw, DrawMethod

_METHODS: tuple[DrawMethod, ...] = ("uniform", "uniform-fused", "ternary")
_DIGITS = (24, 11, 8)
_MAX_CASTS = 4
_LARGEST = 2.0**32
"""The largest bound or divisor, and 1 over the least divisor, so that no float32 value overflows."""


def draw_to_wire(draw: Draw) -> list[Any]:
    """Return the ten fields of a kind that follow its template."""
    return [
        [DTYPES.index(dtype) for dtype in draw.dtypes],
        list(draw.shape),
        _METHODS.index(draw.method),
        draw.digits,
        draw.seed,
        draw.start,
        draw.axis,
        draw.low,
        draw.high,
        draw.divisor,
    ]


def draw_from_wire(items: list[Any], limits: Limits) -> Draw:
    """Parse and check the ten fields of a draw, without drawing anything.

    Raises:
        FormatError: ``header`` or ``limit``: A field has a wrong value.
    """
    dtypes, shape, method, digits, seed, start, axis, low, high, divisor = items
    ids = fields.integers(dtypes, "kinds dtypes", 0, 2)
    if not 1 <= len(ids) <= _MAX_CASTS:
        raise fields.header_error("kinds dtypes", f"1 to {_MAX_CASTS} of them", len(ids))
    if digits not in _DIGITS or type(digits) is not int:
        raise fields.header_error("kinds digits", f"one of {_DIGITS}", digits)
    draw = Draw(
        shape=fields.shape(shape, limits, least=1),
        dtypes=tuple(DTYPES[number] for number in ids),
        method=_METHODS[fields.integer(method, "kinds method", 0, len(_METHODS) - 1)],
        digits=digits,
        seed=fields.integer(seed, "kinds seed", 0, (1 << 32) - 1),
        start=fields.integer(start, "kinds start", 0, limits.words),
        axis=fields.integer(axis, "kinds axis", 0, 1),
        low=_single(low, "kinds low", _LARGEST),
        high=_single(high, "kinds high", _LARGEST),
        divisor=None if divisor is None else _single(divisor, "kinds divisor", _LARGEST),
    )
    if draw.low > draw.high:
        raise fields.header_error("kinds high", f"at least {draw.low}", draw.high)
    if draw.divisor is not None and draw.divisor < 1 / _LARGEST:
        raise fields.header_error("kinds divisor", f"at least {1 / _LARGEST}", draw.divisor)
    if draw.axis == 1 and len(draw.shape) < 2:
        raise fields.header_error("kinds axis", "0 for a shape of fewer than two dimensions", draw.axis)
    limits.require("factor_elements", -(-draw.nbytes // max(DTYPE_BYTES.values())), "header `kinds shape` (bytes / 8)")
    return draw


def _single(value: Any, what: str, largest: float) -> float:
    """Return a value if it is a float that float32 holds exactly, of magnitude `largest` at most."""
    number = fields.real(value, what)
    if abs(number) > largest or struct.unpack("<f", struct.pack("<f", number))[0] != number:
        raise fields.header_error(what, f"a float32 number of magnitude at most {largest}", number)
    return number
