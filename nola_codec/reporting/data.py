"""`FileReport`: every figure that a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nola_codec.api.expecting import expect_of, find_difference, find_outlook
from nola_codec.api.inspecting import FileFacts
from nola_codec.container.prelude import SIZE
from nola_codec.encoder.expectation import Expectation
from nola_codec.rendering import render_error, render_verdict
from nola_codec.reporting.coefficient_costs import CoefficientCosts
from nola_codec.reporting.curve import Curve
from nola_codec.reporting.evaluation import TaskResults
from nola_codec.reporting.losses import Losses
from nola_codec.reporting.places import Grid, make_grid


@dataclass(frozen=True)
class FileReport:
    """Every figure that a report of a file shows.

    Attributes:
        facts: The result of `inspect`.
        expected: The share of an adapter's gain that files with this effective error kept, by task; None if the
            measured tasks say nothing about the file, which `reason` explains.
        is_beyond: True if no file with as much error was measured on one of the tasks.
        verdict: The size and the expectation in a sentence.
        reason: What the expectation rests on, in a sentence.
        bytes_by_part: The bytes of the prelude, the header, the units, the coefficients and the carried tensors.
        share_by_part: The same as shares of the file.
        grid: ``bytes``, ``coefficients`` and ``ideal_bits`` of the coded records, by module type and layer, and the
            rate ``bits_each``, the stored bits of a coefficient. The bytes of a block are divided among its records in
            proportion to their code lengths.
        costs: What the coefficients cost.
        losses: What was kept of the original adapter; None if it was not given.
        curve: Size against error; None if no sweep was asked for.
        task: What an evaluation found; None if none was given.
    """

    facts: FileFacts
    expected: Mapping[str, float] | None
    is_beyond: bool
    verdict: str
    reason: str
    bytes_by_part: Mapping[str, int]
    share_by_part: Mapping[str, float]
    grid: Grid
    costs: CoefficientCosts
    losses: Losses | None = None
    curve: Curve | None = None
    task: TaskResults | None = None

    @property
    def expectation(self) -> Expectation | None:
        """What to expect of the file, as an `EncodeReport` has it."""
        return None if self.expected is None else Expectation(self.expected, self.is_beyond)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON; of the tensors of `facts` only their number."""
        return {**asdict(self), "facts": {**self.facts.to_dict(), "tensors": len(self.facts.tensors)}}

    def __str__(self) -> str:
        return f"{self.verdict}\n{self.reason}"


def make_report(
    facts: FileFacts,
    costs: CoefficientCosts,
    losses: Losses | None = None,
    curve: Curve | None = None,
    task: TaskResults | None = None,
) -> FileReport:
    """Put together what was found about a file."""
    expected = expect_of(facts)
    parts = dict(facts.bytes_by_part)
    parts = {"prelude": SIZE, **parts, "header": parts["header"] - SIZE}
    grid = make_grid(
        (
            (each.name, {"bytes": each.stored_bytes, "coefficients": each.coefficients, "ideal_bits": each.ideal_bits})
            for each in costs.records
        ),
        {"bits_each": lambda sums: 8 * sums["bytes"] / max(sums["coefficients"], 1)},
    )
    return FileReport(
        facts=facts,
        expected=None if expected is None else dict(expected.kept),
        is_beyond=expected is not None and expected.is_beyond,
        verdict=render_verdict(facts.bytes, facts.ratio, find_outlook(facts)),
        reason=find_difference(facts) if expected is None else _reason(facts, expected),
        bytes_by_part=parts,
        share_by_part={part: size / facts.bytes for part, size in parts.items()},
        grid=grid,
        costs=costs,
        losses=losses,
        curve=curve,
        task=task,
    )


def _reason(facts: FileFacts, expected: Expectation) -> str:
    """Return the sentence that says what the expectation rests on."""
    error = f"The effective error of the file is {render_error(facts.measured['effective_error'])}"
    if expected.is_beyond:
        return f"{error}, and no file with as much error was measured on all tasks."
    said = f"with this error were measured on these tasks ({expected.words}). Your task may keep more or less."
    return f"{error}, and files {said}"
