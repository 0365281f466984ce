"""Measure the errors of deltas that several coded records make together, on the delta and not on its parts.

Each record of such a delta gets an equal share of its error and of its energy, so that sums over records are sums over
deltas. Deltas that have a record in common are measured as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nola_codec.adapters import CodingRules, dialect_of
from nola_codec.adapters.adapter_delta import CombinedDelta, Values, part_values, side_product
from nola_codec.array_types import Float64Array
from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.model.adapter import Adapter, Codable


@dataclass(frozen=True)
class JoinedDelta(CombinedDelta):
    """Deltas that have parts in common, as one: its squared distances are the sums of theirs.

    Attributes:
        name: The name of the first delta.
        parts: The names of the parts of all of them, each once.
        scale: 1, since each delta has its own scale.
        deltas: The deltas.
    """

    deltas: tuple[CombinedDelta, ...]

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the number of elements of all deltas."""
        return (sum(math.prod(delta.shape(shapes)) for delta in self.deltas),)

    def combine(self, values: Values) -> Float64Array:
        """Return all deltas as one flat array."""
        return np.concatenate([delta.combine(values).reshape(-1) for delta in self.deltas])

    def squared_distance(self, values: Values, others: Values | None) -> float:
        """Return the sum of the squared norms, as in `CombinedDelta`."""
        return sum(delta.squared_distance(values, others) for delta in self.deltas)


@dataclass(frozen=True)
class SharedDelta:
    """A delta and the records that make it.

    Attributes:
        composite: The rule that combines the parts into the delta.
        members: The numbers of the records, in the order of the composite's parts.
        items: The tensors of these records before coding.
    """

    composite: CombinedDelta
    members: tuple[int, ...]
    items: tuple[Codable, ...]

    def original_parts(self) -> dict[str, npt.NDArray[np.floating]]:
        """Return the parts before coding, by name."""
        values = part_values(self.items)
        return {name: value() for name, value in values.items()}

    def energy(self) -> float:
        """Return ||delta||_F^2 before coding."""
        return self.composite.squared_distance(self.original_parts(), None)

    def squared_error(self, decoded: Mapping[str, npt.NDArray[np.floating]]) -> float:
        """Return ||delta - decoded delta||_F^2 for decoded parts, given by name."""
        return self.composite.squared_distance(decoded, self.original_parts())


@dataclass(frozen=True)
class SharedDeltas:
    """All deltas of an adapter that several records make.

    Attributes:
        by_record: The measured delta of each record that is a part of one, by the number of the record.
        estimated: For each delta that is not measured, the numbers of its records. The sum of their errors estimates
            the error of the delta.
        rules: The rules of the adapter's dialect.
        notes: Sentences for the report, which say how the errors are measured.
    """

    by_record: Mapping[int, SharedDelta]
    estimated: tuple[tuple[int, ...], ...]
    rules: CodingRules
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """True if no delta of several records is measured."""
        return not self.by_record

    def shared_energies(self, energies: Float64Array) -> Float64Array:
        """Return the energy that each record has in its delta, float64 (records,).

        Args:
            energies: float64 (records,): the energies by the records' own gains. That of a part stands for the energy
                of the whole delta.
        """
        shares = energies.copy()
        for members in self.estimated:
            shares[list(members)] /= len(members)
        for delta in {each.members: each for each in self.by_record.values()}.values():
            members = delta.members
            if self.rules.gains_are_estimates:
                shares[list(members)] = delta.energy()
            shares[list(members)] /= len(members)
        return shares


def find_shared_deltas(adapter: Adapter, items: Sequence[Codable]) -> SharedDeltas:
    """Find the deltas that several records make.

    Args:
        adapter: The adapter as read.
        items: The tensors of its records, in order.
    """
    adapter = replace(adapter, vectors=tuple(vector for vector in adapter.vectors if not vector.is_carried))
    dialect = dialect_of(adapter)
    rules, composites = dialect.coding_rules(adapter), dialect.combined_deltas(adapter)
    coded = [composite for composite in composites if composite.parts]
    measured = [composite for composite in coded if composite.is_measurable]
    numbers = {item.name: number for number, item in enumerate(items)}
    deltas = []
    for composite in _join_deltas(measured):
        members = tuple(numbers[part] for part in composite.parts)
        deltas.append(SharedDelta(composite, members, tuple(items[number] for number in members)))
    estimated: dict[str, list[int]] = {}
    if rules.gains_are_estimates:
        measured_parts = {part for composite in measured for part in composite.parts}
        for vector in adapter.vectors:
            if vector.name not in measured_parts:
                estimated.setdefault(vector.name.rpartition(".")[0], []).append(numbers[vector.name])
    return SharedDeltas(
        by_record={number: delta for delta in deltas for number in delta.members},
        estimated=tuple(tuple(group) for group in estimated.values()),
        rules=rules,
        notes=_notes(rules, bool(adapter.vectors) and not composites, len(measured), len(coded)),
    )


def _join_deltas(deltas: Sequence[CombinedDelta]) -> list[CombinedDelta]:
    """Join deltas that have a part in common, such as a vector that several layers share."""
    groups: list[tuple[set[str], list[CombinedDelta]]] = []
    first_of: dict[str, int] = {}
    for delta in deltas:
        found = sorted({first_of[part] for part in delta.parts if part in first_of})
        number = found[0] if found else len(groups)
        if not found:
            groups.append((set(), []))
        for other in found[1:]:  # the delta connects groups that were apart so far
            groups[number][0].update(groups[other][0])
            groups[number][1].extend(groups[other][1])
            groups[other] = (set(), [])
        groups[number][0].update(delta.parts)
        groups[number][1].append(delta)
        first_of.update(dict.fromkeys(groups[number][0] if len(found) > 1 else delta.parts, number))
    joined: list[CombinedDelta] = []
    for _, members in groups:
        if len(members) == 1:
            joined += members
        elif members:
            parts = tuple(dict.fromkeys(part for delta in members for part in delta.parts))
            joined.append(JoinedDelta(members[0].name, parts, 1.0, tuple(members)))
    return joined


def _notes(rules: CodingRules, unknown: bool, measured: int, coded: int) -> tuple[str, ...]:
    """Return the sentences that say how the errors of deltas with estimated gains are measured."""
    if not rules.gains_are_estimates:
        return ()
    if unknown:
        return (rules.unknown_note,)
    if measured < coded:
        return (rules.estimated_note.format(estimated=coded - measured, coded=coded),)
    return (rules.measured_note,) if coded else ()


def decoded_part(decoded: DecodedRecord) -> Float64Array:
    """Return a decoded record as a part of a delta, in float64: the product of its factors, or its values."""
    return np.asarray(side_product(decoded.float32(NUMPY)), np.float64)
