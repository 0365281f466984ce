"""Tell how a reader gets from the block of a small file to its decoded SHA-256, number by number.

`annotate.py` writes it into the specification. It computes everything with the reference decoder.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np


def tell_block(ref: ModuleType, top: dict[str, Any], sections: list[tuple[int, bytes]]) -> Iterator[str]:
    """Yield all that follows the units of a file with one rung and one block, in component form and the Hadamard basis.

    Args:
        ref: The reference decoder.
        top: The header as the reference decoder has it after `read_units`.
        sections: The codec and the bytes of each section.
    """
    section = sections[1]
    models = [(book["size"], book["table"]) for book in top["quantizers"]]
    runs = [
        (number, -(-record["num_basis"][side] // top["quantizers"][number]["stride"]))
        for record in top["coded"]
        for side, _, number, _ in record["layers"]
    ]
    yield f"section 1, block 0, codec {section[0]}: runs (quantizer, length) " + " ".join(
        f"({q}, {n})" for q, n in runs
    )
    for model, width, count in ref.packed_parts(np.repeat(*np.array(runs).T), models):
        yield f"  quantizer {model}: {count} symbols of {width} bits, {(count * width + 7) // 8} bytes"
    symbols = ref.decode_symbols(*section, runs, models)
    ref.read_block(top, top["coded"], *section)
    pieces = iter(np.split(symbols, np.cumsum([length for _, length in runs])[:-1]))
    for record in top["coded"]:
        for side, vector, number, weight in record["layers"]:
            yield from _tell_vector(ref, top, record, side, vector, number, weight, next(pieces))
    yield from _tell_digest(ref, top, sections[2:])


def _tell_vector(
    ref: ModuleType,
    top: dict[str, Any],
    record: dict[str, Any],
    side: int,
    vector: int,
    number: int,
    weight: int,
    symbols: Any,
) -> Iterator[str]:
    name = list(record["sides"])[side]
    part = {"lora_B": f"column {vector}", "lora_A": f"row {vector}", "vector": "all of it"}[name]
    n, exponent, code = record["lengths"][side], record["exponents"][0][side], record["amplitudes"][vector]
    code *= 2 if name == "vector" else 1
    yield f"{record['name']}, {name}, {part}: quantizer {number}, weight {weight}, n = {n}"
    yield from _sequence("symbols", symbols)
    q = record["coefficients"][side, vector]
    yield from _sequence("q", q)
    t = 2 * record["stream"] + side
    y = ref.synthesize(record["basis"], q, n, top["seed"], t)
    block, passes = ref.block_and_passes(n)
    signs = [ref.signs(top["seed"], t, purpose, n) for purpose in (ref.SIGNS, ref.SIGNS_SECOND)]
    if passes == 1:
        yield from _sequence(f"T(q), block {block}", ref.transform(q, block))
        yield from _sequence(f"signs, t = {t}", signs[0])
    else:
        left, root = n % block, math.isqrt(block)
        first = np.concatenate((ref.transform(q[: n - left], block), root * q[n - left :]))
        yield from _sequence(f"first pass, block {block}: T(q[0 : {n - left}]), {root} * q[{n - left} : {n}]", first)
        yield from _sequence(f"signs, t = {t}", signs[0])
        z = first * signs[0]
        second = np.concatenate((root * z[:left], ref.transform(z[left:], block)))
        yield from _sequence(f"second pass: {root} * z[0 : {left}], T(z[{left} : {n}])", second)
        yield from _sequence(f"second signs, t = {t}", signs[1])
    yield from _sequence("y", y)
    shift = 15 - (code >> 5) + exponent
    yield f"  scale code {code}, e = {exponent}: mantissa {ref.MANTISSAS[code & 31]}, shift {shift}"
    yield from _sequence("int16", ref.to_int16(y, code, exponent))


def _tell_digest(ref: ModuleType, top: dict[str, Any], carried: list[tuple[int, bytes]]) -> Iterator[str]:
    tensors: dict[str, Any] = {}
    for record in top["coded"]:
        ref.decode_record(top, record, 0)
        tensors[f"{record['name']}.exponents"] = np.array(record["exponents"][0], "i1")
        tensors |= {f"{record['name']}.{side}": record[side].astype("<i2") for side in record["sides"]}
    for record, section in zip(top["raw"], carried, strict=True):
        tensors[record["name"]] = np.frombuffer(ref.read_carried(record, *section), np.uint8)
    yield "bytes that are hashed"
    for name, tensor in tensors.items():
        yield from textwrap.wrap(
            f"{name}: {tensor.tobytes().hex(' ')}", 110, initial_indent="  ", subsequent_indent=" " * 6
        )
    yield f"decoded SHA-256 {ref.decoded_sha256(tensors).hex()}"


def _sequence(title: str, values: Any) -> Iterator[str]:
    text = f"{title}: {' '.join(str(int(v)) for v in values)}"
    yield from textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="      ")
