"""Random `.nola` files, legal but odd: every construct of the format in any mix, written from the specification alone.

    made = random_file(7)      # the same in every run
    made.data                  # the bytes of a file
    made.references            # the files that it is coded against, the first of the chain first
    made.known                 # what the reference decoder makes of all of them, as its `decode` takes it

They hold random symbols, so they test decoders, not the choices of an encoder. The reference decoder computes the
decoded SHA-256 that a file holds. `random_units.py` makes up units sections, `random_sections.py` the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nola_forge import Parts, join, pack_integers, reference, split
from random_sections import block_section, carried, drawn_kind, quantizer
from random_units import CodedKind, CodedRecord, Illegal, UnitsWriter

_ATTEMPTS = 200
_MOST_WORK = 12_000
"""Basis entries times vectors that a file may take, so that the reference decoder is done in a fraction of a second."""
_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 48, 64, 97, 128, 200, 256, 512, 576, 1024, 1100, 2048, 4096, 8192)
_SEEDS = (0, 1, 2**32, 2**63 + 5, 2**64 - 1)
_CONFIGS: tuple[Any, ...] = (
    None, {}, {"r": 4, "peft_type": "LORA", "alpha_pattern": {}}, {"ü": [1.5, None, True, {"": b"\0"}], "z": -(2**63)},
)  # fmt: skip


@dataclass
class RandomFile:
    """A file and what is known of it.

    Attributes:
        data: The bytes.
        references: The files that are decoded before it, in order.
        records: The coded records as the writer left them, at the last rung.
        known: What the reference decoder makes of the file and of its references.
        files: The number of files below that the header declares, which may be more than there are.
    """

    data: bytes
    references: tuple[bytes, ...]
    records: Sequence[CodedRecord]
    known: dict[bytes, Any]
    files: int


def random_file(number: int) -> RandomFile:
    """Return file `number`."""
    for attempt in range(_ATTEMPTS):
        try:
            return _FileWriter(np.random.default_rng([number, attempt]), number).write()
        except Illegal:
            continue
    raise AssertionError(f"no legal file {number} in {_ATTEMPTS} attempts")


class _FileWriter:
    """Writes one file, or raises `Illegal`."""

    def __init__(self, rng: np.random.Generator, number: int, depth: int = 0) -> None:
        self._rng, self._depth, self._work = rng, depth, 0
        has_reference = depth < 2 if number % 12 == 5 else depth < 3 and rng.random() < 0.2
        self._base = _FileWriter(rng, number, depth + 1).write() if has_reference else None
        self._base_sha256 = bytes(32) if self._base is None else self._choose_rung(self._base)
        self._rungs = int(rng.choice([1, 1, 1, 2, 3, 5]))
        self._quantizers = [quantizer(rng) for _ in range(int(rng.integers(1, 7)))]
        if number % 3 == 0:
            self._quantizers[0] = quantizer(rng, trellis=number // 3 % 13)  # in a few files each of them occurs

    def _choose_rung(self, base: RandomFile) -> bytes:
        hashes = [sha256 for sha256, _ in split(base.data).top["rungs"]]
        return hashes[int(self._rng.integers(len(hashes)))]

    def write(self) -> RandomFile:
        rng = self._rng
        records = self._coded_records()
        kinds = list({r.kind_number: r.kind.wire for r in records}.values())
        ids, numbers = [r.kind_number for r in records], _number_differences(records)
        carried_sections = []
        for _ in range(int(rng.choice([0, 0, 1, 3]))):
            kind, stored = carried(rng, f"raw {len(kinds)}%23")
            ids.append(len(kinds))
            kinds.append(kind)
            carried_sections.append(stored)
        for _ in range(int(rng.choice([0, 0, 0, 1, 3]))):
            ids.append(len(kinds))
            kinds.append(drawn_kind(rng, f"drawn.{len(kinds)}"))
        blocks = self._blocks(len(records))
        slope = int(rng.choice([0, 0, int(rng.integers(-8, 9)), int(rng.integers(-64, 65))]))
        units = UnitsWriter(rng, records, slope, [q["peak"] for q in self._quantizers])
        sections: list[tuple[int, bytes]] = []
        for rung in range(self._rungs):
            sections.append((3, pack_integers(units.write(rung))))
            left = iter(records)
            sections += [block_section(rng, self._quantizers, [next(left) for _ in range(n)]) for n in blocks]
            sections += carried_sections if rung == 0 else []
        streams = None if rng.random() < 0.6 else rng.choice([0, 1, 5, 2**31 - 1], len(records)).tolist()
        top = {
            "amplitude_slope": slope, "blocks": blocks, "config": _CONFIGS[int(rng.integers(len(_CONFIGS)))],
            "dialect": str(rng.choice(["peft", "", "some other dialect"])), "generator": 1,
            "kinds": kinds, "metadata": {"é": "\0"} if rng.random() < 0.2 else {}, "numbers": numbers, "records": ids,
            "rungs": [[bytes(32), {"nmse": 0.5} if rng.random() < 0.5 else {}] for _ in range(self._rungs)],
            "quantizers": [q["wire"] for q in self._quantizers], "streams": streams, "writer": "random_files",
            "seed": _SEEDS[int(rng.integers(len(_SEEDS)))],
        }  # fmt: skip
        if rng.random() < 0.2:
            top["base"] = ["some/model", str(rng.choice(["", "main"])), rng.bytes(32)]
        files = 0
        if self._base is not None:
            files = self._base.files + 1 + int(rng.integers(0, 3))
            gains = [int(rng.choice([0, 1024, int(rng.integers(32768))])) for _ in range(2)]
            top["reference"] = [self._base_sha256, files, gains, str(rng.choice(["", "before.nola"]))]
        return self._seal(Parts(top, sections), records, files)

    def _seal(self, parts: Parts, records: Sequence[CodedRecord], files: int) -> RandomFile:
        """Write the decoded SHA-256 of each rung into the header, as the reference decoder computes it."""
        base = self._base
        known = {} if base is None else dict(base.known)
        references = () if base is None else (*base.references, base.data)
        data = seal_digests(parts, known, checksum=self._rng.random() < 0.1)
        return RandomFile(data, references, records, known, files)

    def _blocks(self, records: int) -> list[int]:
        if not records:
            return []
        cuts = sorted({records, *self._rng.integers(1, records + 1, int(self._rng.integers(0, 4))).tolist()})
        return [int(n) for n in np.diff([0, *cuts])]

    def _coded_records(self) -> list[CodedRecord]:
        """Return records of random kinds: low-rank ones first, then vectors."""
        rng = self._rng
        kinds = [
            self._kind(f"{self._depth}{'abcde'[i]}%25{'.#' * int(rng.integers(3))}")
            for i in range(int(rng.integers(5)))
        ]
        drafts: list[tuple[CodedKind, tuple[int, ...], tuple[int, ...]]] = []
        for kind in kinds:
            holes = kind.wire[1].count("#")
            count = int(rng.integers(1, 5)) if holes else 1
            numbers = np.cumsum(rng.integers(1, 40, count) * (10**7 if rng.random() < 0.1 else 1)).tolist()
            if max(numbers) >= 10**9:
                raise Illegal
            rng.shuffle(numbers)
            floor = (-120,) * len(kind.lengths)
            names = [(n, *(int(v) for v in rng.integers(0, 3, holes - 1))) if holes else () for n in numbers]
            drafts += [(kind, name, floor) for name in names]
        drafts += self._records_of_reference()
        order = rng.permutation(len(drafts)) if rng.random() < 0.7 else range(len(drafts))
        drafts = sorted((drafts[i] for i in order), key=lambda draft: draft[0].wire[0])
        seen: list[CodedKind] = []
        for kind, *_ in drafts:
            if all(kind is not other for other in seen):
                seen.append(kind)
        records = []
        for kind, own, least in drafts:
            number = next(i for i, other in enumerate(seen) if other is kind)
            vectors = kind.most_units if kind.form == 0 else kind.most_units // 2
            sizes = zip(kind.lengths, kind.num_basis, strict=True)
            self._work += vectors * sum(k if kind.basis == 1 else n * k // 8 for n, k in sizes)
            if self._work > _MOST_WORK:
                raise Illegal
            records.append(CodedRecord(kind, number, own, least, self._starts(kind)))
        return records

    def _records_of_reference(self) -> list[tuple[CodedKind, tuple[int, ...], tuple[int, ...]]]:
        """Return records that the reference changes: pairs in the difference form, and vectors."""
        if self._base is None:
            return []
        _, tensors = self._base.known[self._base_sha256]
        made: dict[int, CodedKind] = {}
        drafts = []
        for record in self._base.records:
            wire = list(record.kind.wire)
            wire[1] = wire[1] if self._rng.random() < 0.9 or wire[0] == 0 else f"new {wire[1]}"
            if record.kind_number not in made:
                made[record.kind_number] = self._next_version(wire)
            kind, numbers = made[record.kind_number], record.numbers
            pieces = kind.wire[1].replace("%25", "%").split("#")
            name = pieces[0] + "".join(f"{n}{p}" for n, p in zip(numbers, pieces[1:], strict=True))
            there = tensors.get(f"{name}.exponents")
            least = [-120] * len(kind.lengths) if there is None else [max(-120, int(e) - 9) for e in there]
            drafts.append((kind, numbers, tuple(least)))
        return [draft for draft in drafts if draft[0].wire[0] == 2 or draft[0].wire[7] == 2]

    def _next_version(self, wire: list[Any]) -> CodedKind:
        """Return a kind like one of the reference, in the difference form if it is low-rank; the rank may change."""
        rank = 0
        if wire[0] == 0:
            rank = max(1, wire[10][0] + int(self._rng.integers(-1, 2)))
            wire[6], wire[7], wire[8] = 1, 2, None
            wire[9], wire[10] = [wire[9][0], rank, *wire[9][2:]], [rank, *wire[10][1:]]
        return self._complete(wire)

    def _kind(self, template: str) -> CodedKind:
        rng, basis = self._rng, int(self._rng.choice([1, 1, 1, 2, 3]))
        if rng.random() < 0.25:
            shape = rng.choice(
                [1, 2, 3, 8, 20, 48], int(rng.choice([0, 1, 1, 2, 3, 8], p=[0.1, 0.3, 0.2, 0.2, 0.1, 0.1]))
            )
            shape = [int(n) if np.prod(shape) < 5000 else 1 for n in shape]
            return self._complete([2, template, int(rng.integers(3)), basis, None, shape])
        out, columns = (int(n) for n in rng.choice(_LENGTHS, 2))
        rank, form = int(rng.integers(1, 6)), int(rng.random() < 0.25)
        rank = 1 if out * columns > 2**20 else rank
        layout = int(rng.integers(3))
        kernel = [3, 2] if layout == 1 and columns < 1000 else []
        scaling, transposed, dtype = (
            float(rng.choice([1.0, 0.5, -2.0, 1e-3])),
            int(rng.integers(2)),
            int(rng.integers(3)),
        )
        shapes = [out, rank, *(1 for _ in kernel)], [rank, columns, *kernel]
        wire = [0, template, layout, scaling, transposed, dtype, basis, form, None, *shapes]
        return self._complete(wire)

    def _complete(self, wire: list[Any]) -> CodedKind:
        """Choose the coefficients of a kind, and what the units section says of it."""
        rng = self._rng
        if wire[0] == 2:
            lengths, most = [int(np.prod(wire[5], dtype=int))], 1
            basis, form, at = wire[3], 0, 4
        else:
            rank, form, basis, at = wire[10][0], wire[7], wire[6], 8
            lengths = [wire[9][0], int(np.prod(wire[10][1:], dtype=int))]
            lengths = [n * rank for n in lengths] if form == 1 else lengths
            most = (rank, 2, 2 * rank)[form]
        num_basis = list(lengths)
        wire[at] = None  # a kind of the reference may have another number
        if rng.random() < 0.4 or basis != 1 or form == 1:
            largest = [min(n, 4096) if basis == 1 else max(1, min(2 * n + 2, 2500 // n)) for n in lengths]
            num_basis = [int(rng.integers(1, limit + 1)) for limit in largest]
            if rng.random() < 0.15:
                num_basis = [min(limit, n) for limit, n in zip(largest, lengths, strict=True)]
            wire[at] = num_basis[0] if wire[0] == 2 else list(num_basis)
        shifts = [int(s) for s in rng.integers(-30, 31, len(lengths)) * rng.choice([0, 1, 1, 34])]
        tables = [int(t) for t in rng.choice([0, 0, 1, 2], len(lengths))]
        return CodedKind(wire, lengths, num_basis, most, tables, shifts, int(rng.integers(-400, 100)))

    def _starts(self, kind: CodedKind) -> list[int]:
        rng = self._rng
        units = int(rng.integers(0, kind.most_units + 1))
        if kind.form:
            return [int(rng.integers(self._rungs))] * (kind.most_units if rng.random() < 0.85 else 0)
        return sorted(int(rung) for rung in rng.integers(0, self._rungs, units))


def seal_digests(parts: Parts, known: dict[bytes, Any], *, checksum: bool = False) -> bytes:
    """Return a file with the decoded SHA-256 of each rung set to what the reference decoder computes.

    Args:
        parts: The file in pieces. The hashes in its header are replaced.
        known: What the references decode to; what this file decodes to is added.
        checksum: True writes the header's frame with a content checksum.

    Raises:
        Refused: The reference decoder refuses the file for another reason.
    """
    module, before = reference(), dict(known)
    for rung in parts.top["rungs"]:
        rung[0] = bytes(32)
    for rung in range(len(parts.top["rungs"]) + 1):
        data = join(parts, frame_checksum=checksum)
        known.clear()
        known |= before
        try:
            module.decode(data, known)
        except module.Refused as refused:
            if refused.args[0] != "factors-checksum":
                raise
            parts.top["rungs"][rung][0] = bytes.fromhex(refused.args[1])
        else:
            return data
    raise AssertionError("the hashes did not settle")


def _number_differences(records: Sequence[CodedRecord]) -> list[int]:
    last: dict[int, tuple[int, ...]] = {}
    out: list[int] = []
    for record in records:
        before = last.get(record.kind_number, (0,) * len(record.numbers))
        out += [a - b for a, b in zip(record.numbers, before, strict=True)]
        last[record.kind_number] = record.numbers
    return out
