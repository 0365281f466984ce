"""Known answers for each step of decoding, computed by the reference decoder; `make_conformance.py` writes them.

Each answer has all inputs and all outputs. Seeds are strings, since they may be larger than 2^53, and floats are
hexadecimal.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from random_sections import DEPENDENT, INTEGERS, POINTS, TRELLIS

from nola_codec.entropy.adaptive import IntegerWriter

SEED = 0x0123456789ABCDEF
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 36, 48, 64, 97, 128, 192, 576, 1100)
LONG_LENGTHS = (1, 2, 3, 7, 36, 97, 576, 11008, 50257)
Answers = list[dict[str, Any]]


def known_answers(ref: ModuleType) -> dict[str, Answers]:
    """Return the answers by the name of their file."""
    return {
        "words": list(_words(ref)),
        "signs": [
            {"seed": str(SEED), "t": 5, "purpose": purpose, "signs": ref.signs(SEED, 5, purpose, n).tolist()}
            for purpose in (0, 1, 3)
            for n in (1, 31, 32, 33, 200)
        ],
        "subsets": list(_subsets(ref)),
        "hadamard-blocks": [
            dict(zip(("n", "block", "passes"), (n, *ref.block_and_passes(n)), strict=True)) for n in range(1, 200)
        ]
        + [
            dict(zip(("n", "block", "passes"), (n, *ref.block_and_passes(n)), strict=True))
            for n in (576, 1024, 4096, 4100, 8192, 11008, 12288, 50257, 2**31)
        ],
        "bases": list(_bases(ref)),
        "quantizers": list(_quantizers(ref)),
        "weights": [{"w": w, "weight": ref.MANTISSAS[4 * (w % 8)] << w // 8 >> 15} for w in range(128)],
        "packed": list(_packed(ref)),
        "rans": list(_rans(ref)),
        "integers": list(_integers(ref)),
        "scales": list(_scales(ref)),
        "mt19937": list(_twister(ref)),
        "draws": list(_draws(ref)),
        "references": list(_references(ref)),
    }


def to_json(answers: Answers) -> bytes:
    """Return a JSON array with one answer a line."""
    lines = ",\n".join(json.dumps(answer, separators=(",", ":")) for answer in answers)
    return f"[\n{lines}\n]\n".encode()


def _words(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for seed, t, purpose in ((SEED, 0, 0), (0, 1, 2), (2**64 - 1, 2**32 - 1, 4), (SEED, 5, 1), (2**32, 2**31, 3)):
        made = ref.words(seed, t, purpose, 1001).tolist()
        yield {"seed": str(seed), "t": t, "purpose": purpose, "words": made[:10], "word_1000": made[1000]}


def _subsets(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for n in LENGTHS[:-1]:
        for k in sorted({1, (n + 2) // 3, n}):
            order = np.argsort(ref.words(SEED, 5, ref.SUBSET, n), kind="stable")
            yield {"seed": str(SEED), "t": 5, "n": n, "k": k, "positions": np.sort(order[:k]).tolist()}


def _bases(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for basis in (1, 2, 3):
        sizes = [(n, k) for n in LENGTHS for k in sorted({1, (n + 2) // 3, n}) if basis == 1 or n * k < 3000]
        sizes += [(4096, 60), (8192, 9)] if basis == 1 else [(3, 11), (7, 40), (33, 70)]
        for n, k in sizes:
            q = np.arange(k, dtype=np.int64) * 7919 % 15 - 7
            y = ref.synthesize(basis, q, n, SEED, 5)
            yield {"basis": basis, "seed": str(SEED), "t": 5, "n": n, "k": k, "q": q.tolist(), "y": y.tolist()}


def _quantizers(ref: ModuleType) -> Iterator[dict[str, Any]]:
    dependent = [[0, [1], [1]], [255, [2, 3], [1, 8]], [0b10110111, [17, 23, 50], [9, 24, 37]], [1, [3], [4]]]
    arrays: list[Any] = [[TRELLIS, number, None] for number in range(len(ref.TRELLISES))]
    arrays += [[DEPENDENT, parameters, None] for parameters in dependent]
    arrays += [[POINTS, [-32768, 32765, 3, 32768], None], [POINTS, [7], [4096]]]
    arrays += [[INTEGERS, 9, None], [INTEGERS, 16, None]]
    for array in arrays:
        book = ref.quantizer(*array)
        for steps in (1, 2, 9, 23):
            symbols = np.arange(steps, dtype=np.int64) * 7919 % 997 % book["size"]
            count = steps * book["stride"] - (steps > 2) * (book["stride"] // 2)
            points = ref.points(book, symbols, count).tolist()
            yield {"quantizer": array, "symbols": symbols.tolist(), "count": count, "points": points}


def _packed(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for sizes, runs in (
        ([6], [(0, 5)]),
        ([3, 256, 2], [(1, 2), (0, 7), (2, 9), (0, 2)]),
        ([1, 65536], [(1, 3), (0, 9)]),
    ):
        models = [(size, None) for size in sizes]
        which = np.repeat([m for m, _ in runs], [n for _, n in runs])
        symbols = np.arange(len(which)) * 7919 % np.array(sizes)[which]
        section = b""
        for model in sorted(set(which.tolist())):
            width = max(1, (sizes[model] - 1).bit_length())
            number = sum(int(s) << (width * i) for i, s in enumerate(symbols[which == model]))
            section += number.to_bytes((int((which == model).sum()) * width + 7) // 8, "little")
        assert ref.decode_symbols(0, section, runs, models).tolist() == symbols.tolist()
        yield {"sizes": sizes, "runs": runs, "section": section.hex(), "symbols": symbols.tolist()}


def _rans(ref: ModuleType) -> Iterator[dict[str, Any]]:
    tables = [[2048, 1536, 512], [4096], [1] * 255 + [4096 - 255]]
    for log_lanes, runs in ((0, [(0, 14)]), (2, [(0, 9), (1, 3), (2, 20)]), (3, [(2, 5)]), (1, [])):
        which = np.repeat(np.array([m for m, _ in runs], int), [n for _, n in runs] or 0).tolist()
        symbols = [i * i * 7919 % len(tables[m]) for i, m in enumerate(which)]
        section = encode_rans(log_lanes, symbols, [tables[m] for m in which])
        models = [(len(table), table) for table in tables]
        assert ref.decode_symbols(2, section, runs, models).tolist() == symbols
        yield {"frequencies": tables, "runs": runs, "section": section.hex(), "symbols": symbols}


def encode_rans(log_lanes: int, symbols: list[int], tables: list[list[int]]) -> bytes:
    """Return a section of interleaved rANS. Symbol i has the frequencies tables[i]; symbols 0 fill the last row."""
    lanes = 1 << log_lanes
    filling = -len(symbols) % lanes
    symbols, tables = [*symbols, *[0] * filling], [*tables, *tables[-1:] * filling]
    states, words = [1 << 16] * lanes, b""
    for i in reversed(range(len(symbols))):
        lane, frequency, start = i % lanes, tables[i][symbols[i]], sum(tables[i][: symbols[i]])
        if states[lane] >> 20 >= frequency:
            words = (states[lane] & 0xFFFF).to_bytes(2, "little") + words
            states[lane] >>= 16
        states[lane] = (states[lane] // frequency << 12) + states[lane] % frequency + start
    return bytes([log_lanes]) + b"".join(state.to_bytes(4, "little") for state in states) + words


def _integers(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for count, spread in ((0, 1), (1, 1), (8, 1), (300, 2), (300, 40), (40, 1 << 20)):
        written = [(i * 7919 % 3, (i * i * 104729 % 15485863) % (2 * spread) - spread + 1) for i in range(count)]
        writer = IntegerWriter()
        for role, value in written:
            writer.write(role, min(value, (1 << 20) - 1))
        section = writer.finish()
        reader = ref.Integers(section)
        integers = [reader.read(role) for role, _ in written]
        yield {"section": section.hex(), "roles": [role for role, _ in written], "integers": integers}


def _scales(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for code in (-4096, -437, -33, -32, -1, 0, 1, 10, 31, 32, 900, 4095):
        for shift in (1, 2, 13, 15, 30, 62):
            exponent = shift - 15 + (code >> 5)
            if -120 <= exponent <= 100:
                y = [0, 1, -1, 5, -5, 1000, -1000, 2**31, -(2**31), 2**46 - 1, 1 - 2**46]
                results = ref.to_int16(np.array(y, np.int64), code, exponent).tolist()
                yield {"y": y, "code": code, "exponent": exponent, "results": results}


def _twister(ref: ModuleType) -> Iterator[dict[str, Any]]:
    for seed in (0, 1, 5489, 2**32 - 1):
        made = ref.draws()["mt19937"](seed, 0, 10_000).tolist()
        yield {"seed": seed, "words": made[:6], "word_623": made[623], "word_624": made[624], "word_9999": made[-1]}


def _draws(ref: ModuleType) -> Iterator[dict[str, Any]]:
    end = float(np.float32(0.3))
    fields = ("dtypes", "shape", "method", "digits", "seed", "start", "axis", "low", "high", "divisor")
    for values in (
        ([0], [5], 0, 24, 5489, 1, 0, -end, end, None),
        ([0], [5], 1, 24, 5489, 1, 0, -end, end, None),
        ([0], [7], 2, 24, 5489, 1, 0, 0.25, 0.75, None),
        ([2, 1, 0], [3, 2, 4], 1, 24, 2**32 - 1, 700, 1, -end, end, 0.14453125),
        ([1], [9], 0, 11, 1, 623, 0, -0.5, 0.5, 3.0),
        ([2], [9], 0, 8, 1, 0, 0, -0.5, 0.5, None),
        ([0, 1], [4], 0, 24, 7, 0, 0, -1e9, 1e9, None),
    ):
        kind = dict(zip(fields, values, strict=True))
        floats = {name: value.hex() for name, value in kind.items() if isinstance(value, float)}
        yield {**kind, **floats, "bytes": ref.draws()["draw"](kind).hex()}


def _references(ref: ModuleType) -> Iterator[dict[str, Any]]:
    numbers = np.array([[0, 3], [100, 1000], [-7, -1000], [9, 20000], [-32768, -32768], [32767, 1], [1, -1]])
    for gain in (0, 1, 1024, 1145, 32767):
        for gap in (-9, -1, 0, 1, 5, 52, 60):
            sides = {"vector": [len(numbers)]}
            record: dict[str, Any] = {"name": "a", "form": 0, "type": 2, "sides": sides, "exponents": [[gap]]}
            record["vector"] = numbers[:, 0].copy()
            known = {"a.vector": numbers[:, 1].astype("<i2"), "a.exponents": np.array([0], "i1")}
            ref.add_reference({"reference": [b"", 1, [gain, gain], ""]}, record, 0, known)
            yield {"own": numbers[:, 0].tolist(), "old": numbers[:, 1].tolist(), "gain": gain, "exponent": gap,
                   "exponent_of_reference": 0, "v": record["vector"].tolist()}  # fmt: skip


def long_bases(ref: ModuleType) -> Answers:
    """Return the answers of `tests/kat/bases.json`: synthesized vectors, and hashes of long ones."""
    bases = []
    for n in LONG_LENGTHS:
        for basis in (1, 2, 3):
            most = n if basis == 1 else 5
            for k in sorted({1, min((n + 2) // 3, most), most}):
                y = ref.synthesize(basis, coefficients(k), n, SEED, 5)
                row = ref.synthesize(basis, (np.arange(k) == k - 1).astype(np.int64), n, SEED, 5)
                answer = {"seed": SEED, "stream": 5, "basis": basis, "n": n, "k": k}
                bases.append({**answer, "last_row": values(row), "synthesis": values(y)})
    return bases


def coefficients(k: int) -> np.ndarray:
    """The coefficients that `bases.json` synthesizes: -7 to 7 in a fixed order."""
    return np.arange(k, dtype=np.int64) * 7919 % 15 - 7


def sha256_of(array: np.ndarray) -> str:
    """SHA-256 of little-endian int64."""
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()


def values(array: np.ndarray) -> dict[str, Any]:
    """Short arrays whole, long ones by their SHA-256."""
    return {"values": array.tolist()} if len(array) <= 40 else {"sha256": sha256_of(array)}
