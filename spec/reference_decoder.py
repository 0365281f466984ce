"""Educational decoder of the `.nola` format: nola-v1.md as plain code, in its order, from the whole to the parts.

    python spec/reference_decoder.py FILE [--npz OUT] [--reference FILE]...

It prints the decoded SHA-256 and exits with 0. If it refuses the file, it exits with 1 and prints the code of the
reject table and a reason to stderr. A file that is coded against a reference needs all files of its chain, the first
one first. The program needs numpy, msgpack and zstandard, and shares no code with the package. It is written to be
read, not to be fast, and it sets no limits. It is longer than a module of the package may be, so that it can be read
from top to bottom beside the document. The comments that begin with `==` name the document's sections. Drawn tensors,
which most readers do without, are in `reference_draws.py`, and only a file that has them needs it.

A record is a dict. `make_kind` and `make_records` fill in what the header says: `name`, `sides` (name and shape of
each), `lengths` (n) and `num_basis` (k) of a vector of each side. The loop in `decode` adds `tables`, `shift` and
`amplitude`, then `unit_counts` and `exponents`, one item for each rung, `starts`, `precisions` and `amplitudes`, one
for each unit, then `layers`, `coefficients` and `peaks`, and at last the int16 factors `lora_B` and `lora_A`, or the
`vector`.
"""

import hashlib
import math
import runpy
import struct
import sys
import zlib
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard


class Refused(Exception):
    """A file is refused. The arguments are the code of the reject table and a reason."""


def require(condition: Any, code: str, reason: str) -> None:
    """Refuse the file unless the condition is true."""
    if not condition:
        raise Refused(code, reason)


# == Synopsis


def decode(data: bytes, known: dict[bytes, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the header, the tensors by name, and the decoded SHA-256 of the last rung, in hexadecimal.

    `known` has what other files decode to, by decoded SHA-256: (number of files below, tensors). What this file decodes
    to is added.
    """
    top, sections = open_file(data)
    files, known = 0, {} if known is None else known
    if top["reference"]:
        sha256, files, *_ = top["reference"]
        require(sha256 in known and known[sha256][0] < files, "reference", f"needs {sha256.hex()}")
    queue, tensors, others, sha256 = iter(sections), {}, {}, b""
    for rung in range(len(top["rungs"])):
        read_units(top, rung, *next(queue))
        records = iter(top["coded"])
        for size in top["blocks"]:
            read_block(top, [next(records) for _ in range(size)], *next(queue))
        if rung == 0:
            others = {record["name"]: read_carried(record, *next(queue)) for record in top["raw"]}
            others |= {record["name"]: draws()["draw"](record) for record in top["drawn"]}
        for record in top["coded"]:
            decode_record(top, record, rung)
            if top["reference"]:
                add_reference(top, record, rung, known[top["reference"][0]][1])
            tensors[f"{record['name']}.exponents"] = np.array(record["exponents"][rung], "i1")
            tensors |= {f"{record['name']}.{side}": record[side].astype("<i2") for side in record["sides"]}
        tensors |= {name: np.frombuffer(plain, np.uint8) for name, plain in others.items()}
        sha256 = decoded_sha256(tensors)
        require(sha256 == top["rungs"][rung]["decoded_sha256"], "factors-checksum", sha256.hex())
        known[sha256] = min(known.get(sha256, (files,))[0], files), dict(tensors)
    return top, tensors, sha256.hex()


# == File


def open_file(data: bytes) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
    """Return the checked header, and the codec and stored bytes of each section."""
    require(data[:8] == b"\x89NLA\r\n\x1a\n"[: len(data)], "magic", "not a .nola file")
    require(len(data) >= 38, "truncated", "prelude")
    version, revision, required, stored, sha, crc = struct.unpack_from("<HHHI16sI", data, 8)
    require(version == 0 and revision == 3, "version", f"format version {version}, revision {revision}")
    require(required < 4, "feature", f"flags {required:#x}")
    end, sections = 38 + stored, []
    require(len(data) >= end, "truncated", "header")
    require(zlib.crc32(data[:34] + data[38:end]) == crc, "header-checksum", "prelude or header")
    header = unzstd(data[38:end], None, Path(__file__).with_name("header-dictionary.bin").read_bytes())
    top = parse_header(header, has_reference=bool(required & 1))
    require(bool(top["drawn"]) == bool(required & 2), "header", "flag of drawn records")
    length = end + sum(size for _, size, _ in top["sections"])
    require(len(data) >= length, "truncated", f"{len(data)} of {length} bytes")
    is_signed = len(data) == length + 104 and data[length:].startswith(b"\x89NLS\r\n\x1a\n")
    require(len(data) == length or is_signed, "trailing", f"{len(data)} of {length} bytes")
    for codec, size, section_crc in top["sections"]:
        sections.append((codec, data[end : end + size]))
        require(zlib.crc32(sections[-1][1]) == section_crc, "section-checksum", "section")
        end += size
    require(hashlib.sha256(data[:18] + data[38:length]).digest()[:16] == sha, "content-checksum", "content")
    return top, sections


# == Header. A schema: a range stands for an int in it; a type for a value of it; [s] for a list of any length; (s, ...)
# for a list of exactly these; {s} for a map with such values; (None, s) for s or nil; 32 for a bin of 32 bytes.

SIZES, LARGE, TABLE = [range(1, 2**31 + 1)], range(-16384, 16385), (None, [range(1, 4097)])
SCHEMA = {
    "amplitude_slope": range(-64, 65), "blocks": [range(1, 2**17 + 1)], "config": (None, dict), "dialect": str,
    "generator": range(256), "kinds": [list], "metadata": {str}, "numbers": [range(1 - 10**9, 10**9)],
    "records": [range(2**31)], "rungs": [(32, {float})], "quantizers": [(range(4), object, TABLE)],
    "seed": range(2**64), "sections": [(range(2**63), range(2**63), range(2**32))],
    "streams": (None, [range(2**31)]), "writer": str, "base": (str, str, 32),
    "reference": (32, range(2**31), (range(2**15), range(2**15)), str),
}  # fmt: skip
LOWRANK = {
    "type": range(1), "template": str, "layout": range(3), "scaling": float, "fan_in_fan_out": range(2),
    "dtype": range(3), "basis": range(256), "form": range(3), "num_basis": (None, (SIZES[0], SIZES[0])),
    "b_shape": SIZES, "a_shape": SIZES,
}  # fmt: skip
VECTOR = {
    "type": range(2, 3), "template": str, "dtype": range(3), "basis": range(256), "num_basis": (None, SIZES[0]),
    "shape": SIZES,
}  # fmt: skip
CARRIED = {"type": range(1, 2), "template": str, "dtype": range(15), "shape": [range(2**31 + 1)]}
DTYPE_BYTES = (4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 2, 4, 8, 1, 1)


def parse_header(data: bytes, *, has_reference: bool) -> dict[str, Any]:
    """Return the header's map, with quantizers and rungs parsed, and records as the lists `coded`, `raw`, `drawn`."""
    try:
        top = msgpack.unpackb(data, raw=False, strict_map_key=True)
        require(msgpack.packb(sort_keys(top), use_bin_type=True) == data, "header", "not canonical")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Refused("header", str(error)) from error
    require(type(top) is dict and top.keys() | {"base", "reference"} == SCHEMA.keys(), "header", "keys")
    require(("reference" in top) == has_reference, "header", "flag of a reference")
    require(all(conforms(value, SCHEMA[key]) for key, value in top.items()), "header", "a value")
    if top.setdefault("reference", None):
        name = top["reference"][3]
        require(name not in (".", "..") and not set("/\\\0") & set(name), "header", "name of a reference")
    require(top["generator"] == 1, "generator", str(top["generator"]))
    top["quantizers"] = [quantizer(*q) for q in top["quantizers"]]
    require(1 <= len(top["rungs"]) <= 64, "header", "rungs")
    top["rungs"] = [{"decoded_sha256": sha256} for sha256, _ in top["rungs"]]
    for size, table in ((q["size"], q["table"]) for q in top["quantizers"]):
        require(table is None or (256 >= size == len(table) and sum(table) == 4096), "header", "frequencies")
    make_records(top, [make_kind(k) for k in top["kinds"]])
    require(top["reference"] or all(r["form"] < 2 for r in top["coded"]), "header", "form without a reference")
    require(sum(top["blocks"]) == len(top["coded"]), "header", "blocks")
    sections = len(top["rungs"]) * (1 + len(top["blocks"])) + len(top["raw"])
    require(len(top["sections"]) == sections, "header", "sections")
    return dict(top)


def sort_keys(value: Any) -> Any:
    """Return the value with the keys of all maps in ascending order of their bytes."""
    if type(value) is dict:
        return {key: sort_keys(value[key]) for key in sorted(value, key=str.encode)}
    require(value is None or type(value) in (str, bytes, bool, int, float, list), "header", "MessagePack type")
    return [sort_keys(v) for v in value] if type(value) is list else value


def conforms(value: Any, schema: Any) -> bool:
    """Return True if the value is as the schema says."""
    if isinstance(schema, int):
        return type(value) is bytes and len(value) == schema
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


# == Records


def make_kind(item: list[Any]) -> dict[str, Any]:
    """Return a kind by field names. A vector is like a low-rank record of one component without a second side."""
    number = item[0] if item and type(item[0]) is int else 0
    schema = draws()["KIND"] if number == 3 else {1: CARRIED, 2: VECTOR}.get(number, LOWRANK)
    require(conforms(item, tuple(schema.values())), "header", "kind")
    kind: dict[str, Any] = dict(zip(schema, item, strict=True))
    if schema is CARRIED:
        return kind | {"nbytes": math.prod(kind["shape"]) * DTYPE_BYTES[kind["dtype"]]}
    if number == 3:
        require(draws()["is_valid"](kind), "header", "a value of a drawn kind")
        return kind
    require(kind["basis"] in (1, 2, 3), "basis", str(kind["basis"]))
    if schema is VECTOR:
        lengths = [math.prod(kind["shape"])]
        kind |= {"form": 0, "most_units": 1, "num_basis": [kind["num_basis"] or lengths[0]]}
        kind |= {"sides": {"vector": kind["shape"]}}
    else:
        a, b = kind["a_shape"], kind["b_shape"]
        require(len(b) >= 2 and len(a) >= 2 and b[1] == a[0] and set(b[2:]) <= {1}, "header", "shape")
        lengths = [n * (a[0] if kind["form"] == 1 else 1) for n in (b[0], math.prod(a[1:]))]
        kind |= {"num_basis": kind["num_basis"] or lengths, "most_units": (a[0], 2, 2 * a[0])[kind["form"]]}
        kind |= {"sides": {"lora_B": [b[0], a[0]], "lora_A": [a[0], math.prod(a[1:])]}}
    fits = all(k <= n for k, n in zip(kind["num_basis"], lengths, strict=True))
    require(kind["basis"] != 1 or fits, "header", "num_basis")
    return kind | {"lengths": lengths}


def make_records(top: dict[str, Any], kinds: list[dict[str, Any]]) -> None:
    """Name the records and put them into the lists `coded`, `raw` (carried) and `drawn`."""
    require(all(kind not in kinds[:i] for i, kind in enumerate(kinds)), "header", "a kind twice")
    require([*dict.fromkeys(top["records"])] == [*range(len(kinds))], "header", "kinds out of order or unused")
    require(len(top["numbers"]) == sum(kinds[i]["template"].count("#") for i in top["records"]), "header", "numbers")
    differences, numbers, records = iter(top["numbers"]), {}, []
    for i in top["records"]:
        pieces = [p.replace("%23", "#").replace("%25", "%") for p in kinds[i]["template"].split("#")]
        numbers[i] = [n + next(differences) for n in numbers.get(i, [0] * (len(pieces) - 1))]
        require(conforms(numbers[i], [range(10**9)]), "header", "numbers")
        name = pieces[0] + "".join(f"{n}{p}" for n, p in zip(numbers[i], pieces[1:], strict=True))
        records.append(kinds[i] | {"name": name, "kind": i})
    require(len({r["name"] for r in records}) == len(records), "header", "a name twice")
    order = [(0, 2, 1, 3).index(r["type"]) for r in records]
    require(order == sorted(order), "header", "order")
    top["coded"], top["raw"], top["drawn"] = ([r for r in records if r["type"] in t] for t in ((0, 2), (1,), (3,)))
    streams = range(len(top["coded"])) if top["streams"] is None else top["streams"]
    require(len(streams) == len(top["coded"]), "header", "streams")
    for record, stream in zip(top["coded"], streams, strict=True):
        record |= {"stream": stream, "unit_counts": [], "exponents": [], "coefficients": {}, "peaks": {}}
        record |= {"starts": [], "precisions": [], "amplitudes": []}


# == Units


def unit_sides(record: dict[str, Any], unit: int) -> Any:
    """Return the sides of a unit: all sides of the record in the component form, else its own side."""
    return (unit // (record["most_units"] // 2),) if record["form"] else range(len(record["sides"]))


def unit_rows(top: dict[str, Any], record: dict[str, Any], unit: int, rungs: Any) -> list[tuple[int, int, int]]:
    """Return (side, quantizer, weight) of a unit's row on each side, at each of some rungs."""
    rows = []
    for side in unit_sides(record, unit):
        for rung in rungs:
            table = top["rungs"][rung]["allocation"][record["tables"][side]]
            fitting = [row for row in table if row[0] <= record["precisions"][unit] + record["shift"][side]]
            require(fitting, "units", "no quantizer for the precision")
            _, number, weight = fitting[-1]
            rows.append((side, number, MANTISSAS[4 * (weight % 8)] << weight // 8 >> 15))
    return rows


# == Units sections


def read_kinds(coded: list[dict[str, Any]], integers: "Integers") -> None:
    """Add `tables`, `shift` and `amplitude` to each coded record."""
    made, last = {}, [0, 0, 0, 0, 0]  # tables of both sides, shifts of both, amplitude; a vector uses three of them
    for record in coded:
        if record["kind"] not in made:
            for i in range(5) if len(record["sides"]) == 2 else (0, 2, 4):
                last[i] += integers.read((12, 12, 13, 13, 14)[i])
            require(conforms(last, (*[range(256)] * 2, *[range(-1023, 1024)] * 2, LARGE)), "units", "kind")
            made[record["kind"]] = {"tables": last[:2], "shift": last[2:4], "amplitude": last[4]}
        record |= made[record["kind"]]


def read_table(integers: "Integers", quantizers: int) -> list[tuple[int, ...]]:
    """Return the rows (precision, quantizer, weight) of an allocation table."""
    table, row, count = [], [-1, -1, 0], integers.read(0)
    require(count >= 0, "units", "number of rows")
    for _ in range(count):
        row = [row[i] + (i < 2) + integers.read(1 + i) for i in range(3)]
        require(conforms(row, (LARGE, range(-1, quantizers), range(128))), "units", "row of a table")
        require(not table or row[0] > table[-1][0], "units", "precisions must ascend")
        table.append(tuple(row))
    return table


def read_counts_and_exponents(coded: list[dict[str, Any]], integers: "Integers") -> None:
    """Add a rung's unit count and exponents to each coded record."""
    counts, exponents = {}, [0, 0]
    for record in coded:
        before, most = record["unit_counts"][-1:] or [counts.get(record["kind"], 0)], record["most_units"]
        count = before[0] + integers.read(4 + min(before[0], 2))
        require(count in ((0, most) if record["form"] else range(most + 1)), "units", "unit count")
        require(count >= len(record["starts"]), "units", "unit counts must not fall")
        record["unit_counts"].append(count)
        counts[record["kind"]] = count
    for record in coded:
        for side in range(len(record["sides"])):
            exponents[side] += integers.read(7)
        record["exponents"].append(exponents[: len(record["sides"])])
        require(conforms(record["exponents"][-1], [range(-120, 101)]), "units", "exponents")


def read_units(top: dict[str, Any], rung: int, codec: int, data: bytes) -> None:
    """Read a rung's units section: all that the section says, and the `layers` of each record in the rung's block."""
    require(codec == 3, "codec", f"codec {codec} of a units section")
    coded, integers = top["coded"], Integers(data)
    if rung == 0:
        read_kinds(coded, integers)
    most = max((table for record in coded for table in record["tables"]), default=-1)
    top["rungs"][rung]["allocation"] = [read_table(integers, len(top["quantizers"])) for _ in range(most + 1)]
    read_counts_and_exponents(coded, integers)
    latest: dict[Any, Any] = {"any": 128}  # precisions of the latest record of each kind, and one of the latest of all
    for record in coded:
        read_precisions(record, rung, integers, latest, top["amplitude_slope"])
    for record in coded:
        record["layers"] = []
        for unit in range(len(record["starts"])):
            read_amplitude(top, record, unit, rung, integers)
        record["layers"].sort(key=lambda layer: layer[0])  # stable: lora_B first, units and rungs stay in order
    require(len(data) <= integers.position, "symbols", "bytes left over")


def read_precisions(record: dict[str, Any], rung: int, integers: "Integers", latest: Any, slope: int) -> None:
    """Append the units of a record that start at a rung, with the prediction of their amplitudes."""
    before, own = latest.get(record["kind"]), record["precisions"]
    for unit in range(len(own), record["unit_counts"][rung]):
        predicted = own[-1] if unit and not record["form"] else before[unit] if before else latest["any"]
        own.append((predicted + integers.read(8 + min(unit, 2))) % 256)
        record["starts"].append(rung)
        record["amplitudes"].append(record["amplitude"] + slope * own[-1])
    latest |= {record["kind"]: own, "any": own[0]} if own else {}


def read_amplitude(top: dict[str, Any], record: dict[str, Any], unit: int, rung: int, integers: "Integers") -> None:
    """Set a unit's amplitude at a rung, and append the layers that the rung's block holds for it."""
    rows, starts_here = unit_rows(top, record, unit, [rung]), record["starts"][unit] == rung
    if starts_here or any(number >= 0 for _, number, _ in rows):
        record["amplitudes"][unit] += integers.read(16 + rows[0][1] if starts_here else 11)
        require(-4096 <= record["amplitudes"][unit] <= 4095, "units", "amplitude out of range")
    vector = unit % (record["most_units"] // 2) if record["form"] else unit
    for side, number, weight in unit_rows(top, record, unit, range(0 if starts_here else rung, rung + 1)):
        record["layers"] += [(side, vector, number, weight)] if number >= 0 else []


# == Adaptive integers


class Integers:
    """A reader of integers that are coded with probabilities that adapt."""

    def __init__(self, data: bytes) -> None:
        """Begin with the first four bytes of a section."""
        self.data, self.position, self.range = data, 4, 2**32 - 1
        self.code, self.contexts = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), {}
        require(self.code < self.range, "symbols", "adaptive integers begin out of range")

    def read(self, role: int) -> int:
        """Return the next integer. `path` is 1 and then all bits of the integer so far."""
        path, length = 1, 0
        while self.bit(role, path):
            path, length = 2 * path + 1, length + 1
            require(length <= 20, "symbols", "integer too long")
        sign = self.bit(role, 2 * path) if length else 0
        path, magnitude = 4 * path + sign, int(length > 0)
        for _ in range(length - 1):
            bit = self.bit(role, path)
            path, magnitude = 2 * path + bit, 2 * magnitude + bit
        return -magnitude if sign else magnitude

    def bit(self, role: int, path: int) -> int:
        """Return the next bit, and adapt the probability of its context."""
        p, seen = self.contexts.get((role, path), (32768, 0))
        bound = (self.range >> 16) * p
        bit = int(self.code >= bound)
        self.code, self.range = (self.code - bound, self.range - bound) if bit else (self.code, bound)
        self.contexts[role, path] = p + (-(p // (seen + 2)) if bit else (65536 - p) // (seen + 2)), min(seen + 1, 60)
        while self.range < 2**24:
            byte = self.data[self.position] if self.position < len(self.data) else 0
            self.code, self.range, self.position = self.code << 8 | byte, self.range << 8, self.position + 1
        return bit


# == Blocks


def read_block(top: dict[str, Any], block: list[dict[str, Any]], codec: int, data: bytes) -> None:
    """Add the layers of a block to the coefficients of its records, and to `peaks`, their largest magnitudes."""
    models, runs = [(book["size"], book["table"]) for book in top["quantizers"]], []
    for record in block:
        for side, _, number, _ in record["layers"]:
            runs.append((number, -(-record["num_basis"][side] // top["quantizers"][number]["stride"])))
    symbols = decode_symbols(codec, data, runs, models)
    pieces = iter(np.split(symbols, np.cumsum([length for _, length in runs][:-1], dtype=int)))
    for record in block:
        for side, vector, number, weight in record["layers"]:
            book, key = top["quantizers"][number], (side, vector)
            layer = weight * points(book, next(pieces), record["num_basis"][side])
            record["coefficients"][key] = record["coefficients"].get(key, 0) + layer
            record["peaks"][key] = record["peaks"].get(key, 0) + weight * book["peak"]


# == Quantizers

SIGN, FOUR = (-1, 1), (-10, -3, 3, 10)
TRELLISES = [(bits, levels, bytes.fromhex(masks)) for bits, levels, masks in (
    (1, SIGN, "d19d85f9c7b1d197a99fb5d39ddbc5d991aff7d5e1abd389"), (1, SIGN, "9fe39bc7c5bda3d7b9a1bbedd3afa781"),
    (1, SIGN, "c9e3e7f79beddbbfcf9bf389"), (1, SIGN, "eb8789c5bbb1e7c7ddb3"), (1, SIGN, "99a7dfe1dfb5818d"),
    (1, SIGN, "f7a9e5e3fbf9"), (1, SIGN, "8b999ddbbd"), (1, SIGN, "9f8dabb9"), (1, SIGN, "ddbf83"),
    (2, SIGN, "ea81bdce77"), (1, SIGN, "b9e3"), (2, FOUR, "75fb6795d192"), (1, FOUR, "9dfb"),
)]  # fmt: skip


def quantizer(kind: int, data: Any, table: list[int] | None) -> dict[str, Any]:
    """Return a quantizer: `size` of its alphabet, `table`, `stride`, `peak` (largest magnitude), codebooks or masks."""
    made: dict[str, Any] = {"type": kind, "table": table, "stride": 1}
    if kind == 2:
        require(conforms(data, range(len(TRELLISES))) and table is None, "header", "trellis")
        made["bits"], made["levels"], made["masks"] = TRELLISES[data]
        each = 1 if made["levels"] == SIGN else 2  # masks of a coefficient
        return made | {"stride": len(made["masks"]) // each, "size": 1 << made["bits"], "peak": max(made["levels"])}
    if kind == 1:  # the parameter is the number of bits
        require(conforms(data, range(9, 17)) and table is None, "header", "integers")
        books = [list(range(-(1 << data - 1), 1 << data - 1))]
    else:
        require(kind == 0 or conforms(data, (range(256), list, list)), "header", "parameters")
        books = data[1:] if kind == 3 else [data]
        require(conforms(books, [[range(1 if kind else -32768, 65537)]]), "header", "points")
        require(all(gap > 0 for book in books for gap in book[1:]), "header", "points must ascend")
        books = [list(accumulate(book)) for book in books]
        size, most = len(books[0]), 127 if kind else 256
        require(all(1 <= len(book) == size <= most and book[-1] <= 32768 for book in books), "header", "points")
        if kind == 3:
            require(table is None or len(table) == len(books[0]) + 1, "header", "frequencies")
            made["table"] = table and table[:0:-1] + table
            books = [[-p for p in reversed(book)] + [0, *book] for book in books]
    peak = max(abs(p) for book in books for p in book)
    return made | {"mask": data[0] if kind == 3 else 0, "books": books, "size": len(books[0]), "peak": peak}


def points(book: dict[str, Any], symbols: np.ndarray, count: int) -> np.ndarray:
    """Return the integers that the symbols of one layer stand for."""
    window, out = 0, []
    if book["type"] != 2:
        for symbol in symbols.tolist():
            out.append(book["books"][(window & book["mask"]).bit_count() & 1][symbol])
            window = (window << 1 | symbol - book["size"] // 2 & 1) & 255
        return np.array(out, np.int64)
    bits = (symbols[:, None] >> np.arange(book["bits"])[::-1] & 1).reshape(-1).tolist()
    each = len(book["masks"]) // book["stride"]
    for step in range(len(symbols)):
        last = (step + 1) * book["bits"] - 1
        window = sum(bits[(last - i) % len(bits)] << i for i in range(8))
        parities = [(window & mask).bit_count() & 1 for mask in book["masks"]]
        indices = [int("".join(map(str, parities[i : i + each])), 2) for i in range(0, len(parities), each)]
        out += [book["levels"][index] for index in indices]
    return np.array(out[:count], np.int64)


# == Entropy codecs


def decode_symbols(codec: int, data: bytes, runs: list[tuple[int, int]], models: list[Any]) -> np.ndarray:
    """Return the symbols of runs (model number, length). A model is (alphabet size, frequencies or None)."""
    require(codec in (0, 2), "codec", f"codec {codec}")
    which = np.repeat(np.array([m for m, _ in runs], np.int64), [n for _, n in runs] or 0)
    out, is_packed = np.zeros(len(which), np.int64), np.array([codec == 0 or m[1] is None for m in models], bool)[which]
    out[is_packed], rest = unpack_symbols(data, which[is_packed], models)
    require(codec or not rest, "symbols", "bytes left over")
    if codec:
        out[~is_packed] = rans(which[~is_packed].tolist(), rest, models)
    return out


def packed_parts(which: np.ndarray, models: list[Any]) -> list[tuple[int, int, int]]:
    """Return (model number, width in bits, number of symbols) of each model that occurs, in order."""
    counts = zip(*np.unique(which, return_counts=True), strict=True)
    return [(int(m), max(1, (models[m][0] - 1).bit_length()), int(n)) for m, n in counts]


def unpack_symbols(data: bytes, which: np.ndarray, models: list[Any]) -> tuple[np.ndarray, bytes]:
    """Return the symbols of codec 0, symbol i of model which[i], and the bytes behind them."""
    out = np.zeros(len(which), np.int64)
    for model, width, count in packed_parts(which, models):
        size = (count * width + 7) // 8
        require(len(data) >= size, "symbols", "length")
        bits, data = np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little"), data[size:]
        values = bits[: count * width].reshape(count, width) @ (1 << np.arange(width))
        require(not bits[count * width :].any() and values.max() < models[model][0], "symbols", "padding or range")
        out[which == model] = values
    return out, data


def rans(which: list[int], data: bytes, models: list[Any]) -> np.ndarray:
    """Return the symbols of interleaved rANS; symbol i is of model which[i] and belongs to lane i mod lanes."""
    slots = {m: [(s, f, i) for s, f in enumerate(models[m][1]) for i in range(f)] for m in set(which)}
    lanes = 1 << data[0] if data else 0
    require(0 < lanes <= 4096 and len(data) >= 1 + 4 * lanes and len(data) % 2, "symbols", "lanes or length")
    states = list(struct.unpack_from(f"<{lanes}I", data, 1))
    words = struct.unpack_from(f"<{len(data) // 2 - 2 * lanes}H", data, 1 + 4 * lanes)
    position, out = 0, []
    for i, model in enumerate(which + which[-1:] * (-len(which) % lanes)):
        lane = i % lanes
        symbol, frequency, rest = slots[model][states[lane] & 4095]
        states[lane] = frequency * (states[lane] >> 12) + rest
        if states[lane] < 1 << 16:
            require(position < len(words), "symbols", "out of words")
            states[lane], position = states[lane] << 16 | words[position], position + 1
        out.append(symbol)
    require(position == len(words) and set(states) == {1 << 16}, "symbols", "left over")
    return np.array(out[: len(which)], np.int64)


# == zstd frames


def unzstd(data: bytes, size: int | None, dictionary: bytes = b"") -> bytes:
    """Return the content of one zstd frame without its magic number, of a known size or any, with nothing after it."""
    frame = b"\x28\xb5\x2f\xfd" + data
    extra = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        require(size in (None, declared) and declared <= len(data) << 15, "zstd", "declared size")
        require(declared > 0 or data == b"\x20\0\1\0\0", "zstd", "frame of empty content")
        return zstandard.ZstdDecompressor(dict_data=extra).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("zstd", str(error)) from error


# == Generators

SIGNS, SIGNS_SECOND, SUBSET, RADEMACHER, UNIFORM = range(5)  # purposes


def philox4x32(counter: list[Any], key: tuple[int, int]) -> list[Any]:
    """Return the four words of philox4x32-10."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def words(seed: int, stream: int, purpose: int, count: int) -> np.ndarray:
    """Return the first `count` words of a sequence; `stream` is the number t of the document."""
    block = np.arange(-(-count // 4), dtype=np.uint64)
    counter = [block % 2**32, block >> np.uint64(32), np.full_like(block, stream), np.full_like(block, purpose)]
    made = philox4x32(counter, (seed % 2**32, seed >> 32))
    return np.stack(made, -1).reshape(-1)[:count].astype(np.int64)


def signs(seed: int, stream: int, purpose: int, count: int) -> np.ndarray:
    """Return the first `count` signs of a sequence of words; a set bit is -1."""
    bits = words(seed, stream, purpose, -(-count // 32))[:, None] >> np.arange(32) & 1
    return 1 - 2 * bits.reshape(-1)[:count]


# == Bases


def synthesize(basis: int, q: np.ndarray, n: int, seed: int, stream: int) -> np.ndarray:
    """Return the n integers that the coefficients q stand for."""
    k, where = len(q), (seed, stream)
    if basis == 2:
        return q @ signs(*where, RADEMACHER, k * (n + -n % 32)).reshape(k, -1)[:, :n]
    if basis == 3:
        packed = words(*where, UNIFORM, k * ((n + 1) // 2))
        return q @ (np.stack((packed & 0xFFFF, packed >> 16), -1).reshape(k, -1)[:, :n] - 32768)
    if k < n:
        chosen = np.sort(np.argsort(words(*where, SUBSET, n), kind="stable")[:k])
        q, short = np.zeros(n, np.int64), q
        q[chosen] = short
    block, passes = block_and_passes(n)
    if passes == 1:
        return transform(q, block) * signs(*where, SIGNS, n)
    root, left = math.isqrt(block), n % block
    q = np.concatenate((transform(q[: n - left], block), q[n - left :] * root)) * signs(*where, SIGNS, n)
    return np.concatenate((q[:left] * root, transform(q[left:], block))) * signs(*where, SIGNS_SECOND, n)


def block_and_passes(n: int) -> tuple[int, int]:
    """Return the block and the number of passes of a Hadamard basis."""
    power = n & -n
    if power == n or power >= 64 or n < 4:
        return min(power, 4096), 1
    return (64 if n >= 64 else 16 if n >= 16 else 4), 2


def transform(q: np.ndarray, block: int) -> np.ndarray:
    """Return each block times the Sylvester matrix; element p of block b goes to p * blocks + b."""
    rows, half = q.reshape(-1, block), 1
    while half < block:
        a, b = np.moveaxis(rows.reshape(len(rows), -1, 2, half), 2, 0)
        rows, half = np.stack((a + b, a - b), 2).reshape(len(rows), block), 2 * half
    return rows.T.reshape(-1)


# == Factors

MANTISSAS = (
    32768, 33486, 34219, 34968, 35734, 36516, 37316, 38133, 38968, 39821, 40693, 41584, 42495, 43425, 44376, 45348,
    46341, 47356, 48393, 49452, 50535, 51642, 52773, 53928, 55109, 56316, 57549, 58809, 60097, 61413, 62757, 64132,
)  # fmt: skip


def decode_record(top: dict[str, Any], record: dict[str, Any], rung: int) -> None:
    """Add the int16 factors `lora_B` (out, r) and `lora_A` (r, columns), or the `vector`, as they are at a rung."""
    peak = max(record["peaks"].values(), default=0)
    vectors: list[list[Any]] = [[] for _ in record["sides"]]
    for unit in range(record["unit_counts"][rung]):
        for side in unit_sides(record, unit):
            code = record["amplitudes"][unit] * (2 if record["type"] == 2 or record["form"] == 2 else 1)
            n, k = record["lengths"][side], record["num_basis"][side]
            block, passes = block_and_passes(n)
            bound = peak * (block**passes, k, k << 15)[record["basis"] - 1]
            require(peak < 2**31 and bound < 2**46, "bound", "sums too large")
            q = record["coefficients"].get((side, len(vectors[side])), np.zeros(k, np.int64))
            y = synthesize(record["basis"], q, n, top["seed"], 2 * record["stream"] + side)
            vectors[side].append(to_int16(y, code, record["exponents"][rung][side]))
    most = record["most_units"] // (2 if record["form"] else 1)
    for rows, n, (name, shape) in zip(vectors, record["lengths"], record["sides"].items(), strict=True):
        stacked = np.stack(rows + [np.zeros(n)] * (most - len(rows)))
        record[name] = (stacked.T if name == "lora_B" and record["form"] != 1 else stacked).reshape(shape)


def to_int16(y: np.ndarray, code: int, exponent: int) -> np.ndarray:
    """Return a vector's integers times the scale of a code E, as 16-bit integers of an exponent."""
    shift = 15 - (code >> 5) + exponent
    require(1 <= shift <= 62, "scale", f"shift {shift}")
    return np.clip((y * MANTISSAS[code & 31] + (1 << shift - 1)) >> shift, -32768, 32767)


# == Carried tensors


def read_carried(record: dict[str, Any], codec: int, data: bytes) -> bytes:
    """Return the bytes of a carried tensor."""
    width, size = DTYPE_BYTES[record["dtype"]], record["nbytes"]
    require(codec in (0, 1) or (codec == 4 and width > 1), "codec", f"codec {codec} of a carried tensor")
    if codec == 4:
        end = 1 + data[0] * (size // width) if data else 1
        require(end <= len(data) and data[0] < width, "symbols", "stored planes")
        planes = data[1:end] + unzstd(data[end:], size + 1 - end)
        return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes()
    plain = unzstd(data, size) if codec else data
    require(len(plain) == size, "symbols", "length of a carried tensor")
    return plain


# == Drawn tensors


@cache
def draws() -> dict[str, Any]:
    """Return what `reference_draws.py` defines: the schema KIND, `is_valid` and `draw`."""
    return runpy.run_path(str(Path(__file__).with_name("reference_draws.py")))


# == References


def add_reference(top: dict[str, Any], record: dict[str, Any], rung: int, known: dict[str, Any]) -> None:
    """Add the reference's sides to those of a record in the difference form, or of a vector that the reference has."""
    pieces = [known.get(f"{record['name']}.{part}") for part in (*record["sides"], "exponents")]
    fits = all(piece is not None for piece in pieces)
    if record["form"] == 2 and fits:  # the rank may differ: missing components are zero, surplus ones are not used
        (out, rank), (_, columns) = record["sides"].values()
        require((pieces[0].shape[0], pieces[1].shape[1]) == (out, columns), "reference", record["name"])
        pieces[0] = np.pad(pieces[0][:, :rank], ((0, 0), (0, max(0, rank - pieces[0].shape[1]))))
        pieces[1] = np.pad(pieces[1][:rank], ((0, max(0, rank - pieces[1].shape[0])), (0, 0)))
    require(fits or record["form"] != 2, "reference", record["name"])
    if record["form"] != 2 and (record["type"] == 0 or not fits or pieces[0].shape != tuple(record["sides"]["vector"])):
        return
    for number, (side, gain) in enumerate(zip(record["sides"], top["reference"][2], strict=False)):
        shift = min(62, 10 + record["exponents"][rung][number] - int(pieces[-1][number]))
        require(shift >= 1, "scale", f"shift {shift}")
        added = record[side] + (pieces[number].astype(np.int64) * gain + (1 << shift - 1) >> shift)
        record[side] = np.clip(added, -32768, 32767)


# == Decoded SHA-256


def decoded_sha256(tensors: dict[str, Any]) -> bytes:
    """Return the hash over all records in order: exponents and sides of coded ones, bytes of the others."""
    return hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors.values())).digest()


def main(path: str, *options: str) -> None:
    """Decode a file, print its decoded SHA-256, and save the tensors if a name for them is given."""
    given, known = list(zip(options[::2], options[1::2], strict=True)), {}
    try:
        for other in [value for option, value in given if option == "--reference"]:
            decode(Path(other).read_bytes(), known)
        _, tensors, digest = decode(Path(path).read_bytes(), known)
    except Refused as refused:
        sys.exit(f"{path}: {', '.join(refused.args)}")
    for out in [value for option, value in given if option == "--npz"]:
        np.savez(out, **tensors)  # factors in int16, exponents in int8, carried and drawn tensors as bytes
    print(digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
