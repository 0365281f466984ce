"""What each construct of the format saves: the bytes that real files would grow by if the construct were not there.

    python tools/bench/constructs.py [--adapters NAME ...] [--sizes SIZE ...] [--forms FORM ...] [--json]

Every adapter is encoded at several sizes and in several forms. Each file is then taken apart, and what a construct says
is said again without it: the header is compressed anew, units sections are written with other predictions, and blocks
are coded by other codecs. The figures are exact, with one exception: an encoder rounds amplitudes towards their
prediction, and would round them otherwise for another one. So a file without a part of that prediction grows by at most
the figure.

A construct that the format does not have, or does not have any more, is measured the other way round: by how much it
would make the file shorter. The figure means the same.

Forms: `default`; `nmse`, the same sizes with the objective NMSE; `rungs`, progressive files; `paper`, the factor form
with 4 bits, and `paper-1` with 1 bit, both with as many coefficients as fit into the size. Adapters with nothing to
code, and sizes that an adapter cannot have, are left out. The figures are kept (tools/experiments/results.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import results
from page_tables.constructs import constructs
from real_data import adapters

from nola_codec.container import canonical, units
from nola_codec.container.layers import join_units, look_up
from nola_codec.container.prelude import SIZE
from nola_codec.container.reader import header_dictionary, open_container
from nola_codec.container.unit_tables import FIRST_AMPLITUDE, LATER_AMPLITUDE, PRECISION
from nola_codec.decoder.coefficients import block_runs, decode_symbols
from nola_codec.entropy import raw, smallest
from nola_codec.entropy.adaptive import IntegerWriter
from nola_codec.entropy.frames import compress, declared_size, decompress
from nola_codec.entropy.streams import symbol_width, symbols_by_model
from nola_codec.model.header import Allocation, Header
from nola_codec.model.quantizers import Codebook, SymbolModel
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.packing import pack

NAME = "constructs"
_OFFSET = 271
"""A role that no integer of these files has."""
SIZES = ("5KB", "10KB", "30KB", "90KB", "500KB")
FORMS = ("default", "nmse", "rungs", "paper", "paper-1")
Tables = list[tuple[Allocation, ...]]
"""The allocation tables of each rung."""


class Saving(NamedTuple):
    """How often a file has a construct, and the bytes that it would grow by without it."""

    used: int
    bytes: int


class _Recorder(IntegerWriter):
    """A writer of adaptive integers that keeps what was written, one list of (role, integer) for each section."""

    def __init__(self, sections: list[list[tuple[int, int]]]) -> None:
        super().__init__()
        self._sections = sections

    def finish(self) -> bytes:
        """Keep the integers of the section."""
        self._sections.append(list(zip(self._roles, self._values, strict=True)))
        return super().finish()


@dataclass(frozen=True)
class Parts:
    """A file in parts.

    Attributes:
        header: The header, with the units of the last rung.
        rungs: The coded records at each rung.
        sections: The stored bytes of each section.
        stored: The stored bytes of the header.
        top: The map of the header.
    """

    header: Header
    rungs: list[tuple[CodedRecord, ...]]
    sections: list[bytes]
    stored: bytes
    top: dict[str, Any]

    @staticmethod
    def of(data: bytes) -> Parts:
        """Take a file apart."""
        with open_container(data) as container:
            stored = data[SIZE : container.header_length]
            plain = decompress(stored, declared_size(stored, "header"), "header", header_dictionary())
            rungs = []
            for rung in range(container.rungs):
                container.select(rung)
                header = container.read_units()
                rungs.append(header.coded)
            sections = [container.section(number) for number in range(len(header.sections))]
        return Parts(header, rungs, sections, stored, canonical.unpack(plain))

    @cached_property
    def tables(self) -> Tables:
        """The allocation tables of each rung."""
        return [rung.allocation for rung in self.header.rungs]

    @cached_property
    def models(self) -> list[SymbolModel]:
        """The models of the quantizers."""
        return [quantizer.model for quantizer in self.header.quantizers]

    @cached_property
    def integers(self) -> list[list[tuple[int, int]]]:
        """The roles and integers of each units section."""
        found: list[list[tuple[int, int]]] = []
        with mock.patch.object(units, "IntegerWriter", partial(_Recorder, found)):
            packed = self.pack_units(self.rungs, self.tables, self.header.amplitude_slope)
        if packed != self.units_sections:
            raise SystemExit("a units section is not written as it was stored; the program has to be mended")
        return found

    @cached_property
    def units_sections(self) -> list[bytes]:
        """The units section of each rung."""
        return [self.sections[self.header.units_section(rung)] for rung in range(len(self.rungs))]

    def pack_units(self, rungs: Sequence[Sequence[CodedRecord]], tables: Tables, slope: int) -> list[bytes]:
        """Return the units sections for other kinds, tables or another slope, however bad the prediction is."""
        with mock.patch.object(units, "MOST_GAP", 1 << 16):
            return units.pack_units(rungs, tables, slope, [rung.exponents for rung in self.header.rungs])

    def units_growth(self, packed: Sequence[bytes]) -> int:
        """Return how much longer these units sections are than those of the file."""
        return sum(map(len, packed)) - sum(map(len, self.units_sections))

    def header_size(self, **changed: Any) -> int:
        """Return the stored length of the header with other values."""
        return len(compress(canonical.pack({**self.top, **changed}), header_dictionary()))

    def quantizers_growth(self, without: Sequence[Any], with_it: Sequence[Any]) -> int:
        """Return how much longer the header is with one way to write quantizers than with another."""
        return self.header_size(quantizers=list(without)) - self.header_size(quantizers=list(with_it))


def zstd_symbols(parts: Parts) -> Saving:
    """Blocks that are shorter as one zstd frame of packed symbols."""
    used, saved = 0, 0
    for symbols, runs, _ in _blocks(parts):
        (best,) = smallest([symbols], [runs], parts.models, (0, 2))
        wide = [pack(part, _power_of_two(symbol_width(parts.models[model])))
                for model, part in symbols_by_model(symbols, runs)]  # fmt: skip
        gain = len(best[1]) - len(compress(b"".join(wide)))
        used, saved = used + (gain > 0), saved + max(gain, 0)
    return Saving(used, saved)


def rans(parts: Parts) -> Saving:
    """Blocks that rANS codes shorter than packed symbols; without rANS there are no frequencies."""
    used, saved = 0, 0
    for _, runs, stored in _blocks(parts):
        gain = raw.size(runs, parts.models) - len(stored)
        used, saved = used + (gain > 0), saved + max(gain, 0)
    bare = [[form, parameters, None] for form, parameters, _ in parts.top["quantizers"]]
    return Saving(used, saved - (len(parts.stored) - parts.header_size(quantizers=bare)))


def _differences(points: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip((0, *points), points, strict=False)]


def differences_of_points(parts: Parts) -> Saving:
    """Each point of a codebook as the difference from the one before, against the points themselves."""
    with_it, without = parts.top["quantizers"], []
    for kind, parameters, table in with_it:
        if kind == 3:
            parameters = [parameters[0], *(list(accumulate(points)) for points in parameters[1:])]
        without.append([kind, list(accumulate(parameters)) if kind == 0 else parameters, table])
    return Saving(sum(kind in (0, 3) for kind, *_ in with_it), parts.quantizers_growth(without, with_it))


def symmetric_codebooks(parts: Parts) -> Saving:
    """A form of a quantizer for symmetric points, against dependent codebooks that are even = odd."""
    short, long, used = [], [], 0
    for quantizer, wire in zip(parts.header.quantizers, parts.top["quantizers"], strict=True):
        book = quantizer.codebook
        if isinstance(book, Codebook) and _is_symmetric(book):
            positive = _differences(book.points[book.size // 2 + 1 :])
            table = None if quantizer.frequencies is None else list(quantizer.frequencies[book.size // 2 :])
            short.append([3, positive, table])
            long.append([3, [0, positive, positive], table])
            used += 1
        else:
            short.append(wire)
            long.append(wire)
    return Saving(used, parts.quantizers_growth(long, short))


def midrise_codebooks(parts: Parts) -> Saving:
    """A form of a quantizer for all odd numbers up to a size, against a list of points."""
    return _plain_form(parts, lambda book: book.points == tuple(range(1 - book.size, book.size, 2)))


def short_midtread_codebooks(parts: Parts) -> Saving:
    """A form of a quantizer for all integers of up to 8 bits, against a list of points."""
    return _plain_form(parts, lambda book: book.size <= 256 and book.points == _integers(book.size))


def threefry(parts: Parts) -> Saving:
    """The second generator: no file is shorter by it."""
    return Saving(int(parts.header.generator == 2), 0)


def dictionary(parts: Parts) -> Saving:
    """The preset dictionary of the header."""
    return Saving(1, len(compress(canonical.pack(parts.top))) - len(parts.stored))


def adaptive_integers(parts: Parts) -> Saving:
    """Adaptive integers, against one zstd frame of bytes: the integers sorted by role, in zigzag form."""
    saved = 0
    for section, own in zip(parts.units_sections, parts.integers, strict=True):
        values = [2 * abs(v) - (v < 0) for _, v in sorted(own, key=lambda item: item[0])]
        plain = bytearray()
        for value in values:
            while value > 127:
                plain.append(value & 127 | 128)
                value >>= 7
            plain.append(value)
        saved += min(len(plain), len(compress(bytes(plain)))) - len(section)
    return Saving(len(parts.units_sections), saved)


def precisions_of_earlier_rungs(parts: Parts) -> Saving:
    """Precisions of late units that are predicted from records of earlier rungs, against those of the same rung."""
    return _predicted_anew(parts, keeps_rungs=False)


def slope(parts: Parts) -> Saving:
    """The amplitude slope of the header."""
    return _amplitudes(parts, _refit(parts, 0), parts.tables, 0, used=int(parts.header.amplitude_slope != 0))


def kind_amplitudes(parts: Parts) -> Saving:
    """The amplitude of each kind, against one amplitude of the file."""
    kinds = {record.kind for record in parts.rungs[-1]}
    one = int(np.median([kind.amplitude for kind in kinds])) if kinds else 0
    rungs = [_with_amplitudes(records, dict.fromkeys(kinds, one)) for records in parts.rungs]
    return _amplitudes(parts, rungs, parts.tables, parts.header.amplitude_slope, used=len(kinds))


def row_offsets(parts: Parts) -> Saving:
    """Offsets of the rows of the first sides, which are added to the prediction of amplitudes."""
    used, saved = 0, 0
    for rung, (records, own) in enumerate(zip(parts.rungs, parts.integers, strict=True)):
        rows = [
            (side.table, _row(parts.tables[rung][side.table], int(precision) + side.shift))
            for record in records
            for side in record.kind.sides[:1]
            for precision in record.precision[_touched(parts, record, rung)]
        ]
        gaps = [value for role, value in own if _is_amplitude(role)]
        by_row: dict[tuple[int, int], list[int]] = {}
        for row, gap in zip(rows, gaps, strict=True):
            by_row.setdefault(row, []).append(gap)
        medians = {row: round(float(np.median(values))) for row, values in by_row.items()}
        writer, rest = IntegerWriter(), iter(rows)
        for role, value in own:
            one_role = FIRST_AMPLITUDE if role >= FIRST_AMPLITUDE - 1 else role
            writer.write(one_role, value - medians[next(rest)] if _is_amplitude(role) else value)
        offsets = [medians.get((table, row), 0) for table, own_rows in enumerate(parts.tables[rung])
                   for row in range(len(own_rows))]  # fmt: skip
        for before, offset in zip([0, *offsets], offsets, strict=False):
            writer.write(_OFFSET, offset - before)
        used += sum(offset != 0 for offset in offsets)
        saved += len(parts.units_sections[rung]) - len(writer.finish())
    return Saving(used, saved)


def quantizers_of_amplitudes(parts: Parts) -> Saving:
    """A role for the first amplitudes of each quantizer, against one role for all of them."""
    used, saved = 0, 0
    for own, stored in zip(parts.integers, parts.units_sections, strict=True):
        writer = IntegerWriter()
        for role, value in own:
            writer.write(FIRST_AMPLITUDE if role >= FIRST_AMPLITUDE - 1 else role, value)
        used += len({role for role, _ in own if role >= FIRST_AMPLITUDE - 1})
        saved += len(writer.finish()) - len(stored)
    return Saving(used, saved)


def _is_amplitude(role: int) -> bool:
    return role == LATER_AMPLITUDE or role >= FIRST_AMPLITUDE - 1


def _touched(parts: Parts, record: CodedRecord, rung: int) -> Any:
    """Return the numbers of the units of a record that have an amplitude in the units section of a rung."""
    joined = join_units([record])
    return np.flatnonzero(units.touched_units(joined, parts.tables, rung))


def shifts(parts: Parts) -> Saving:
    """The shift of each side, against a table of its own for each table and shift."""
    numbers: dict[tuple[int, int], int] = {}
    for record in parts.rungs[-1]:
        for side in record.kind.sides:
            numbers.setdefault((side.table, side.shift), len(numbers))
    tables: Tables = [
        tuple(tuple((precision - shift, *rest) for precision, *rest in own[table]) for table, shift in numbers)  # type: ignore[misc]
        for own in parts.tables
    ]

    def moved(kind: CodedKind) -> CodedKind:
        sides = (replace(side, table=numbers[side.table, side.shift], shift=0) for side in kind.sides)
        return replace(kind, sides=tuple(sides))

    kinds = {record.kind: moved(record.kind) for record in parts.rungs[-1]}
    rungs = [tuple(replace(record, kind=kinds[record.kind]) for record in records) for records in parts.rungs]
    used = len({shift for _, shift in numbers})
    return _amplitudes(parts, rungs, tables, parts.header.amplitude_slope, used=used)


CONSTRUCTS = {
    "rANS": rans,
    "header dictionary": dictionary,
    "adaptive integers": adaptive_integers,
    "amplitude slope": slope,
    "amplitudes of kinds": kind_amplitudes,
    "differences of points": differences_of_points,
    "quantizers of amplitudes": quantizers_of_amplitudes,
    "offsets of rows": row_offsets,
    "shifts of sides": shifts,
    "precisions of earlier rungs": precisions_of_earlier_rungs,
    "zstd for symbols": zstd_symbols,
    "symmetric codebooks": symmetric_codebooks,
    "midrise codebooks": midrise_codebooks,
    "midtread codebooks up to 8 bits": short_midtread_codebooks,
    "threefry2x32-20": threefry,
}


def _blocks(parts: Parts) -> list[tuple[Any, Any, bytes]]:
    """Return the symbols, the runs and the stored bytes of each block of each rung."""
    found = []
    header = parts.header
    for rung, records in enumerate(parts.rungs):
        first, start = header.units_section(rung) + 1, 0
        for number, count in enumerate(header.blocks):
            own = records[start : start + count]
            stored = parts.sections[first + number]
            coded = [(header.sections[first + number].codec, stored)]
            symbols = decode_symbols(coded, [own], header.quantizers, parts.tables, rung)
            found.append((np.concatenate(symbols), block_runs(own, header.quantizers, parts.tables, rung), stored))
            start += count
    return found


def _power_of_two(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _is_symmetric(book: Codebook) -> bool:
    return book.size % 2 == 1 and book.points == tuple(-p for p in reversed(book.points))


def _integers(size: int) -> tuple[int, ...]:
    return tuple(range(-size // 2, size // 2))


def _plain_form(parts: Parts, has_form: Any) -> Saving:
    """Return what a form [form, number of bits, table] saves against a list of points."""
    short, long, used = [], [], 0
    for quantizer, wire in zip(parts.header.quantizers, parts.top["quantizers"], strict=True):
        book = quantizer.codebook
        if isinstance(book, Codebook) and has_form(book):
            table = None if quantizer.frequencies is None else list(quantizer.frequencies)
            short.append([2, (book.size - 1).bit_length(), table])
            long.append([1, _differences(book.points), table])
            used += 1
        else:
            short.append(wire)
            long.append(wire)
    return Saving(used, parts.quantizers_growth(long, short))


def _amplitudes(parts: Parts, rungs: Any, tables: Tables, other_slope: int, *, used: int) -> Saving:
    """Return how much longer the units sections are with another prediction of amplitudes."""
    return Saving(used, parts.units_growth(parts.pack_units(rungs, tables, other_slope)))


def _with_amplitudes(records: Sequence[CodedRecord], amplitudes: dict[CodedKind, int]) -> tuple[CodedRecord, ...]:
    """Return records whose kinds have other amplitudes."""
    kinds = {kind: replace(kind, amplitude=amplitude) for kind, amplitude in amplitudes.items()}
    return tuple(replace(record, kind=kinds[record.kind]) for record in records)


def _refit(parts: Parts, other_slope: int) -> list[tuple[CodedRecord, ...]]:
    """Fit the amplitudes of kinds to another slope, by medians over the units that start at the first rung."""
    residuals: dict[CodedKind, list[float]] = {}
    for record in parts.rungs[0]:
        residuals.setdefault(record.kind, []).extend((record.amplitude - other_slope * record.precision).tolist())
    amplitudes = {kind: round(float(np.median(values))) if values else 0 for kind, values in residuals.items()}
    return [_with_amplitudes(records, amplitudes) for records in parts.rungs]


def _row(table: Allocation, precision: int) -> int:
    look_up(table, precision)  # raises an error if no row fits
    return max(row for row, (least, *_) in enumerate(table) if least <= precision)


def _predicted_anew(parts: Parts, *, keeps_rungs: bool) -> Saving:
    """Return the growth of the units sections if records of earlier rungs do or do not predict precisions."""
    sizes = {}
    for keeps in (True, False):
        latest: dict[CodedKind, Any] = {}
        newest, size = 128, 0
        for rung, (records, own) in enumerate(zip(parts.rungs, parts.integers, strict=True)):
            if not keeps:
                latest, newest = {}, 128
            gaps = []
            for record in records:
                for unit in np.flatnonzero(record.entry == rung).tolist():
                    before = latest.get(record.kind)
                    if record.kind.split == "component" and unit:
                        predicted = int(record.precision[unit - 1])
                    else:
                        predicted = newest if before is None else int(before[unit])
                    gaps.append((int(record.precision[unit]) - predicted + 128) % 256 - 128)
                if record.units:
                    latest[record.kind], newest = record.precision, int(record.precision[0])
            writer, rest = IntegerWriter(), iter(gaps)
            for role, value in own:
                writer.write(role, next(rest) if PRECISION <= role < PRECISION + 3 else value)
            size += len(writer.finish())
        sizes[keeps] = size
    return Saving(len(parts.rungs) - 1, sizes[keeps_rungs] - sizes[not keeps_rungs])


def options_of(form: str, size: int, path: Path) -> dict[str, Any]:
    """Return the options of an encode of a form at a size."""
    if not form.startswith("paper"):
        more: dict[str, dict[str, Any]] = {"default": {}, "nmse": {"objective": "nmse"}, "rungs": {"progressive": True}}
        return {"size": size, **more[form]}
    from nola_codec import read_adapter

    bits = 1 if form == "paper-1" else 4
    vectors = 2 * len(read_adapter(path).modules)
    return {"bits": bits, "num_basis": max(1, 8 * size // bits // max(1, vectors))}


def measure(path: Path, form: str, size: str) -> dict[str, Any]:
    """Encode an adapter, and return the size of the file, and how often it has each construct and what that saves."""
    from nola_codec import encode_bytes
    from nola_codec.sizes import parse_size

    data, _ = encode_bytes(path, **options_of(form, parse_size(size), path))
    parts = Parts.of(data)
    found = {name: construct(parts) for name, construct in CONSTRUCTS.items()}
    return {
        "bytes": len(data),
        "used": {name: saving.used for name, saving in found.items() if saving.used},
        "saved": {name: saving.bytes for name, saving in found.items() if saving.bytes},
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    from nola_codec.errors import NolaError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SIZE", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    results.add_options(parser)
    given = parser.parse_args()
    found = []
    for name, path in adapters().items():
        if given.adapters is not None and name not in given.adapters:
            continue
        for form in given.forms:
            for size in given.sizes:
                settings = {"adapter": name, "form": form, "size": size}
                try:
                    found.append(results.measure(NAME, settings, partial(measure, path, form, size), anew=given.anew))
                except NolaError as error:
                    print(f"{name}, {form}, {size}: left out: {error}", file=sys.stderr)
    print(json.dumps(found, indent=1) if given.json else constructs(found))


if __name__ == "__main__":
    main()
