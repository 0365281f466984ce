"""Check the index of an undo file, which a stranger may have written, before anything of it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.terms import DeltaTerm
from nola_codec.model.tensors import DTYPE_BYTES

_MOST_BYTES = 1 << 60
"""Bytes of one tensor, and offsets in a file, below which sums stay in 64 bits."""
_HASH_DIGITS = 64


def check_index(index: Any, where: str) -> dict[str, Any]:
    """Return the index if all of its parts have the types and the ranges that the specification gives them.

    Args:
        index: The parsed JSON.
        where: The name of the file, for errors.

    Raises:
        AdapterError: ``bad-undo``: It names the part.
    """
    try:
        _require_list(index, "adapters", lambda value, part: None)  # it is only compared
        _require(_is_count(index.get("piece_bytes")), "piece_bytes", "a number of bytes", index.get("piece_bytes"))
        _require_map(index, "files", _require_text)
        _require_map(index, "shards", _check_shard)
    except AdapterError as error:
        raise error.within(where) from error
    checked: dict[str, Any] = index
    return checked


def _check_shard(facts: Any, part: str) -> None:
    _require(isinstance(facts, dict), part, "a map", facts)
    digest = facts.get("sha256")
    _require(isinstance(digest, str) and len(digest) == _HASH_DIGITS, f"{part}: sha256", "64 digits", digest)
    _require_text(facts.get("header"), f"{part}: header")
    _require_map(facts, "tensors", _check_tensor)
    _require_list(facts, "stored", _require_text)
    _require_map(facts, "terms", _check_terms)
    _require_map(facts, "blocks", lambda blocks, name: _check_all(blocks, name, _check_block))


def _check_tensor(value: Any, part: str) -> None:
    fits = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in DTYPE_BYTES
    _require(fits and isinstance(value[1], list) and all(map(_is_count, value[1])), part, "a dtype and a shape", value)
    total = DTYPE_BYTES[value[0]]
    for size in value[1]:
        total *= size
        _require(total < _MOST_BYTES, part, "a shape of a tensor", value)


def _check_terms(terms: Any, part: str) -> None:
    _check_all(terms, part, lambda term, _: DeltaTerm.parse(term))
    _require(bool(terms), part, "a term", terms)


def _check_block(value: Any, part: str) -> None:
    is_block = isinstance(value, list) and len(value) == 5 and all(map(_is_count, value))
    _require(is_block, part, "start, stop, offset, length and CRC-32", value)


def _check_all(value: Any, part: str, check: Callable[[Any, str], object]) -> None:
    _require(isinstance(value, list), part, "a list", value)
    for item in value:
        check(item, part)


def _require_map(holder: Any, key: str, check: Callable[[Any, str], object]) -> None:
    _require(isinstance(holder, dict), "index", "a map", holder)
    value = holder.get(key)
    _require(isinstance(value, dict), key, "a map", value)
    for name, item in value.items():
        check(item, f"{key}: {name}")


def _require_list(holder: Any, key: str, check: Callable[[Any, str], object]) -> None:
    _require(isinstance(holder, dict), "index", "a map", holder)
    _check_all(holder.get(key), key, check)


def _require_text(value: Any, part: str) -> None:
    _require(isinstance(value, str), part, "text", value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_BYTES


def _require(condition: bool, part: str, wanted: str, found: object) -> None:
    if not condition:
        raise AdapterError(mismatch(part, wanted, repr(found)[:80]), code="bad-undo")
