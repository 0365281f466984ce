"""Say what to expect of a file, from the tasks on which files of the same effective error were measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nola_codec.rendering import render_size

EVIDENCE: Mapping[str, tuple[tuple[float, float], ...]] = {
    "E2E NLG, SmolLM2-135M": (
        (0.0022, 0.999), (0.0201, 1.0), (0.0466, 0.992), (0.0856, 0.982), (0.199, 0.968), (0.2876, 0.96),
        (0.4128, 0.924), (0.5469, 0.853),
    ),
    "Banking77, MiniLM": ((0.0077, 0.994), (0.0214, 0.963), (0.0902, 0.933), (0.259, 0.947), (0.4421, 0.884)),
}  # fmt: skip
"""For each measured task: (effective error of a file, share of the adapter's gain that it kept), files from the weights
alone. docs/benchmarks.md has both tables, and the programs that print them."""

TAUGHT: Mapping[str, tuple[int, float, float]] = {
    # table: self_taught.gain
    "E2E NLG, SmolLM2-135M, sixteen prompts": (5, 0.848, 0.958),
    # end
    # table: self_taught_banking77.gain
    "Banking77, MiniLM, texts without labels": (5, 0.793, 0.954),
    # end
}
"""For each measured task and what was given: the size of a file in KB, and the shares of the adapter's gain that such
files kept from the weights alone, and trained with `--fit task --data self`; means over the seeds that both have.
`tools/experiments/write_tables.py` writes the lines from docs/experiments/results."""

MOST_MEASURED_ERROR = min(points[-1][0] for points in EVIDENCE.values())
"""The greatest effective error of which files were measured on every task."""

_VERDICTS = ((0.98, "no visible loss"), (0.93, "small loss"), (0.8, "clear loss"), (0.0, "large loss"))
"""The least share of the gain that the worse of the tasks must have kept, and the words for it."""


UNKNOWN_OUTLOOK = "what it keeps of the task is not known"
"""The second half of the verdict of a file that the measured tasks say nothing about."""


@dataclass(frozen=True)
class Expectation:
    """What was measured at one effective error.

    Attributes:
        kept: The share of the adapter's gain that files of this error kept, by task; linear between two measured files.
        is_beyond: True if no file with as much error was measured on one of the tasks.
    """

    kept: Mapping[str, float]
    is_beyond: bool = False

    @property
    def words(self) -> str:
        """``no visible loss`` and so on, by the task that kept least."""
        if self.is_beyond:
            return "large loss"
        return next(words for least, words in _VERDICTS if min(self.kept.values()) >= least)

    @property
    def range(self) -> str:
        """``93% to 97%``."""
        if self.is_beyond:
            return "not measured"
        low, high = (f"{share:.0%}" for share in (min(self.kept.values()), max(self.kept.values())))
        return low if low == high else f"{low} to {high}"

    @property
    def outlook(self) -> str:
        """``expect 93% to 97% of the adapter's gain``: the half of a verdict that speaks of the task."""
        if self.is_beyond:
            return "expect a large loss, more than was measured"
        return f"expect {self.range} of the adapter's gain"

    @property
    def basis(self) -> str:
        """``small loss, as 2 text tasks had with files of this error``: what the expectation rests on."""
        if self.is_beyond:
            return f"{self.words}: no file with as much error was measured on all tasks"
        return f"{self.words}, as {len(self.kept)} text tasks had with files of this error"


def expect_from(effective_error: float | None) -> Expectation | None:
    """Return what to expect of a file with an effective error, or None without one.

    >>> print(expect_from(0.001).words)
    no visible loss
    """
    if effective_error is None:
        return None
    shares = {}
    for task, points in EVIDENCE.items():
        shares[task] = _interpolate(effective_error, points)
    return Expectation(shares, effective_error > MOST_MEASURED_ERROR)


def _interpolate(error: float, points: Sequence[tuple[float, float]]) -> float:
    """Return the share at an error: linear between two points, that of the nearest point outside of all."""
    above = bisect_left(points, (error, 0.0))
    if above in (0, len(points)):
        return points[min(above, len(points) - 1)][1]
    (left, low), (right, high) = points[above - 1 : above + 1]
    return low + (high - low) * (error - left) / (right - left)


def render_lost_energy(nmse: float) -> str:
    """Return the second half of the verdict of a file of which only the NMSE says something."""
    return f"the weights lose {nmse:.1%} of their energy (NMSE)"


def render_taught_gains() -> str:
    """Return what `--data self` gained where it was measured."""
    return "; ".join(
        f"{taught:.1%} instead of {alone:.1%} of the gain in {size} KB ({task})"
        for task, (size, alone, taught) in TAUGHT.items()
    )


def advise_size(sizes: Mapping[int, Expectation]) -> str:
    """Return the sentence that says which of some files to take, by their size in bytes; empty without files."""
    for words in ("no visible loss", "small loss"):
        fitting = [size for size, expected in sizes.items() if expected.words == words]
        if fitting:
            best = min(fitting)
            hint = "; smaller ones may do" if best == min(sizes) else ""
            return f"take {render_size(best)}, the smallest with {words}{hint}"
    return f"take more than {render_size(max(sizes))}, or train the file (--fit task)" if sizes else ""
