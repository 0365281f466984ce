"""`FileReport`: every figure that a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nola_codec.adapters import find_dialect
from nola_codec.adapters.image_models import describes_image_model
from nola_codec.adapters.registry import UNKNOWN
from nola_codec.api.inspecting import FileFacts
from nola_codec.container.prelude import SIZE
from nola_codec.encoder.expectation import Expectation, expect_from
from nola_codec.rendering import render_error, render_ratio, render_size
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
    unlike = _unlike_measured(facts)
    expected = None if unlike else expect_from(facts.measured["effective_error"])
    parts = dict(facts.bytes_by_part)
    parts = {"prelude": SIZE, **parts, "header": parts["header"] - SIZE}
    grid = make_grid(
        (
            (each.name, {"bytes": each.stored_bytes, "coefficients": each.coefficients, "ideal_bits": each.ideal_bits})
            for each in costs.records
        ),
        {"bits_each": lambda sums: 8 * sums["bytes"] / max(sums["coefficients"], 1)},
    )
    size = f"{render_size(facts.bytes)}, {render_ratio(facts.ratio)} than fp16"
    return FileReport(
        facts=facts,
        expected=None if expected is None else dict(expected.kept),
        is_beyond=expected is not None and expected.is_beyond,
        verdict=f"{size}; {_verdict(expected)}",
        reason=unlike if expected is None else _reason(facts, expected),
        bytes_by_part=parts,
        share_by_part={part: size / facts.bytes for part, size in parts.items()},
        grid=grid,
        costs=costs,
        losses=losses,
        curve=curve,
        task=task,
    )


def _verdict(expected: Expectation | None) -> str:
    return "what it keeps of the task is not known" if expected is None else f"expect {expected}"


def _unlike_measured(facts: FileFacts) -> str:
    """Return why the measured tasks say nothing about a file, as a sentence; empty if they do.

    The header does not tell whether an importance weighed the error; files with one are taken like all others.
    """
    if "effective_error" not in facts.measured:
        nmse = facts.measured.get("nmse")
        end = "" if nmse is None else f" Its NMSE is {render_error(nmse)}."
        return f"The file says no effective error, to which the measured tasks are compared.{end}"
    if facts.reference is not None:
        return "The file holds the difference to an earlier version, and no such file was measured on a task."
    dialect = find_dialect(facts.dialect) or UNKNOWN
    names = [tensor.name for tensor in facts.tensors if tensor.record == "lowrank"]
    if not names or dialect.holds_whole_weights:
        return "The file is no LoRA, and only files of LoRAs were measured on tasks."
    if describes_image_model(dialect, facts.config, names):
        return "The adapter is one of an image model, and the tasks that were measured are of text models."
    return ""


def _reason(facts: FileFacts, expected: Expectation) -> str:
    """Return the sentence that says what the expectation rests on."""
    error = f"The effective error of the file is {render_error(facts.measured['effective_error'])}"
    if expected.is_beyond:
        return f"{error}, and no file with as much error was measured on all tasks."
    return f"{error}, and files with this error were measured on these tasks. Your task may keep more or less."
