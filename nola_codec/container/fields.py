"""Reading typed, bounded values out of a decoded header map."""

from __future__ import annotations

import math
from typing import Any

from nola_codec.container.limits import Limits
from nola_codec.errors import FormatError, mismatch


def header_error(what: str, wanted: object, found: object) -> FormatError:
    """A header error, phrased as all are."""
    text = repr(found)
    return FormatError(
        mismatch(f"header `{what}`", wanted, text if len(text) <= 80 else text[:77] + "..."), code="header"
    )


def limit_error(what: str, limit: int, found: int) -> FormatError:
    """A limit exceeded."""
    return FormatError(mismatch(f"header `{what}`", f"at most {limit}", found), code="limit")


def integer(value: Any, what: str, low: int, high: int) -> int:
    """An int (not a bool) in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise header_error(what, f"an integer from {low} to {high}", value)
    return value


def integers(value: Any, what: str, low: int, high: int, *, count: int | None = None) -> tuple[int, ...]:
    """A list of such ints, of exactly `count` when given."""
    return tuple(integer(item, what, low, high) for item in items(value, what, count=count))


def real(value: Any, what: str) -> float:
    """A finite float."""
    if type(value) is not float or not math.isfinite(value):
        raise header_error(what, "a finite float", value)
    return value


def text(value: Any, what: str, limit: int) -> str:
    """A string of at most `limit` characters."""
    if type(value) is not str:
        raise header_error(what, "a string", value)
    if len(value) > limit:
        raise limit_error(what, limit, len(value))
    return value


def binary(value: Any, what: str, *, count: int | None = None) -> bytes:
    """Bytes, of exactly `count` when given."""
    if type(value) is not bytes or (count is not None and len(value) != count):
        raise header_error(what, f"{count} bytes" if count is not None else "bytes", value)
    return value


def items(value: Any, what: str, *, count: int | None = None) -> list[Any]:
    """A list, of exactly `count` items when given."""
    if type(value) is not list or (count is not None and len(value) != count):
        raise header_error(what, f"a list of {count} items" if count is not None else "a list", value)
    return value


def mapping(value: Any, what: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A map with exactly these keys when given."""
    if type(value) is not dict:
        raise header_error(what, "a map", value)
    if keys is not None and tuple(sorted(value)) != tuple(sorted(keys)):
        unknown, missing = sorted(set(value) - set(keys)), sorted(set(keys) - set(value))
        raise header_error(what, f"the keys {sorted(keys)}", f"unknown {unknown}, missing {missing}")
    return value


def shape(value: Any, limits: Limits, least: int) -> tuple[int, ...]:
    """A kind's shape, each dimension at least `least`."""
    dimensions = integers(value, "kinds shape", least, limits.dimension)
    if len(dimensions) > limits.dimensions:
        raise limit_error("kinds shape", limits.dimensions, len(dimensions))
    return dimensions
