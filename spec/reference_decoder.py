"""Reference decoder of the `.nola` format: nola-v1.md as plain code, in its order. It shares nothing with the package.

    python spec/reference_decoder.py FILE [--npz OUT]

Prints the SHA-256 of the decoded tensors and exits with 0; with 1 when the file is refused, the reject table's code and
a reason going to stderr. Needs numpy, msgpack and zstandard. Written to be read, not to be fast; it sets no limits.
"""

import hashlib
import math
import struct
import sys
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard

SIGNS, SIGNS_SECOND, SUBSET, RADEMACHER, UNIFORM = range(5)
DTYPE_BYTES = (4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 2, 4, 8, 1, 1)
MANTISSAS = (
    32768, 33486, 34219, 34968, 35734, 36516, 37316, 38133, 38968, 39821, 40693, 41584, 42495, 43425, 44376, 45348,
    46341, 47356, 48393, 49452, 50535, 51642, 52773, 53928, 55109, 56316, 57549, 58809, 60097, 61413, 62757, 64132,
)  # fmt: skip
# The header's schema. A range: an int in it; a type: a value of it; [s]: a list of any length; (s, ...): a list of
# exactly these; {s}: a map with such values; (None, s): s or nil.
SIZES, OFFSET, TABLE = [range(1, 2**31 + 1)], range(-16384, 16385), (None, [range(1, 4097)])
SCHEMA = {
    "amplitude_slope": range(-64, 65), "blocks": [range(1, 2**17 + 1)], "config": (None, dict), "dialect": str,
    "generator": range(256), "kinds": [list], "metadata": {str}, "numbers": bytes, "records": bytes, "rungs": [list],
    "quantizers": [(range(6), object, TABLE)], "seed": range(2**64), "streams": (None, [range(2**31)]), "writer": str,
    "sections": [(range(2**63), range(2**63), range(2**63), range(2**32))],
}  # fmt: skip
RUNG = {
    "allocation": [[(OFFSET, range(-1, 256), OFFSET, range(128))]], "units": bytes, "exponents": bytes,
    "side_models": ((range(1, 257), TABLE), (range(1, 257), TABLE)), "factors_sha256": bytes, "measured": {float},
}  # fmt: skip
LOWRANK = {
    "type": range(1), "template": str, "layout": range(3), "b_shape": SIZES, "a_shape": SIZES, "scaling": float,
    "fan_in_fan_out": range(2), "dtype": range(3), "basis": range(256), "split": range(2),
    "counts": (None, (SIZES[0], SIZES[0])), "tables": (range(256), range(256)),
    "shift": (range(-1023, 1024), range(-1023, 1024)), "amplitude": OFFSET,
}  # fmt: skip
# Trellises: bits of a step, levels, masks.
SIGN, FOUR = (-1, 1), (-10, -3, 3, 10)
TRELLISES = [(bits, levels, bytes.fromhex(masks)) for bits, levels, masks in (
    (1, SIGN, "d19d85f9c7b1d197a99fb5d39ddbc5d991aff7d5e1abd389"), (1, SIGN, "9fe39bc7c5bda3d7b9a1bbedd3afa781"),
    (1, SIGN, "c9e3e7f79beddbbfcf9bf389"), (1, SIGN, "eb8789c5bbb1e7c7ddb3"), (1, SIGN, "99a7dfe1dfb5818d"),
    (1, SIGN, "f7a9e5e3fbf9"), (1, SIGN, "8b999ddbbd"), (1, SIGN, "9f8dabb9"), (1, SIGN, "ddbf83"),
    (2, SIGN, "ea81bdce77"), (1, SIGN, "b9e3"), (2, FOUR, "75fb6795d192"), (1, FOUR, "9dfb"),
)]  # fmt: skip
VECTOR = {
    "type": range(2, 3), "template": str, "dtype": range(3), "shape": SIZES, "basis": range(256),
    "counts": (None, SIZES[0]), "tables": range(256), "shift": range(-1023, 1024), "amplitude": OFFSET,
}  # fmt: skip
RAW = {"type": range(1, 2), "template": str, "dtype": range(15), "shape": [range(2**31 + 1)]}
DRAWN = {
    "type": range(3, 4), "template": str, "dtypes": [range(3)], "shape": SIZES, "method": range(3),
    "digits": range(8, 25), "seed": range(2**32), "start": range(2**34 + 1), "axis": range(2), "low": float,
    "high": float, "divisor": (None, float),
}  # fmt: skip


class Refused(Exception):
    """A file to be refused: (code of the reject table, reason)."""


def need(condition: Any, code: str, reason: str) -> None:
    if not condition:
        raise Refused(code, reason)


def open_file(data: bytes) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
    """The header's map, checked, and (codec, stored bytes) of each section."""
    need(data[:8] == b"\x89NLA\r\n\x1a\n"[: len(data)], "magic", "not a .nola file")
    need(len(data) >= 76, "truncated", "prelude")
    version, _, required, _, stored, plain, crc, length, sha = struct.unpack_from("<HHIIIIIQ32s", data, 8)
    need(version == 0, "version", f"format version {version}")
    need(zlib.crc32(data[:72]) == struct.unpack_from("<I", data, 72)[0], "prelude-checksum", "prelude")
    need(required == 0, "feature", f"flags {required:#x}")
    need(length >= 76 + stored, "header", "file length")
    need(len(data) == length, "truncated" if len(data) < length else "trailing", f"{len(data)} of {length} bytes")
    end, offset, sections = 76 + stored, 0, []
    need(zlib.crc32(data[76:end]) == crc, "header-checksum", "header")
    top = parse_header(unzstd(data[76:end], plain, Path(__file__).with_name("header-dictionary.bin").read_bytes()))
    base = end + -end % 8
    for codec, start, size, section_crc in top["sections"]:
        need(start == offset and base + start + size <= length, "offset", "section")
        need(not any(data[end : base + start]), "padding", "bytes between sections")
        end, offset = base + start + size, start + size + -(start + size) % 8
        sections.append((codec, data[base + start : end]))
        need(zlib.crc32(sections[-1][1]) == section_crc, "section-checksum", "section")
    need(end == length, "trailing", "bytes after the last section")
    need(hashlib.sha256(data[:40] + data[76:]).digest() == sha, "content-checksum", "content")
    return top, sections


def unzstd(data: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """One zstd frame without its magic number, of a declared size, and nothing after it."""
    frame = b"\x28\xb5\x2f\xfd" + data
    extra = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        need(declared == size <= len(data) << 15 and (size > 0 or data == b"\x20\0\1\0\0"), "zstd", "declared size")
        return zstandard.ZstdDecompressor(dict_data=extra).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("zstd", str(error)) from error


def conforms(value: Any, schema: Any) -> bool:
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if isinstance(schema, list):
        return type(value) is list and all(conforms(v, schema[0]) for v in value)
    if isinstance(schema, set):
        return type(value) is dict and all(conforms(v, *schema) for v in value.values())
    if isinstance(schema, tuple):
        if schema[0] is None:
            return value is None or conforms(value, schema[1])
        return type(value) is list and len(value) == len(schema) and all(map(conforms, value, schema))
    return schema is object or (type(value) is schema and (schema is not float or math.isfinite(value)))


def ordered(value: Any) -> Any:
    if type(value) is dict:
        return {key: ordered(value[key]) for key in sorted(value, key=str.encode)}
    need(value is None or type(value) in (str, bytes, bool, int, float, list), "header", "MessagePack type")
    return [ordered(v) for v in value] if type(value) is list else value


def parse_header(data: bytes) -> dict[str, Any]:
    """The header's map; wire forms replaced by what they stand for, `coded` and `raw` records added."""
    try:
        top = msgpack.unpackb(data, raw=False, strict_map_key=True)
        need(msgpack.packb(ordered(top), use_bin_type=True) == data, "header", "not canonical")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Refused("header", str(error)) from error
    need(type(top) is dict and top.keys() == SCHEMA.keys(), "header", "keys")
    need(all(conforms(top[key], schema) for key, schema in SCHEMA.items()), "header", "a value")
    need(top["generator"] in (1, 2), "generator", str(top["generator"]))
    top["quantizers"] = [quantizer(*q) for q in top["quantizers"]]
    need(1 <= len(top["rungs"]) <= 64 and conforms(top["rungs"], [tuple(RUNG.values())]), "header", "rungs")
    top["rungs"] = [dict(zip(RUNG, rung, strict=True)) for rung in top["rungs"]]
    for table in [table for rung in top["rungs"] for table in rung["allocation"]]:
        need(all(q < len(top["quantizers"]) for _, q, _, _ in table), "header", "allocation quantizer")
        need(all(a[0] < b[0] for a, b in pairwise(table)), "header", "allocation must ascend")
    models = [(q["size"], q["table"]) for q in top["quantizers"]]
    for size, table in (*models, *(model for rung in top["rungs"] for model in rung["side_models"])):
        need(table is None or (256 >= size == len(table) and sum(table) == 4096), "header", "frequencies")
    make_records(top, [make_kind(k) for k in top["kinds"]])
    need(sum(top["blocks"]) == len(top["coded"]), "header", "blocks")
    need(all(len(rung["factors_sha256"]) == 32 for rung in top["rungs"]), "header", "digest")
    sections = len(top["rungs"]) * (1 + len(top["blocks"])) + len(top["raw"])
    need(len(top["sections"]) == sections, "header", "sections")
    return dict(top)


def quantizer(form: int, data: Any, table: list[int] | None) -> dict[str, Any]:
    """Size of the alphabet, frequencies, largest magnitude, and what its form needs."""
    made: dict[str, Any] = {"form": form, "table": table, "stride": 1}
    if form == 4:
        need(conforms(data, range(len(TRELLISES))) and table is None, "header", "trellis")
        made["bits"], made["levels"], made["masks"] = TRELLISES[data]
        each = 1 if made["levels"] == SIGN else 2
        return made | {"stride": len(made["masks"]) // each, "size": 1 << made["bits"], "peak": max(made["levels"])}
    if form == 2 or form == 3:  # midtread and midrise; the parameter is the number of bits
        need(conforms(data, range(2, 17) if form == 2 else range(1, 9)), "header", "bits")
        half = 1 << data - 1
        books = [list(range(-half, half) if form == 2 else range(1 - 2 * half, 2 * half, 2))]
    else:
        need(form < 5 or conforms(data, (range(256), list, list)), "header", "parameters")
        books = data[1:] if form == 5 else [data]
        need(conforms(books, [[range(-32768 if form == 1 else 1, 32769)]]), "header", "points")
        for points in books:
            need(1 <= len(points) <= (256 if form == 1 else 127), "header", "points")
            need(len(points) == len(books[0]) and all(a < b for a, b in pairwise(points)), "header", "points")
        if form != 1:
            need(table is None or len(table) == len(books[0]) + 1, "header", "frequencies")
            made["table"] = table and table[:0:-1] + table
            books = [[-p for p in reversed(points)] + [0, *points] for points in books]
    peak = max(abs(p) for points in books for p in points)
    return made | {"mask": data[0] if form == 5 else 0, "books": books, "size": len(books[0]), "peak": peak}


def points(book: dict[str, Any], symbols: np.ndarray, count: int) -> np.ndarray:
    """The coefficients that a layer's symbols stand for."""
    if book["form"] == 4:
        bits = (symbols[:, None] >> np.arange(book["bits"])[::-1] & 1).reshape(-1).tolist()
        each, out = len(book["masks"]) // book["stride"], []
        for step in range(len(symbols)):
            newest = (step + 1) * book["bits"] - 1
            window = sum(bits[(newest - i) % len(bits)] << i for i in range(8))
            parities = [(window & mask).bit_count() & 1 for mask in book["masks"]]
            out += [
                book["levels"][int("".join(map(str, parities[i : i + each])), 2)] for i in range(0, len(parities), each)
            ]
        return np.array(out[:count], np.int64)
    window, out = 0, []
    for symbol in symbols.tolist():
        out.append(book["books"][(window & book["mask"]).bit_count() & 1][symbol])
        window = (window << 1 | symbol - book["size"] // 2 & 1) & 255
    return np.array(out, np.int64)


def make_kind(item: list[Any]) -> dict[str, Any]:
    """A family of records. A vector is like a low-rank record of one component without a second side."""
    schema = {1: RAW, 2: VECTOR, 3: DRAWN}.get(item[0] if item and type(item[0]) is int else 0, LOWRANK)
    need(conforms(item, tuple(schema.values())), "header", "kind")
    kind: dict[str, Any] = dict(zip(schema, item, strict=True))
    if schema is RAW:
        return kind | {"nbytes": math.prod(kind["shape"]) * DTYPE_BYTES[kind["dtype"]]}
    if schema is DRAWN:
        floats = [kind["low"], kind["high"], kind["divisor"] or 1.0]
        need(1 <= len(kind["dtypes"]) <= 4 and kind["digits"] in (8, 11, 24), "header", "dtypes or digits")
        need(all(abs(f) <= 2**32 and f == float(np.float32(f)) for f in floats), "header", "not a binary32 number")
        need(kind["low"] <= kind["high"] and kind["divisor"] in (None, max(2**-32, floats[2])), "header", "bounds")
        need(kind["axis"] == 0 or len(kind["shape"]) > 1, "header", "axis")
        return kind
    need(kind["basis"] in (1, 2, 3), "basis", str(kind["basis"]))
    if schema is VECTOR:
        size = math.prod(kind["shape"])
        count = kind["counts"] or size
        need(kind["basis"] != 1 or count <= size, "header", "num_basis")
        once = {"lengths": [size], "counts": [count], "tables": [kind["tables"]], "shift": [kind["shift"]]}
        return kind | once | {"split": 0, "most": 1, "sides": {"vector": kind["shape"]}}
    a, b = kind["a_shape"], kind["b_shape"]
    need(len(b) >= 2 and len(a) >= 2 and b[1] == a[0] and set(b[2:]) <= {1}, "header", "shape")
    lengths = [n * (a[0] if kind["split"] else 1) for n in (b[0], math.prod(a[1:]))]
    counts = kind["counts"] or lengths
    need(kind["basis"] != 1 or (counts[0] <= lengths[0] and counts[1] <= lengths[1]), "header", "num_basis")
    sides = {"lora_B": [b[0], a[0]], "lora_A": [a[0], math.prod(a[1:])]}
    return kind | {"lengths": lengths, "counts": counts, "most": 2 if kind["split"] else a[0], "sides": sides}


def varints(data: bytes, count: int) -> list[int]:
    """Zigzag LEB128."""
    values, number, shift = [], 0, 0
    for byte in data:
        number, shift = number | (byte & 127) << shift, shift + 7
        if byte < 128:
            need(byte or shift == 7, "header", "integer not in its shortest form")
            values.append(number >> 1 ^ -(number & 1))
            number = shift = 0
        need(shift < 35, "header", "integer too long")
    need(shift == 0 and len(values) == count, "header", f"{len(values)} integers, expected {count}")
    return values


def make_records(top: dict[str, Any], kinds: list[dict[str, Any]]) -> None:
    """Adds `coded`, `raw` and `drawn`, lists of records."""
    need(all(kind not in kinds[:i] for i, kind in enumerate(kinds)), "header", "a kind twice")
    ids = varints(top["records"], sum(byte < 128 for byte in top["records"]))
    need([*dict.fromkeys(ids)] == [*range(len(kinds))], "header", "kinds out of order or unused")
    steps = iter(varints(top["numbers"], sum(kinds[i]["template"].count("#") for i in ids)))
    last, made = {}, []
    for i in ids:
        pieces = [p.replace("%23", "#").replace("%25", "%") for p in kinds[i]["template"].split("#")]
        last[i] = [n + next(steps) for n in last.get(i, [0] * (len(pieces) - 1))]
        need(conforms(last[i], [range(10**9)]), "header", "numbers")
        name = pieces[0] + "".join(f"{n}{p}" for n, p in zip(last[i], pieces[1:], strict=True))
        made.append(kinds[i] | {"name": name, "kind": i})
    need(len({r["name"] for r in made}) == len(made), "header", "a name twice")
    order = [(0, 2, 1, 3).index(r["type"]) for r in made]
    need(order == sorted(order), "header", "order")
    top["coded"], top["raw"], top["drawn"] = ([r for r in made if r["type"] in t] for t in ((0, 2), (1,), (3,)))
    count = len(top["coded"])
    streams = range(count) if top["streams"] is None else top["streams"]
    need(len(streams) == count, "header", "streams")
    for record, stream in zip(top["coded"], streams, strict=True):
        record |= {"stream": stream, "units": [], "exponents": [], "vectors": []}
    for rung in top["rungs"]:
        steps, exponents = iter(varints(rung["exponents"], sum(len(r["sides"]) for r in top["coded"]))), [0, 0]
        for record, number in zip(top["coded"], varints(rung["units"], count), strict=True):
            own = [before + next(steps) for before in exponents[: len(record["sides"])]]
            exponents[: len(own)] = own
            need(conforms(own, [range(-120, 101)]), "header", "exponents")
            need(number in ((0, 2) if record["split"] else range(record["most"] + 1)), "header", "units")
            need(number >= max(record["units"], default=0), "header", "units grow from rung to rung")
            need(max(record["tables"]) < len(rung["allocation"]), "header", "allocation tables")
            record["units"].append(number)
            record["exponents"].append(own)


def decode_symbols(codec: int, data: bytes, runs: list[tuple[int, int]], models: list[Any]) -> np.ndarray:
    """Symbols of runs, each (model, length); a model is (alphabet size, frequencies or None)."""
    need(codec in (0, 1, 2), "codec", f"codec {codec}")
    which, parts = np.repeat(np.array([m for m, _ in runs], np.int64), [n for _, n in runs] or 0), []
    if codec == 2:  # runs without frequencies are packed in front, as by codec 0
        packed = [(m, n) for m, n in runs if models[m][1] is None]
        sizes = [
            sum(n for m, n in packed if m == k) * max(1, (models[k][0] - 1).bit_length()) for k in range(len(models))
        ]
        cut, plain = sum((bits + 7) // 8 for bits in sizes), np.array([m[1] is None for m in models], bool)[which]
        out = np.zeros(len(which), np.int64)
        out[plain] = decode_symbols(0, data[:cut], packed, models)
        out[~plain] = rans(which[~plain].tolist(), data[cut:], models)
        return out
    for model, count in zip(*np.unique(which, return_counts=True), strict=True):
        width = max(1, (models[model][0] - 1).bit_length())
        width = width if codec == 0 else 1 << (width - 1).bit_length()
        parts.append((model, width, count, (count * width + 7) // 8))
    plain = unzstd(data, sum(p[3] for p in parts)) if codec else data
    need(len(plain) == sum(p[3] for p in parts), "symbols", "length")
    out = np.zeros(len(which), np.int64)
    for model, width, count, size in parts:
        bits, plain = np.unpackbits(np.frombuffer(plain[:size], np.uint8), bitorder="little"), plain[size:]
        values = bits[: count * width].reshape(count, width) @ (1 << np.arange(width))
        need(not bits[count * width :].any() and values.max() < models[model][0], "symbols", "padding or range")
        out[which == model] = values
    return out


def rans(which: list[int], data: bytes, models: list[Any]) -> np.ndarray:
    """Interleaved rANS: symbol i, of model which[i], belongs to lane i mod lanes."""
    slots = {m: [(s, f, i) for s, f in enumerate(models[m][1]) for i in range(f)] for m in set(which)}
    lanes = 1 << data[0] if data else 0
    need(0 < lanes <= 4096 and len(data) >= 1 + 4 * lanes and len(data) % 2, "symbols", "lanes or length")
    states = list(struct.unpack_from(f"<{lanes}I", data, 1))
    words = struct.unpack_from(f"<{len(data) // 2 - 2 * lanes}H", data, 1 + 4 * lanes)
    position, out = 0, []
    for i, model in enumerate(which + which[-1:] * (-len(which) % lanes)):
        lane = i % lanes
        symbol, frequency, rest = slots[model][states[lane] & 4095]
        states[lane] = frequency * (states[lane] >> 12) + rest
        if states[lane] < 1 << 16:
            need(position < len(words), "symbols", "out of words")
            states[lane], position = states[lane] << 16 | words[position], position + 1
        out.append(symbol)
    need(position == len(words) and set(states) == {1 << 16}, "symbols", "left over")
    return np.array(out[: len(which)], np.int64)


def philox4x32(counter: list[Any], key: tuple[int, int]) -> list[Any]:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def threefry2x32(counter: list[Any], key: Any) -> list[Any]:
    keys = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
    x0, x1 = (counter[0] + keys[0]) % 2**32, (counter[1] + keys[1]) % 2**32
    for i in range(20):
        x0, rotation = (x0 + x1) % 2**32, (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x1 = ((x1 << rotation) % 2**32 | x1 >> 32 - rotation) ^ x0
        if i % 4 == 3:
            x0, x1 = (x0 + keys[(i + 1) // 4 % 3]) % 2**32, (x1 + keys[(i + 5) // 4 % 3] + (i + 1) // 4) % 2**32
    return [x0, x1]


def words(generator: int, seed: int, stream: int, purpose: int, count: int) -> np.ndarray:
    """The first `count` 32-bit words of a stream."""
    key = (seed % 2**32, seed >> 32)
    block = np.arange(-(-count // (4 if generator == 1 else 2)), dtype=np.uint64)
    counter = [block % 2**32, block >> np.uint64(32)]
    if generator == 1:
        made = philox4x32([*counter, np.full_like(block, stream), np.full_like(block, purpose)], key)
    else:
        made = threefry2x32(counter, threefry2x32([stream, purpose], key))
    return np.stack(made, -1).reshape(-1)[:count].astype(np.int64)


def signs(generator: int, seed: int, stream: int, purpose: int, count: int) -> np.ndarray:
    """+1 and -1; bit 0 of word 0 first, and a set bit is -1."""
    bits = words(generator, seed, stream, purpose, -(-count // 32))[:, None] >> np.arange(32) & 1
    return 1 - 2 * bits.reshape(-1)[:count]


def plan(n: int) -> tuple[int, int]:
    """Block and number of passes of a Hadamard basis."""
    power = n & -n
    if power == n or power >= 64 or n < 4:
        return min(power, 4096), 1
    return (64 if n >= 64 else 16 if n >= 16 else 4), 2


def transform(q: np.ndarray, block: int) -> np.ndarray:
    """Each block of coefficients times the Sylvester matrix; element p of block b goes to p * blocks + b."""
    rows, half = q.reshape(-1, block), 1
    while half < block:
        a, b = np.moveaxis(rows.reshape(len(rows), -1, 2, half), 2, 0)
        rows, half = np.stack((a + b, a - b), 2).reshape(len(rows), block), 2 * half
    return rows.T.reshape(-1)


def synthesize(basis: int, q: np.ndarray, n: int, generator: int, seed: int, stream: int) -> np.ndarray:
    """The n integers that coefficients q stand for."""
    k, where = len(q), (generator, seed, stream)
    if basis == 2:
        return q @ signs(*where, RADEMACHER, k * (n + -n % 32)).reshape(k, -1)[:, :n]
    if basis == 3:
        packed = words(*where, UNIFORM, k * ((n + 1) // 2))
        return q @ (np.stack((packed & 0xFFFF, packed >> 16), -1).reshape(k, -1)[:, :n] - 32768)
    if k < n:
        chosen = np.sort(np.argsort(words(*where, SUBSET, n), kind="stable")[:k])
        q, short = np.zeros(n, np.int64), q
        q[chosen] = short
    block, passes = plan(n)
    if passes == 1:
        return transform(q, block) * signs(*where, SIGNS, n)
    root, left = math.isqrt(block), n % block
    q = np.concatenate((transform(q[: n - left], block), q[n - left :] * root)) * signs(*where, SIGNS, n)
    return np.concatenate((q[:left] * root, transform(q[left:], block))) * signs(*where, SIGNS_SECOND, n)


def entry(top: dict[str, Any], rung: int, record: dict[str, Any], side: int, precision: int) -> tuple[int, int, int]:
    """(quantizer, offset, weight) of the layer that a rung adds to a vector; quantizer -1 is none."""
    table = top["rungs"][rung]["allocation"][record["tables"][side]]
    rows = [row for row in table if row[0] <= precision + record["shift"][side]]
    need(rows, "units", "no quantizer for the precision")
    return rows[-1][1], rows[-1][2], MANTISSAS[4 * (rows[-1][3] % 8)] << rows[-1][3] // 8 >> 15


def read_units(top: dict[str, Any], rung: int, codec: int, data: bytes, last: dict[int, Any]) -> None:
    """Adds a rung's units to the records: `first`, `precision` and `code` of each, `layers` of this rung's block."""
    for record in top["coded"] if rung == 0 else ():
        record |= {"first": [], "precision": [], "code": []}
    fresh = sum(r["units"][rung] - len(r["first"]) for r in top["coded"])
    moved = {}  # old units that gain a layer
    for number, record in enumerate(top["coded"]):
        for unit, precision in enumerate(record["precision"]):
            sides = (unit,) if record["split"] else range(len(record["sides"]))
            moved[number, unit] = any(entry(top, rung, record, side, precision)[0] >= 0 for side in sides)
    runs = [(0, fresh), (1, fresh + sum(moved.values()))]
    values = iter(int(s >> 1 ^ -(s & 1)) for s in decode_symbols(codec, data, runs, top["rungs"][rung]["side_models"]))
    for record in top["coded"]:
        before, known = last.get(record["kind"], [128, 128]), record["precision"]
        for unit in range(len(known), record["units"][rung]):
            reference = before[unit] if record["split"] else known[-1] if unit else before[0]
            known.append((reference + next(values)) % 256)
            record["first"].append(rung)
            record["code"].append(record["amplitude"] + top["amplitude_slope"] * known[-1])
        last[record["kind"]] = known[:2] or before
    for number, record in enumerate(top["coded"]):
        record["layers"] = []
        for unit, (first, precision) in enumerate(zip(record["first"], record["precision"], strict=True)):
            if not (first == rung or moved[number, unit]):
                continue
            for side in (unit,) if record["split"] else range(len(record["sides"])):
                for step in range(0 if first == rung else rung, rung + 1):
                    quantizer, offset, weight = entry(top, step, record, side, precision)
                    record["code"][unit] += offset
                    record["layers"] += (
                        [(side, 0 if record["split"] else unit, quantizer, weight)] if quantizer >= 0 else []
                    )
            record["code"][unit] += next(values)
            need(-4096 <= record["code"][unit] <= 4095, "units", "amplitude out of range")
        record["layers"].sort(key=lambda layer: layer[0])  # stable: lora_B first, units stay in order


def decode_record(top: dict[str, Any], record: dict[str, Any], rung: int) -> None:
    """Adds the int16 factors `lora_B` (out, r) and `lora_A` (r, in), or the `vector`, as they are at a rung."""
    count, peak = record["units"][rung] // (2 if record["split"] else 1), max(record["peaks"].values(), default=0)
    made: list[list[Any]] = [[] for _ in record["sides"]]
    for side, unit in [(side, unit) for side in range(len(made)) for unit in range(count)]:
        code = record["code"][side if record["split"] else unit] * (2 if record["type"] == 2 else 1)
        n, k, (block, passes) = record["lengths"][side], record["counts"][side], plan(record["lengths"][side])
        bound = peak * (block**passes, k, k << 15)[record["basis"] - 1]
        need(peak < 2**31 and bound < 2**46, "bound", "sums too large")
        q = record["coefficients"].get((side, unit), np.zeros(k, np.int64))
        y = synthesize(record["basis"], q, n, top["generator"], top["seed"], 2 * record["stream"] + side)
        shift = 15 - (code >> 5) + record["exponents"][rung][side]
        need(1 <= shift <= 62, "scale", f"shift {shift}")
        made[side].append(np.clip((y * MANTISSAS[code & 31] + (1 << shift - 1)) >> shift, -32768, 32767))
    most = 1 if record["split"] else record["most"]
    for rows, n, (key, shape) in zip(made, record["lengths"], record["sides"].items(), strict=True):
        stacked = np.stack(rows + [np.zeros(n)] * (most - len(rows)))
        record[key] = (stacked.T if key == "lora_B" and not record["split"] else stacked).reshape(shape)


def mt19937(seed: int, start: int, count: int) -> np.ndarray:
    """Words of the Mersenne Twister: `count` after the first `start`."""
    state, out = [seed], np.zeros(start + count, np.int64)
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    for i in range(start + count):
        mixed = state[i % 624] & 2**31 | state[(i + 1) % 624] & 2**31 - 1
        y = state[(i + 397) % 624] ^ mixed >> 1 ^ (mixed & 1) * 0x9908B0DF
        state[i % 624] = y
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        out[i] = y ^ y >> 18
    return out[start:]


def round_to(values: np.ndarray, dtype: int) -> np.ndarray:
    """Numbers of a dtype (F32, F16, BF16), nearest, ties to even, in float32."""
    values = values.astype(np.float32)
    if dtype == 2:
        bits = values.view(np.uint32).astype(np.int64)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).astype(np.uint32).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if dtype == 1 else values


def draw(kind: dict[str, Any]) -> bytes:
    """A drawn tensor's bytes."""
    count, first, low, high = math.prod(kind["shape"]), kind["dtypes"][0], *np.float32((kind["low"], kind["high"]))
    u = np.float32((mt19937(kind["seed"], kind["start"], count) % 2 ** kind["digits"]) * 2.0 ** -kind["digits"])
    if kind["method"] == 2:
        values = np.float32(u > high) - np.float32(u < low)
    else:
        span = high - low
        sums = u * span + low if kind["method"] == 0 else np.float64(u) * np.float64(span) + np.float64(low)
        values = round_to(sums, first)
        values[values == round_to(high[None], first)] = round_to(low[None], first)[0]
    if kind["divisor"] is not None:
        values = round_to(values / np.float32(kind["divisor"]), first)
    for dtype in kind["dtypes"][1:]:
        values = round_to(values, dtype)
    if kind["axis"]:
        a, b, *rest = kind["shape"]
        values = values.reshape(b, a, *rest).swapaxes(0, 1).reshape(-1)
    last = kind["dtypes"][-1]
    stored = (values.view(np.uint32) >> 16).astype("<u2") if last == 2 else values.astype(("<f4", "<f2")[last])
    return stored.tobytes()


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(header, tensors by name, hexadecimal digest). Raises Refused, also when a rung's digest is not the header's."""
    top, sections = open_file(data)
    blocks, first, last = len(top["blocks"]), 0, {}
    models = [(book["size"], book["table"]) for book in top["quantizers"]]
    for record in top["coded"]:
        record |= {"coefficients": {}, "peaks": {}}
    tensors: dict[str, Any] = {}
    for rung in range(len(top["rungs"])):
        read_units(top, rung, *sections[first], last)
        records = iter(top["coded"])
        for size, section in zip(top["blocks"], sections[first + 1 :], strict=False):
            read_block(top, [next(records) for _ in range(size)], models, *section)
        first += 1 + blocks
        if rung == 0:
            carried, first = sections[first : first + len(top["raw"])], first + len(top["raw"])
        digest = hashlib.sha256()
        for record in top["coded"]:
            decode_record(top, record, rung)
            sides = [(key, "<i2", record[key]) for key in record["sides"]]
            for key, dtype, value in (("exponents", "i1", record["exponents"][rung]), *sides):
                tensors[f"{record['name']}.{key}"] = np.array(value, dtype)
                digest.update(tensors[f"{record['name']}.{key}"].tobytes())
        for record, (codec, stored) in zip(top["raw"], carried, strict=True):
            need(codec in (0, 1), "codec", f"codec {codec} of a raw tensor")
            plain = unzstd(stored, record["nbytes"]) if codec else stored
            need(len(plain) == record["nbytes"], "symbols", "length of a raw tensor")
            digest.update(plain)
            tensors[record["name"]] = np.frombuffer(plain, np.uint8)
        for record in top["drawn"]:
            tensors[record["name"]] = np.frombuffer(draw(record), np.uint8)
            digest.update(tensors[record["name"]].tobytes())
        need(digest.digest() == top["rungs"][rung]["factors_sha256"], "factors-checksum", digest.hexdigest())
    return top, tensors, digest.hexdigest()


def read_block(top: dict[str, Any], part: list[dict[str, Any]], models: list[Any], codec: int, data: bytes) -> None:
    """Adds a block's layers to its records' coefficients."""
    runs = []
    for record in part:
        strides = [(record["counts"][side], q, top["quantizers"][q]["stride"]) for side, _, q, _ in record["layers"]]
        runs += [(q, -(-count // stride)) for count, q, stride in strides]
    pieces = iter(np.split(decode_symbols(codec, data, runs, models), np.cumsum([n for _, n in runs][:-1], dtype=int)))
    for record in part:
        for side, unit, q, weight in record["layers"]:
            book, key = top["quantizers"][q], (side, unit)
            made = weight * points(book, next(pieces), record["counts"][side])
            record["coefficients"][key] = record["coefficients"].get(key, 0) + made
            record["peaks"][key] = record["peaks"].get(key, 0) + weight * book["peak"]


def main(path: str, npz: str = "") -> None:
    try:
        _, tensors, digest = decode(Path(path).read_bytes())
    except Refused as refused:
        sys.exit(f"{path}: {': '.join(refused.args)}")
    if npz:
        np.savez(npz, **tensors)  # factors in int16, exponents in int8, raw tensors as bytes
    print(digest)


if __name__ == "__main__":
    main(*(argument for argument in sys.argv[1:] if argument != "--npz"))
