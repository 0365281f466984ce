"""Kinds and records: sides of pairs and of vectors, units, scale codes."""

from __future__ import annotations

import numpy as np
import pytest

from nola_codec.model.adapter import Codable, LoraModule, VectorTensor
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides

CONV = [(64, 8, 1, 1), (8, 32, 3, 3)]
VECTOR = [(7, 3, 2)]


def kind(shapes: list[tuple[int, ...]], split: Split = "component") -> CodedKind:
    return CodedKind("x", "F32", 1, coded_sides(shapes, split), split)


def test_a_pair_by_component() -> None:
    pair = kind(CONV)
    assert (pair.is_pair, pair.rank, pair.product_shape) == (True, 8, (64, 288))
    assert [side.shape for side in pair.sides] == [(64, 8), (8, 288)]
    assert pair.stored_shapes == tuple(CONV)
    assert pair.vector_lengths == pair.num_basis == (64, 288)
    assert pair.elements == 8 * (64 + 288)
    assert pair.most_units == 8
    assert [pair.vectors(units) for units in (0, 3)] == [0, 3]
    assert [pair.side_units(side, 3) for side in (0, 1)] == [range(3), range(3)]


def test_a_pair_by_factor() -> None:
    pair = kind(CONV, "factor")
    assert pair.vector_lengths == pair.num_basis == (64 * 8, 8 * 288)
    assert pair.most_units == 2
    assert [pair.vectors(units) for units in (0, 2)] == [0, 1]
    assert [pair.side_units(side, 2) for side in (0, 1)] == [range(1), range(1, 2)]


def test_a_vector_is_one_side_of_one_unit() -> None:
    vector = kind(VECTOR)
    assert (vector.is_pair, vector.rank, vector.most_units) == (False, 1, 1)
    assert [side.shape for side in vector.sides] == [(7, 3, 2)]
    assert vector.vector_lengths == vector.num_basis == (42,)
    assert vector.elements == 42
    assert vector.vectors(1) == 1
    assert vector.side_units(0, 1) == range(1)


def test_a_scalar_is_a_vector_of_one_number() -> None:
    assert kind([()]).vector_lengths == (1,)


def test_coefficients_tables_and_shifts_of_each_side() -> None:
    sides = coded_sides(CONV, "factor", [5, 6], [3, 1], [-2, 4])
    assert [(side.num_basis, side.table, side.shift) for side in sides] == [(5, 3, -2), (6, 1, 4)]
    assert [(side.table, side.shift) for side in coded_sides(CONV)] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [(kind(CONV), [[-3, 7], [-3, 7]]), (kind(CONV, "factor"), [[-3], [7]]), (kind(VECTOR), [[-6, 14]])],
)
def test_scale_codes_are_thirty_seconds_of_an_octave(own: CodedKind, wanted: list[list[int]]) -> None:
    amplitude = np.array([-3, 7])
    record = CodedRecord("x", own, 0, (0,) * len(own.sides), amplitude * 0, amplitude * 0, amplitude)
    assert [record.scale_codes(side).tolist() for side in range(len(own.sides))] == wanted


def test_pairs_and_tensors_share_one_interface() -> None:
    b, a = np.ones((6, 2), np.float32), np.ones((2, 12), np.float32)
    items: list[Codable] = [
        LoraModule("m", a, b, (2, 3, 2, 2), (6, 2, 1, 1), -0.5, layout="conv"),
        LoraModule("part", a, b, a.shape, b.shape, 1.0, gain=3.0),
        VectorTensor("v", np.ones((4, 5), np.float32), gain=0.25),
    ]
    assert [item.is_pair for item in items] == [True, True, False]
    assert [item.rank for item in items] == [2, 2, 1]
    assert [item.vector_lengths for item in items] == [(6, 12), (6, 12), (20,)]
    assert [item.error_gain for item in items] == [0.5, 3.0, 0.25]
    assert [item.is_whole_delta for item in items] == [True, False, False]
    assert items[0].stored_shapes == ((6, 2, 1, 1), (2, 3, 2, 2))
    assert [[side.shape for side in item.sides] for item in items] == [[(6, 2), (2, 12)]] * 2 + [[(4, 5)]]
    assert [kind(list(item.stored_shapes)).vector_lengths for item in items] == [i.vector_lengths for i in items]
