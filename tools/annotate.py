"""Write the worked examples of the specification, all of them computed by `spec/reference_decoder.py`.

python tools/annotate.py FILE      # prints an annotated dump of any .nola file
python tools/annotate.py           # writes the examples into spec/nola-v1.md, between its markers
"""

from __future__ import annotations

import argparse
import struct
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from known_answers import SEED
from make_golden import GOLDEN, ROOT, reference
from worked_file import tell_block

SPECIFICATION = ROOT / "spec" / "nola-v1.md"
EXAMPLE = GOLDEN / "worked.nola"
PROGRESSIVE = GOLDEN / "rungs.nola"
REF = reference()
PRELUDE = (
    ("8s", "magic"),
    ("H", "format version"),
    ("H", "revision"),
    ("H", "required flags"),
    ("I", "stored length of the header"),
    ("16s", "content SHA-256"),
    ("I", "CRC-32 of bytes 0 to 33 and of the stored header"),
)


def hexes(data: bytes, most: int = 24) -> str:
    """Return bytes in hexadecimal; the middle of long ones is left out."""
    return data.hex(" ") if len(data) <= most else f"{data[: most - 4].hex(' ')} .. {data[-2:].hex(' ')}"


def line(offset: int, data: bytes, meaning: str) -> str:
    """Return one row of a dump: offset, bytes, meaning. If there are many bytes, the meaning goes below them."""
    shown = hexes(data)
    return f"{offset:5d}  {shown:<36} {meaning}" if len(shown) <= 36 else f"{offset:5d}  {shown}\n{'':43}{meaning}"


def dump(data: bytes, *, whole: bool = False) -> Iterator[str]:
    """Yield the annotated bytes of a file; if `whole`, no value of the header is cut short."""
    top, _, digest = REF.decode(data)
    offset = 0
    for code, name in PRELUDE:
        (value,) = struct.unpack_from("<" + code, data, offset)
        size = struct.calcsize("<" + code)
        shown = f" = {value}" if isinstance(value, int) and not name.startswith("CRC") else ""
        yield line(offset, data[offset : offset + size], name + shown)
        offset += size
    end = offset + struct.unpack_from("<I", data, 14)[0]
    dictionary = (ROOT / "spec" / "header-dictionary.bin").read_bytes()
    plain = REF.unzstd(data[offset:end], None, dictionary)
    yield line(offset, data[offset:end], f"header, one zstd frame; {len(plain)} bytes when decompressed:")
    yield from header(plain, whole=whole)
    for index, ((codec, size, _), role) in enumerate(zip(top["sections"], section_roles(top), strict=True)):
        yield line(end, data[end : end + size], f"section {index}: {role}, codec {codec}, {size} bytes")
        end += size
    for record in top["coded"]:
        yield f"       {record['name']}: units {len(record['starts'])}"
        for unit, start in enumerate(record["starts"]):
            scale = f"precision {record['precisions'][unit]}, amplitude {record['amplitudes'][unit]}"
            yield f"         unit {unit}: starts at rung {start}, {scale}"
    for record in top["drawn"]:
        yield f"       {record['name']}: drawn, {np.prod(record['shape'])} words from {record['start']}"
    yield f"       decoded SHA-256 {digest}"


def section_roles(top: dict[str, Any]) -> Iterator[str]:
    """Yield what each section holds, in the order of the sections."""
    for rung in range(len(top["rungs"])):
        yield f"units of rung {rung}"
        for number in range(len(top["blocks"])):
            yield f"block {number} of rung {rung}"
        if rung == 0:
            yield from (f"carried tensor {record['name']}" for record in top["raw"])


def show(value: Any) -> str:
    """Return a value of the header as text, with the content of bins in hexadecimal."""
    if isinstance(value, bytes):
        return f"bin({value.hex(' ')})"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return "nil" if value is None else repr(value)


def header(plain: bytes, *, whole: bool) -> Iterator[str]:
    """Yield the header's map, pair by pair; offsets are those in the decompressed header."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(plain)
    count = unpacker.read_map_header()
    yield f"     + {plain[: unpacker.tell()].hex(' '):<34} a map of {count} pairs"
    for _ in range(count):
        start = unpacker.tell()
        key = unpacker.unpack()
        middle = unpacker.tell()
        value = unpacker.unpack()
        packed = plain[middle : unpacker.tell()]
        shown = show(value)
        shown = shown if whole or len(shown) <= 76 else shown[:73] + "..."
        yield f"     +{start:4d}  {key}\n              {hexes(packed)}"
        yield from textwrap.wrap(shown, 110, initial_indent=" " * 14, subsequent_indent=" " * 15)


def all_bytes(data: bytes) -> Iterator[str]:
    """Yield all bytes of a file, 32 in a line."""
    for offset in range(0, len(data), 32):
        yield f"{offset:5d}  {data[offset : offset + 32].hex(' ')}"


def decoding(data: bytes) -> Iterator[str]:
    """Yield how a file of one rung and one block, in component form, is decoded to the last number."""
    top, sections = REF.open_file(data)
    yield from UnitsNarrator(top).read(0, sections[0], len(top["coded"]))
    yield from tell_block(REF, top, sections)


def rungs(data: bytes) -> Iterator[str]:
    """Yield how the units of the first record of a progressive file are decoded, rung by rung."""
    top, sections = REF.open_file(data)
    reader, each = UnitsNarrator(top), 1 + len(top["blocks"])
    for rung in range(len(top["rungs"])):
        index = rung * each + (len(top["raw"]) if rung else 0)
        yield from reader.read(rung, sections[index], 1)
        layers = [(("lora_B", "lora_A")[side], vector, q) for side, vector, q, _ in top["coded"][0]["layers"]]
        listed = ", ".join(f"{side} {vector} with quantizer {q}" for side, vector, q in layers)
        text = f"layers in the rung's block: {listed}"
        yield from textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ")


ROLES = {
    0: "rows of an allocation table", 1: "precision of a row", 2: "quantizer of a row", 3: "weight of a row",
    4: "unit count", 5: "unit count, of 1", 6: "unit count, of 2 or more", 7: "exponent", 8: "precision of unit 0",
    9: "precision of unit 1", 10: "precision of a further unit", 11: "amplitude of another unit",
    12: "table of a kind", 13: "shift of a kind", 14: "amplitude of a kind",
    15: "amplitude of a unit that starts, no quantizer",
}  # fmt: skip
FIRST_AMPLITUDE = 16
ROLES |= {FIRST_AMPLITUDE + q: f"amplitude of a unit that starts, quantizer {q}" for q in range(256)}


class UnitsNarrator:
    """Reads the units of a file in component form, rung by rung, and says how each number comes about."""

    def __init__(self, top: dict[str, Any]) -> None:
        self._top = top
        self._references: dict[int, int] = {}
        self._any = 128

    def read(self, rung: int, section: tuple[int, bytes], shown: int) -> Iterator[str]:
        """Read the units section of the next rung, and yield how the units of the first `shown` records are decoded."""
        top, integers = self._top, []

        class Recording(REF.Integers):  # type: ignore[misc,name-defined]
            def read(self, role: int) -> int:
                value: int = super().read(role)
                integers.append((role, value))
                return value

        self._references, self._any = {}, 128
        before = [list(record["amplitudes"]) for record in top["coded"]]
        plain = REF.Integers
        vars(REF)["Integers"] = Recording
        REF.read_units(top, rung, *section)
        vars(REF)["Integers"] = plain
        yield f"units of rung {rung}, integers by role, in the order of the section:"
        for role, group in groupby(integers, key=lambda pair: pair[0] if pair[0] > 3 else 0):
            numbers = [value for _, value in group]
            name = "allocation tables, each a number of rows and three integers a row" if role == 0 else ROLES[role]
            text = f"{name}: {join(numbers)}"
            yield from textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ")
        yield f"  unit counts: {join(record['unit_counts'][rung] for record in top['coded'])}"
        for side, name in enumerate(("lora_B", "lora_A")):
            of_side = [record["exponents"][rung][side] for record in top["coded"] if side < len(record["sides"])]
            yield f"  exponents of {name}{' and vectors' * (side == 0)}: {join(of_side)}"
        precisions = iter([value for role, value in integers if 8 <= role <= 10])
        amplitudes = iter([value for role, value in integers if role == 11 or role >= 15])
        for index, (record, old) in enumerate(zip(top["coded"], before, strict=True)):
            lines = list(self._explain(record, rung, old, precisions, amplitudes))
            yield from lines if index < shown else ()

    def _explain(
        self, record: dict[str, Any], rung: int, old: list[int], precisions: Iterator[int], amplitudes: Iterator[int]
    ) -> Iterator[str]:
        reference = self._references.get(record["kind"], self._any)
        for unit, precision in enumerate(record["precisions"]):
            starts = record["starts"][unit] == rung
            rows = REF.unit_rows(self._top, record, unit, range(0 if starts else rung, rung + 1))
            yield f"  {short(record)}, unit {unit}, {'starts here' if starts else 'started earlier'}"
            if starts:
                number = next(precisions)
                assert (reference + number) % 256 == precision
                yield f"    precision = ({reference} + {number}) mod 256 = {precision}"
            for (side, book, weight), at in zip(rows, self._rungs_of(record, rung, starts), strict=True):
                row = f"quantizer {book}, weight {weight}"
                sought = f"table {record['tables'][side]}, precision {precision + record['shift'][side]}"
                yield f"    row of {('lora_B', 'lora_A')[side]} at rung {at}: {sought}: {row}"
            if starts or any(row[1] >= 0 for row in rows):
                slope = self._top["amplitude_slope"] * precision
                terms = [next(amplitudes), *([record["amplitude"], slope] if starts else [old[unit]])]
                assert sum(terms) == record["amplitudes"][unit]
                yield f"    amplitude = {' + '.join(map(str, terms))} = {sum(terms)}"
            reference = precision
        if record["precisions"]:
            self._references[record["kind"]] = self._any = record["precisions"][0]

    @staticmethod
    def _rungs_of(record: dict[str, Any], rung: int, starts: bool) -> list[int]:
        """Return the rung of each row of a unit, in the order of the reference decoder: side by side."""
        return list(range(0 if starts else rung, rung + 1)) * len(record["sides"])


def short(record: dict[str, Any]) -> str:
    """Return the last part of a record's name."""
    return str(record["name"]).rsplit(".", 1)[1]


def sequence(title: str, values: Any) -> Iterator[str]:
    """Yield a title and, below it, integers in lines."""
    yield title
    yield from textwrap.wrap(join(values), 110, initial_indent=" " * 4, subsequent_indent=" " * 4)


def vectors() -> Iterator[str]:
    """Yield worked vectors of each step of decoding."""
    where = f"seed 0x{SEED:016x}, stream 5"
    yield f"philox4x32-10, {where}"
    for purpose, use in enumerate(("signs", "second signs", "subset", "rademacher", "uniform")):
        made = REF.words(SEED, 5, purpose, 4)
        yield f"  purpose {purpose} ({use}): words {' '.join(f'{w:08x}' for w in made.tolist())}"
    yield f"  first eight signs: {join(REF.signs(SEED, 5, 0, 8))}"
    order = np.argsort(REF.words(SEED, 5, 2, 10), kind="stable")
    yield f"  4 of 10 positions: {join(np.sort(order[:4]))}"
    yield f"bases, {where}"
    for basis, name in ((2, "rademacher"), (3, "uniform")):
        for row in (0, 1):
            made = REF.synthesize(basis, np.eye(2, dtype=np.int64)[row], 5, SEED, 5)
            yield f"  {name}, n = 5, row {row}: {join(made)}"
    for n, k in ((1, 1), (3, 3), (4, 4), (4, 2), (6, 6)):
        q = np.arange(1, k + 1)
        made = REF.synthesize(1, q, n, SEED, 5)
        yield f"  hadamard, n = {n}, q = {join(q)}: {join(made)}"
    q, first, second = np.arange(1, 7), REF.signs(SEED, 5, 0, 6), REF.signs(SEED, 5, 1, 6)
    head = np.concatenate((REF.transform(q[:4], 4), q[4:] * 2))
    yield "the last one in steps: block 4, root 2, two elements left over"
    yield f"  first pass              {join(head)}"
    yield f"  times signs             {join(first)} = {join(head * first)}"
    tail = np.concatenate(((head * first)[:2] * 2, REF.transform((head * first)[2:], 4)))
    yield f"  second pass             {join(tail)}"
    yield f"  times second signs      {join(second)} = {join(tail * second)}"
    first, last = REF.draws()["mt19937"](5489, 0, 3), REF.draws()["mt19937"](5489, 9999, 1)
    yield f"MT19937, seed 5489: words {join(first)}; word 9999 is {join(last)}"
    yield "drawn, F32, seed 5489, from word 1, of -0.3 to 0.3 in float32, as float32 bits"
    end = float(np.float32(0.3))
    kind = {"shape": [3], "dtypes": [0], "digits": 24, "seed": 5489, "start": 1, "axis": 0, "low": -end, "high": end}
    for method, name in enumerate(("uniform", "uniform, fused", "ternary")):
        made = np.frombuffer(REF.draws()["draw"]({**kind, "method": method, "divisor": None}), "<u4")
        yield f"  {name}: {' '.join(f'{bits:08x}' for bits in made.tolist())}"
    made = np.frombuffer(REF.draws()["draw"]({**kind, "method": 1, "dtypes": [2, 0], "divisor": 0.14453125}), "<u4")
    yield f"  fused in BF16, divided by 0.14453125, cast to F32: {' '.join(f'{bits:08x}' for bits in made.tolist())}"
    yield "scales"
    for y, code, exponent in ((1000, 0, 0), (-1000, -37, -3), (5, 31, 0), (123456, 10, 4), (123456, 10, 0)):
        shift = 15 - (code >> 5) + exponent
        scaled = max(-32768, min(32767, (y * REF.MANTISSAS[code & 31] + (1 << shift - 1)) >> shift))
        mantissa = REF.MANTISSAS[code & 31]
        yield f"  y = {y}, code {code}, exponent {exponent}: M = {mantissa}, s = {shift}, result {scaled}"
    yield "references"
    for own, other, gain, gap in ((100, 1000, 1024, 0), (-7, -1000, 1145, 2), (0, 3, 1024, 1), (9, 20000, 2048, -1)):
        shift = 10 + gap
        total = max(-32768, min(32767, own + ((other * gain + (1 << shift - 1)) >> shift)))
        yield f"  d = {own}, r = {other}, G = {gain}, e - e_ref = {gap}: s = {shift}, v = {total}"
    yield "bit packing: symbols 1 2 3 0 5 at 3 bits: " + pack_bits([1, 2, 3, 0, 5], 3).hex(" ")
    section = bytes.fromhex("6f923eec9120")
    reader = REF.Integers(section)
    yield f"adaptive integers: {section.hex(' ')} are {join(reader.read(0) for _ in range(8))}, all of one role"
    symbols, table = [0, 1, 0, 0, 2, 0, 1, 1, 0, 2, 2, 0, 0, 1], [2048, 1536, 512]
    coded = rans_one_lane(symbols, table)
    assert REF.rans([0] * len(symbols), coded, [(3, table)]).tolist() == symbols
    yield f"rans, one lane, one model of frequencies {join(table)}, symbols {join(symbols)}:"
    yield f"  {coded.hex(' ')}"


def join(values: Any) -> str:
    """Return integers separated by blanks."""
    return " ".join(str(int(v)) for v in values)


def pack_bits(symbols: list[int], width: int) -> bytes:
    """Return symbols packed at a fixed width, the least significant bit first."""
    number = sum(symbol << (width * i) for i, symbol in enumerate(symbols))
    return number.to_bytes((len(symbols) * width + 7) // 8, "little")


def rans_one_lane(symbols: list[int], table: list[int]) -> bytes:
    """Return the section of one lane by the textbook encoder, which goes backwards through the symbols."""
    state, words = 1 << 16, []
    for symbol in reversed(symbols):
        frequency, start = table[symbol], sum(table[:symbol])
        if state >> 20 >= frequency:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // frequency << 12) + state % frequency + start
    return b"\0" + struct.pack("<I", state) + b"".join(struct.pack("<H", word) for word in reversed(words))


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "vectors": vectors,
    "bytes": lambda: all_bytes(EXAMPLE.read_bytes()),
    "dump": lambda: dump(EXAMPLE.read_bytes(), whole=True),
    "decoding": lambda: decoding(EXAMPLE.read_bytes()),
    "rungs": lambda: rungs(PROGRESSIVE.read_bytes()),
}


def fill_examples(text: str) -> str:
    """Return the specification with its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: written by tools/annotate.py -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}```text\n" + "\n".join(make()) + f"\n```\n{end}{after}"
    return text


def main() -> None:
    """Dump the file named on the command line, or bring the specification up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the .nola file to dump")
    file = parser.parse_args().file
    if file is not None:
        print("\n".join(dump(file.read_bytes())))
        return
    SPECIFICATION.write_text(fill_examples(SPECIFICATION.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
