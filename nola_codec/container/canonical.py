"""Canonical MessagePack, in which every value has exactly one byte string.

Maps have string keys in ascending order of their UTF-8 bytes. Integers and lengths take their shortest form, and floats
have 64 bits. A reader encodes the decoded value again and compares the bytes, which also finds duplicate keys.
"""

from __future__ import annotations

from typing import Any

import msgpack

from nola_codec.errors import FormatError


def pack(value: Any) -> bytes:
    """Encode maps, lists, strings, bytes, ints, floats, bools and None."""
    data: bytes = msgpack.packb(_sort_keys(value), use_bin_type=True)
    return data


def unpack(data: bytes) -> Any:
    """Decode bytes, and require the canonical form.

    Raises:
        FormatError: ``header``: The bytes are not MessagePack, or not in canonical form.
    """
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
        if pack(value) != data:
            raise FormatError("header: not in canonical MessagePack form", code="header")
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise FormatError(f"header: not valid MessagePack ({error})", code="header") from error
    return value


def _sort_keys(value: Any) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("map keys must be strings")
        return {key: _sort_keys(value[key]) for key in sorted(value, key=lambda k: k.encode())}
    if isinstance(value, list | tuple):
        return [_sort_keys(item) for item in value]
    if value is not None and not isinstance(value, str | bytes | bool | int | float):
        raise TypeError(f"no {type(value).__name__} in a header")  # such as the timestamps of msgpack
    return value
