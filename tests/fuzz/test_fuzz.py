"""What fuzzing found stays mended, and each target of `tools/fuzz` still reads what it is given."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
sys.path.append(str(ROOT / "tools" / "fuzz"))

from targets import all_targets  # noqa: E402
from watching import Watch  # noqa: E402

TARGETS = all_targets()
FINDINGS = sorted(CORPUS.glob("*/*.bin"))
STEPS = 40
QUICK = [name for name in TARGETS if not name.startswith(("dialect", "description", "encoders", "arguments"))]
"""Targets whose seeds are made fast."""


def test_every_finding_is_of_a_target() -> None:
    assert FINDINGS
    assert {path.parent.name for path in FINDINGS} <= {name.replace(" ", "-") for name in TARGETS}


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_finding_of_before_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    target = next(each for name, each in TARGETS.items() if name.replace(" ", "-") == path.parent.name)
    watch = Watch(target, tmp_path)
    watch.run(path.read_bytes())
    assert list(watch.findings.values()) == []


@pytest.mark.parametrize("name", QUICK)
def test_targets_read_and_refuse(name: str, tmp_path: Path) -> None:
    watch = Watch(TARGETS[name], tmp_path)
    seeds = TARGETS[name].seeds()
    watch.start(seeds)
    assert watch.outcomes["read"] >= 0.9 * len(seeds) > 0  # one or two ask for more than the limits of these runs
    rng = random.Random(1)
    for _ in range(STEPS):
        watch.step(rng)
    assert list(watch.findings.values()) == []
    assert watch.outcomes.total() - watch.outcomes["read"] > 5
