"""Canonical MessagePack, in which every value has exactly one byte string.

Maps have string keys in ascending order of their UTF-8 bytes. Integers and lengths take their shortest form, and floats
have 64 bits. A reader encodes the decoded value again and compares the bytes, which also finds duplicate keys.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import msgpack

from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.errors import FormatError


def pack(value: Any) -> bytes:
    """Encode maps, lists, strings, bytes, ints, floats, bools and None."""
    data: bytes = msgpack.packb(_sort_keys(value), use_bin_type=True)
    return data


def repack(value: Any) -> bytes:
    """Encode a value that `unpack` returned, or a list of such values."""
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def unpack(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode bytes, and require the canonical form.

    Raises:
        FormatError: ``header``: The bytes are not MessagePack, or not in canonical form; ``limit``: They hold too many
            values.
    """
    check_values(data, limits)
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True, object_pairs_hook=_ordered_map)
        if repack(value) != data:
            raise FormatError("header: not in canonical MessagePack form", code="header")
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise FormatError(f"header: not valid MessagePack ({error})", code="header") from error
    return value


def check_values(data: bytes, limits: Limits) -> None:
    """Raise FormatError ``limit`` if MessagePack bytes hold or announce more values than a header may.

    A value takes up to a hundred times its bytes once it is a Python object, and an array takes room for all values
    that it announces. Extension types raise FormatError ``header``. Bytes that are not MessagePack may pass.
    """
    most = limits.header_values
    position, found, announced = 0, 0, 1  # the values that were found, and those that containers announce
    while position < len(data) and found <= most:
        code = data[position]
        found += 1
        if code >= 0xE0 or code < 0x80 or code in _ATOMS:
            end = _RUN.match(data, position).end()  # type: ignore[union-attr] # it matches one byte at least
            found += end - position - 1
            position = end
            continue
        if code in _EXTENSIONS:  # msgpack would make timestamps of some, which can be written again
            raise FormatError("header: not valid MessagePack (an extension type)", code="header")
        skip, width, children = _LAYOUTS.get(code, (1, 0, 0))
        count = int.from_bytes(data[position + 1 : position + 1 + width], "big")
        if code < 0xC0:  # short maps, arrays and strings: the count is in the code
            count = code & (0x1F if code >= 0xA0 else 0x0F)
            skip, children = (1 + count, 0) if code >= 0xA0 else (1, 1 if code >= 0x90 else 2)
        elif width and not children:
            skip += count
        position += skip
        announced += count * children
        if announced > len(data):  # each value takes a byte
            raise FormatError("header: not valid MessagePack (it ends early)", code="header")
        limits.require("header_values", announced, "header (MessagePack values)")
    limits.require("header_values", found, "header (MessagePack values)")


def _ordered_map(items: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return a map as it was read. Raises TypeError or ValueError unless its keys are strings in ascending order."""
    keys = []
    for key, _ in items:
        if not isinstance(key, str):
            raise TypeError("map keys must be strings")
        keys.append(key.encode())
    if any(key >= following for key, following in pairwise(keys)):
        raise ValueError("map keys must ascend")
    return dict(items)


_ATOMS = frozenset((0xC0, 0xC2, 0xC3))
_EXTENSIONS = frozenset((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))
_RUN = re.compile(rb"[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]+")
"""Values of one byte: small integers, nil, false and true."""
_LAYOUTS = {
    0xC4: (2, 1, 0), 0xC5: (3, 2, 0), 0xC6: (5, 4, 0),  # bytes
    0xCA: (5, 0, 0), 0xCB: (9, 0, 0),  # floats
    0xCC: (2, 0, 0), 0xCD: (3, 0, 0), 0xCE: (5, 0, 0), 0xCF: (9, 0, 0),  # unsigned integers
    0xD0: (2, 0, 0), 0xD1: (3, 0, 0), 0xD2: (5, 0, 0), 0xD3: (9, 0, 0),  # signed integers
    0xD9: (2, 1, 0), 0xDA: (3, 2, 0), 0xDB: (5, 4, 0),  # strings
    0xDC: (3, 2, 1), 0xDD: (5, 4, 1),  # arrays
    0xDE: (3, 2, 2), 0xDF: (5, 4, 2),  # maps
}  # fmt: skip
"""By the first byte of a value: the bytes of its head (or of all of it), those of its length among them, and the values
that each of the counted items has if it is a container."""


def _sort_keys(value: Any) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("map keys must be strings")
        return {key: _sort_keys(value[key]) for key in sorted(value, key=lambda k: k.encode())}
    if isinstance(value, list | tuple):
        return [item if type(item) is int else _sort_keys(item) for item in value]  # long lists hold integers
    if value is not None and not isinstance(value, str | bytes | bool | int | float):
        raise TypeError(f"no {type(value).__name__} in a header")  # such as the timestamps of msgpack
    return value
