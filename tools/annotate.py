"""Writes the worked examples of the specification, all of them computed by `spec/reference_decoder.py`.

python tools/annotate.py FILE      # annotated dump of any .nola file
python tools/annotate.py           # writes the examples into spec/nola-v1.md, between its markers
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from make_golden import GOLDEN, ROOT, SEED, reference

SPECIFICATION = ROOT / "spec" / "nola-v1.md"
EXAMPLE = GOLDEN / "codec-raw.nola"
REF = reference()
PRELUDE = (
    ("8s", "magic"),
    ("H", "format version"),
    ("H", "revision"),
    ("I", "required flags"),
    ("I", "optional flags"),
    ("I", "stored length of the header"),
    ("I", "plain length of the header"),
    ("I", "CRC-32 of the stored header"),
    ("Q", "file length"),
    ("32s", "SHA-256 of the content"),
    ("I", "CRC-32 of bytes 0 to 71"),
)


def hexes(data: bytes, most: int = 24) -> str:
    """Bytes in hexadecimal, the middle of long ones left out."""
    return data.hex(" ") if len(data) <= most else f"{data[: most - 4].hex(' ')} .. {data[-2:].hex(' ')}"


def line(offset: int, data: bytes, meaning: str) -> str:
    """One row of a dump: offset, bytes, meaning; the meaning goes below where the bytes are many."""
    shown = hexes(data)
    return f"{offset:5d}  {shown:<36} {meaning}" if len(shown) <= 36 else f"{offset:5d}  {shown}\n{'':43}{meaning}"


def dump(data: bytes) -> Iterator[str]:
    """Annotated bytes of a file."""
    top, _, digest = REF.decode(data)
    offset = 0
    for code, name in PRELUDE:
        (value,) = struct.unpack_from("<" + code, data, offset)
        size = struct.calcsize("<" + code)
        shown = f" = {value}" if isinstance(value, int) and not name.startswith("CRC") else ""
        yield line(offset, data[offset : offset + size], name + shown)
        offset += size
    stored, plain = struct.unpack_from("<II", data, 20)
    yield line(76, data[76 : 76 + stored], f"header, one zstd frame; {plain} bytes when decompressed:")
    dictionary = (ROOT / "spec" / "header-dictionary.bin").read_bytes()
    yield from header(REF.unzstd(data[76 : 76 + stored], plain, dictionary))
    base = 76 + stored + -(76 + stored) % 8
    end = 76 + stored
    roles = ["units", *("block" for _ in top["blocks"]), *("raw tensor" for _ in top["raw"])]
    for index, ((codec, start, size, _), role) in enumerate(zip(top["sections"], roles, strict=True)):
        if base + start > end:
            yield line(end, data[end : base + start], "padding")
        end = base + start + size
        yield line(base + start, data[base + start : end], f"section {index}: {role}, codec {codec}, {size} bytes")
    for record in top["coded"]:
        vectors = "; ".join(f"{'BA'[side]} quantizer {q} scale code {code}" for side, q, code in record["vectors"])
        yield f"       {record['name']}: {vectors}"
    for record in top["drawn"]:
        yield f"       {record['name']}: drawn, {np.prod(record['shape'])} words from {record['start']}"
    yield f"       digest of the decoded tensors {digest}"


def header(plain: bytes) -> Iterator[str]:
    """The header's map, pair by pair; offsets are those in the decompressed header."""
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
        shown = repr(value).replace("None", "nil")
        shown = shown if len(shown) <= 76 else shown[:73] + "..."
        yield f"     +{start:4d}  {key}\n              {hexes(packed)}\n              {shown}"


def vectors() -> Iterator[str]:
    """Worked vectors of each step of decoding."""
    where = f"seed 0x{SEED:016x}, stream 5"
    for generator, name in ((1, "philox4x32-10"), (2, "threefry2x32-20")):
        yield f"{name}, {where}"
        for purpose, use in enumerate(("signs", "second signs", "subset", "rademacher", "uniform")):
            made = REF.words(generator, SEED, 5, purpose, 4)
            yield f"  purpose {purpose} ({use}): words {' '.join(f'{w:08x}' for w in made.tolist())}"
        yield f"  first eight signs: {listed(REF.signs(generator, SEED, 5, 0, 8))}"
        order = np.argsort(REF.words(generator, SEED, 5, 2, 10), kind="stable")
        yield f"  4 of 10 positions: {listed(np.sort(order[:4]))}"
    yield f"bases, philox4x32-10, {where}"
    for basis, name in ((2, "rademacher"), (3, "uniform")):
        for row in (0, 1):
            made = REF.synthesize(basis, np.eye(2, dtype=np.int64)[row], 5, 1, SEED, 5)
            yield f"  {name}, n = 5, row {row}: {listed(made)}"
    for n, k in ((1, 1), (3, 3), (4, 4), (4, 2), (6, 6)):
        q = np.arange(1, k + 1)
        made = REF.synthesize(1, q, n, 1, SEED, 5)
        yield f"  hadamard, n = {n}, q = {listed(q)}: {listed(made)}"
    q, first, second = np.arange(1, 7), REF.signs(1, SEED, 5, 0, 6), REF.signs(1, SEED, 5, 1, 6)
    head = np.concatenate((REF.transform(q[:4], 4), q[4:] * 2))
    yield "the last one in steps: block 4, root 2, two elements left over"
    yield f"  first pass              {listed(head)}"
    yield f"  times signs             {listed(first)} = {listed(head * first)}"
    tail = np.concatenate(((head * first)[:2] * 2, REF.transform((head * first)[2:], 4)))
    yield f"  second pass             {listed(tail)}"
    yield f"  times second signs      {listed(second)} = {listed(tail * second)}"
    first, last = REF.mt19937(5489, 0, 3), REF.mt19937(5489, 9999, 1)
    yield f"MT19937, seed 5489: words {listed(first)}; word 9999 is {listed(last)}"
    yield "drawn, F32, seed 5489, from word 1, of -0.3 to 0.3 in float32, as float32 bits"
    end = float(np.float32(0.3))
    kind = {"shape": [3], "dtypes": [0], "digits": 24, "seed": 5489, "start": 1, "axis": 0, "low": -end, "high": end}
    for method, name in enumerate(("uniform", "uniform, fused", "ternary")):
        made = np.frombuffer(REF.draw({**kind, "method": method, "divisor": None}), "<u4")
        yield f"  {name}: {' '.join(f'{bits:08x}' for bits in made.tolist())}"
    made = np.frombuffer(REF.draw({**kind, "method": 1, "dtypes": [2, 0], "divisor": 0.14453125}), "<u4")
    yield f"  fused in BF16, divided by 0.14453125, cast to F32: {' '.join(f'{bits:08x}' for bits in made.tolist())}"
    yield "scales"
    for y, code, exponent in ((1000, 0, 0), (-1000, -37, -3), (5, 31, 0), (123456, 10, 4), (123456, 10, 0)):
        shift = 15 - (code >> 5) + exponent
        scaled = max(-32768, min(32767, (y * REF.MANTISSAS[code & 31] + (1 << shift - 1)) >> shift))
        mantissa = REF.MANTISSAS[code & 31]
        yield f"  y = {y}, code {code}, exponent {exponent}: M = {mantissa}, s = {shift}, result {scaled}"
    yield "bit packing: symbols 1 2 3 0 5 at 3 bits: " + packed([1, 2, 3, 0, 5], 3).hex(" ")
    numbers = b"\x00\x01\x02\xd8\x04\xd7\x04"
    yield f"varints: {numbers.hex(' ')} are {listed(REF.varints(numbers, 5))}"
    symbols, table = [0, 1, 0, 0, 2, 0, 1, 1, 0, 2, 2, 0, 0, 1], [2048, 1536, 512]
    coded = rans_one_lane(symbols, table)
    assert REF.rans([0] * len(symbols), coded, [(3, table)]).tolist() == symbols
    yield f"rans, one lane, one model of frequencies {listed(table)}, symbols {listed(symbols)}:"
    yield f"  {coded.hex(' ')}"


def listed(values: Any) -> str:
    """Integers separated by blanks."""
    return " ".join(str(int(v)) for v in values)


def packed(symbols: list[int], width: int) -> bytes:
    """Symbols of a fixed width, least significant bit first."""
    number = sum(symbol << (width * i) for i, symbol in enumerate(symbols))
    return number.to_bytes((len(symbols) * width + 7) // 8, "little")


def rans_one_lane(symbols: list[int], table: list[int]) -> bytes:
    """The textbook encoder, backwards through the symbols."""
    state, words = 1 << 16, []
    for symbol in reversed(symbols):
        frequency, start = table[symbol], sum(table[:symbol])
        if state >> 20 >= frequency:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // frequency << 12) + state % frequency + start
    return b"\0" + struct.pack("<I", state) + b"".join(struct.pack("<H", word) for word in reversed(words))


PARTS: dict[str, Callable[[], Iterator[str]]] = {"vectors": vectors, "dump": lambda: dump(EXAMPLE.read_bytes())}


def filled(text: str) -> str:
    """The specification with its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: written by tools/annotate.py -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}```text\n" + "\n".join(make()) + f"\n```\n{end}{after}"
    return text


def main() -> None:
    """Dump the file named on the command line, or bring the specification up to date."""
    if len(sys.argv) > 1:
        print("\n".join(dump(Path(sys.argv[1]).read_bytes())))
        return
    SPECIFICATION.write_text(filled(SPECIFICATION.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
