"""Change bytes, and trees of JSON or MessagePack, at random.

Each function takes a `random.Random`, so that a number repeats a change.

scramble(b"NLA", random.Random(1))
alter({"r": 8, "names": ["q_proj"]}, random.Random(1))
"""

from __future__ import annotations

import random
from typing import Any

_EDGES: list[Any] = [
    0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1,
]  # fmt: skip
_OTHERS: list[Any] = [
    None, True, False, 0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), "", "a#b", "#", "../x", "a/b", "\n",
    "\x00", "x" * 300, "1", "q_proj", ".*", "(a|a)*b", [], [0], [1, 2], ["q"], {}, {"a": 1}, [[]],
]  # fmt: skip
_WIRE_OTHERS: list[Any] = [b"", b"\x80", b"\xff" * 9]


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, dropped, doubled, put in, or overwritten by a number at a boundary."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] = rng.randrange(256)
            case 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + rng.choice((1, 1, 2, 4, 9, len(out)))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 4, 64))]
            case 4:
                size = rng.choice((1, 2, 4, 8))
                number = (rng.choice(_EDGES) & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
                out[at : at + size] = number
            case _:
                out[at:at] = rng.randbytes(rng.choice((1, 1, 8)))
    return bytes(out)


def alter(value: Any, rng: random.Random, *, wire: bool = False) -> Any:
    """Return a tree with one value changed; `wire` allows what only MessagePack has."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        match rng.randrange(20):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, str(rng.choice(_OTHERS)): value[key]}
            case 2:
                return {**value, key: value[rng.choice(list(value))]}
        return {**value, key: alter(value[key], rng, wire=wire)}
    if isinstance(value, list) and value and rng.random() < 0.93:
        at = rng.randrange(len(value))
        match rng.randrange(14):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[: at + 1], *value[at:]]
            case 2:
                return value * rng.choice((2, 3, 40))
        return [*value[:at], alter(value[at], rng, wire=wire), *value[at + 1 :]]
    if isinstance(value, bytes) and rng.random() < 0.9:
        return scramble(value, rng)
    if isinstance(value, str) and rng.random() < 0.5:
        at = rng.randrange(len(value) + 1)
        return rng.choice((value[:at], value[at:], value + value, value[:at] + rng.choice(".#/_0a:é") + value[at:]))
    if type(value) is int and rng.random() < 0.7:
        return max(-(1 << 63), min(value + rng.choice((-1, 1, 2, -8, 64, 255)), (1 << 64) - 1))
    if type(value) is float and rng.random() < 0.5:
        return value * rng.choice((-1.0, 0.0, 2.0, 1e-30, 1e30, 1e300))
    return rng.choice(_EDGES + _OTHERS + (_WIRE_OTHERS if wire else []))
