"""Check the types and bounds of values in a decoded header.

Each function returns the value if it is as expected, else it raises FormatError with the code ``header`` or ``limit``.
`what` is the name of the field in the error.
"""

from __future__ import annotations

import math
from typing import Any

from nola_codec.container.limits import Limits
from nola_codec.errors import FormatError, mismatch


def header_error(what: str, wanted: object, found: object) -> FormatError:
    """Return the error of a header field: what was expected, and what was found."""
    text = repr(found)
    return FormatError(
        mismatch(f"header `{what}`", wanted, text if len(text) <= 80 else text[:77] + "..."), code="header"
    )


def integer(value: Any, what: str, low: int, high: int) -> int:
    """Return an int (not a bool) in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise header_error(what, f"an integer from {low} to {high}", value)
    return value


def integers(value: Any, what: str, low: int, high: int, *, count: int | None = None) -> tuple[int, ...]:
    """Return a list of ints in [low, high]; it has exactly `count` of them if that is given."""
    return tuple(integer(item, what, low, high) for item in items(value, what, count=count))


def real(value: Any, what: str) -> float:
    """Return a finite float."""
    if type(value) is not float or not math.isfinite(value):
        raise header_error(what, "a finite float", value)
    return value


def text(value: Any, what: str, limits: Limits, limit: str = "name") -> str:
    """Return a string that is no longer than a limit, by default that of a name."""
    if type(value) is not str:
        raise header_error(what, "a string", value)
    limits.require(limit, len(value), f"header `{what}`")
    return value


def binary(value: Any, what: str, *, count: int | None = None) -> bytes:
    """Return bytes; there are exactly `count` of them if that is given."""
    if type(value) is not bytes or (count is not None and len(value) != count):
        raise header_error(what, f"{count} bytes" if count is not None else "bytes", value)
    return value


def items(value: Any, what: str, *, count: int | None = None) -> list[Any]:
    """Return a list; it has exactly `count` items if that is given."""
    if type(value) is not list or (count is not None and len(value) != count):
        raise header_error(what, f"a list of {count} items" if count is not None else "a list", value)
    return value


def mapping(value: Any, what: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a map; it has exactly `keys` if they are given."""
    if type(value) is not dict:
        raise header_error(what, "a map", value)
    if keys is not None and tuple(sorted(value)) != tuple(sorted(keys)):
        unknown, missing = sorted(set(value) - set(keys)), sorted(set(keys) - set(value))
        raise header_error(what, f"the keys {sorted(keys)}", f"unknown {unknown}, missing {missing}")
    return value


def shape(value: Any, limits: Limits, least: int) -> tuple[int, ...]:
    """Return the shape of a kind, in which each dimension is at least `least`."""
    dimensions = integers(value, "kinds shape", least, limits.dimension)
    limits.require("dimensions", len(dimensions), "header `kinds shape`")
    return dimensions
