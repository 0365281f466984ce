"""The layers of records at each rung: the right ones, and in one look-up whatever the rung."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nola_codec.container import layers as layers_module
from nola_codec.container.layers import block_layers, coded_layers, look_up_all
from nola_codec.errors import FormatError
from nola_codec.model.records import CodedKind, CodedRecord, coded_sides

RUNGS = 12
KIND = CodedKind("a", "F32", 1, coded_sides([(5, RUNGS), (RUNGS, 7)], tables=[0, 1], shifts=[0, 3]))
ALLOCATIONS = [
    (((-5, rung % 2 - 1, rung), (40, 1, 2 * rung)), ((-9, 0, 1), (20 + rung, -1, 0), (60, 2, 5)))
    for rung in range(RUNGS)
]
"""Tables with quantizers, and with rows that have none."""


def record(units: int) -> CodedRecord:
    """A record of which unit j starts at rung j."""
    numbers = np.arange(units)
    return CodedRecord("a", KIND, 0, (0, 0), numbers, 11 * numbers, np.zeros(units, np.int64))


def expected(rung: int, side: int) -> list[tuple[int, int]]:
    """The (vector, quantizer) of each layer, one after the other."""
    found = []
    for unit in range(rung + 1):
        for number in range(rung + 1) if unit == rung else [rung]:
            wanted = 11 * unit + KIND.sides[side].shift
            rows = [row for row in ALLOCATIONS[number][side] if row[0] <= wanted]
            if rows[-1][1] >= 0:
                found.append((unit, rows[-1][1]))
    return found


@pytest.mark.parametrize("rung", range(RUNGS))
def test_layers_of_units_that_start_late(rung: int) -> None:
    for side in (0, 1):
        for units in (rung + 1, RUNGS):  # the units that start later have no layer yet
            made = coded_layers(record(units), ALLOCATIONS, rung, side)
            assert list(zip(made.vectors.tolist(), made.quantizers.tolist(), strict=True)) == expected(rung, side)


def test_a_block_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def count(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return look_up_all(*arguments)

    monkeypatch.setattr(layers_module, "look_up_all", count)
    for rung in range(RUNGS):
        block_layers([record(rung + 1), record(rung + 1)], ALLOCATIONS, rung)
    assert calls == RUNGS


def test_a_precision_below_its_own_table_is_refused() -> None:
    """Also if the table before it has rows below."""
    tables = [((-5, 0, 0),), ((10, 0, 0),)]
    assert look_up_all(tables, np.array([0, 1]), np.array([0, 10]))[1].tolist() == [0, 0]
    with pytest.raises(FormatError, match="no quantizer for precision 9") as caught:
        look_up_all(tables, np.array([0, 1]), np.array([0, 9]))
    assert caught.value.code == "units"
