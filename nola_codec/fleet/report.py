"""What a run returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nola_codec.fleet.items import Verb
from nola_codec.fleet.rows import Row
from nola_codec.rendering import render_size

HIGH_ERROR = 0.25
"""The effective error, and the NMSE of files that have none, over which a file is counted as one of a large loss."""


@dataclass(frozen=True)
class FleetReport:
    """The report of a run over many sources.

    Attributes:
        verb: ``encode``, ``decode`` or ``verify``.
        total: The sources of the run.
        done: The sources that this run worked on with success.
        unchanged: The sources whose outputs an earlier run had made from the same content with the same options.
        failed: The rows of the sources that failed, by name.
        unfinished: The sources that were not finished, because the run was stopped.
        retries: How often a worker died and its item was started again.
        source_bytes: The bytes of all sources whose outputs are there.
        bytes: The bytes of these outputs.
        seconds: The wall time of the run.
        manifest: The file with a row for each output; None if the run wrote none.
        warnings: How many of the outputs that are there have something to know about, by what it is, as in
            `count_warnings`. The notes of their rows say more.
    """

    verb: Verb
    total: int
    done: int
    unchanged: int
    failed: tuple[Row, ...]
    unfinished: int
    retries: int
    source_bytes: int
    bytes: int
    seconds: float
    manifest: Path | None
    warnings: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """True if every source was worked on with success, now or in an earlier run."""
        return not self.failed and not self.unfinished

    def __str__(self) -> str:
        verbs = {"encode": "encoded", "decode": "decoded", "verify": "verified"}
        parts = [f"{self.done} {verbs[self.verb]}"]
        if self.unchanged or self.verb != "verify":
            parts.append(f"{self.unchanged} unchanged")
        parts.append(f"{len(self.failed)} failed")
        if self.unfinished:
            parts.append(f"{self.unfinished} not finished")
        lines = [f"{', '.join(parts)} of {self.total}, in {self.seconds:.1f} s{self._rate()}"]
        if self.verb == "encode" and self.bytes:
            ratio = self.source_bytes / self.bytes
            sizes = f"{render_size(self.source_bytes)} to {render_size(self.bytes)}"
            lines.append(f"{sizes}, {ratio:.1f}x smaller than the sources")
        if self.retries:
            lines.append(f"workers died and were replaced: {self.retries}")
        if self.manifest is not None:
            lines.append(f"manifest  {self.manifest}")
        if self.warnings:
            counts = ", ".join(f"{count} {what}" for what, count in self.warnings.items())
            lines.append(f"warnings  {counts}; the column notes of the manifest says more")
        return "\n".join(lines)

    def _rate(self) -> str:
        worked = self.done + len(self.failed)
        return f" ({worked / self.seconds:.2f} a second)" if worked and self.seconds > 0 else ""


def count_warnings(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows have something that a user should know, by what it is, e.g. ``with an assumed scaling``.

    A row counts once for each of its warnings. One that has notes and none of the named warnings is ``with notes``.
    """
    counts: dict[str, int] = {}
    for row in rows:
        named = list(_named_warnings(row))
        for what in named or ["with notes"] * bool(row.notes):
            counts[what] = counts.get(what, 0) + 1
    return counts


def _named_warnings(row: Row) -> Iterable[str]:
    if row.scale_origin == "assumed":
        yield "with an assumed scaling"
    if row.effective_error is not None and row.effective_error > HIGH_ERROR:
        yield f"with an effective error over {HIGH_ERROR}"
    elif row.effective_error is None and row.nmse is not None and row.nmse > HIGH_ERROR:
        yield f"with an NMSE over {HIGH_ERROR}"
    if row.ratio is not None and row.ratio < 1:
        yield "larger than fp16"


class FleetInterrupted(KeyboardInterrupt):
    """A run that was stopped by Ctrl-C. What was finished is in the manifest; the same call goes on from there.

    Attributes:
        report: The report of what was done.
    """

    def __init__(self, report: FleetReport) -> None:
        super().__init__(str(report))
        self.report = report
