"""The programs that hold nola-codec against limits, and that fit how cost grows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import limits
import measuring
import numpy as np
import pytest
import scaling
from page_tables import scaling as tables  # `scaling` puts its folder on the path


def test_a_ratio_is_taken_against_the_limit_and_a_number_against_the_goal() -> None:
    limit = {"name": "copy", "seconds": 0.5}
    slower = limits.Row("decode", {"seconds": 2.0, "memory": 3e6}, 2, limit)
    assert (slower.value, slower.is_met) == (4.0, False)
    faster = limits.Row("encode", {"seconds": 0.01}, 30, limit, faster=True)
    assert (faster.value, faster.is_met) == (50.0, True)
    number = limits.Row("import", {"seconds": 1.0, "value": 20.0}, 20, unit="ms", peers={"mine": {"failed": "absent"}})
    assert (number.value, number.is_met) == (20.0, True)
    lines = limits.lines([row.to_dict() for row in (slower, faster, number)]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "decode", "2.000 s, 3 MB", "copy: 0.500 s", "4.00x", "2x", "no", "",
    ]  # fmt: skip
    assert "50.00x faster" in lines[3]
    assert "mine: not run: absent" in lines[4]
    assert json.loads(json.dumps(number.to_dict()))["met"] is True


def test_the_median_run_counts_with_the_greatest_memory() -> None:
    runs: list[dict[str, Any]] = [
        {"seconds": 3.0, "memory": 1}, {"seconds": 1.0, "memory": 9}, {"seconds": 2.0, "memory": 2},
    ]  # fmt: skip
    assert limits._median(runs) == {"seconds": 2.0, "memory": 9}
    assert limits._median([*runs, {"failed": "no memory"}]) == {"failed": "no memory"}


def test_a_call_is_measured_by_its_best_time_and_its_first_memory() -> None:
    kept: list[object] = []
    figures = measuring.measure_call(lambda: kept.append(np.ones(1 << 22) if len(kept) < 1 else None), 60, 3)
    assert figures["calls"] == len(kept) == 3
    assert figures["memory"] >= 0
    assert figures["seconds"] >= 0


def test_a_command_is_measured_or_says_why_it_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    figures = measuring.measure_command([sys.executable, "-c", "print(2 * 3)"], tmp_path)
    assert figures["output"] == "6\n"
    assert figures["seconds"] > 0
    failed = measuring.measure_command([sys.executable, "-c", "raise SystemExit('no such file')"])
    assert failed == {"failed": "no such file"}


def points(*costs: float) -> list[dict[str, Any]]:
    made = {"parameters": 1, "encode": {"memory": 1e6}, "decode": {"cpu": 1.0, "memory": 0}}
    return [
        {**made, "x": 10**number, "encode": {"cpu": cost, "memory": 1e6}} for number, cost in enumerate(costs, 1)
    ]  # fmt: skip


def test_the_exponent_of_a_step_is_that_of_the_power_of_x() -> None:
    found = tables.exponents(points(1.0, 10.0, 1000.0), lambda point: float(point["encode"]["cpu"]))
    assert found[0] is None
    assert found[1:] == pytest.approx([1.0, 2.0])
    table = tables.axis_table("width", points(1.0, 10.0))
    assert [cell.strip() for cell in table.splitlines()[3].split("|")[1:-1]] == [
        "100", "1", "10,000.0", "1.00", "1.0", "1,000.0", "0.00", "0.0",
    ]  # fmt: skip


def test_a_point_is_encoded_and_decoded_in_processes_of_their_own() -> None:
    figures = scaling.measure("width", scaling.Point(64, modules=1, width=64, rank=2))
    assert figures["parameters"] == 256
    assert figures["bytes"] > 0
    assert figures["encode"]["seconds"] > 0
    assert figures["decode"]["seconds"] > 0
