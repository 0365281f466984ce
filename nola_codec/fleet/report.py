"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nola_codec.fleet.items import Verb
from nola_codec.fleet.rows import Row
from nola_codec.rendering import render_size


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
        return "\n".join(lines)

    def _rate(self) -> str:
        worked = self.done + len(self.failed)
        return f" ({worked / self.seconds:.2f} a second)" if worked and self.seconds > 0 else ""


class FleetInterrupted(KeyboardInterrupt):
    """A run that was stopped by Ctrl-C. What was finished is in the manifest; the same call goes on from there.

    Attributes:
        report: The report of what was done.
    """

    def __init__(self, report: FleetReport) -> None:
        super().__init__(str(report))
        self.report = report
