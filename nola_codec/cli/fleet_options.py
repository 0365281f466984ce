"""Options of `encode-many`, `decode-many` and `verify-many`, and what they do with a report."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.messages import NEXT_STEPS, echo, one_line
from nola_codec.cli.output import OUTPUT, force_option, json_option, print_json, quiet_option

if TYPE_CHECKING:
    from nola_codec.fleet.report import FleetReport
    from nola_codec.fleet.rows import Row
    from nola_codec.fleet.watcher import Watcher

RUN = "Run"
_LISTED = 50
_INTERRUPTED = 130

MANIFEST_OPTION = option("--manifest", group="Sources", type=PATH, metavar="FILE",
                         help="A .jsonl, .csv or .parquet file that lists sources in the column source. Columns "
                              "output and those named as options, with _ for -, may be there too.")  # fmt: skip
CHECK_OPTION = option("--check", group=RUN, is_flag=True,
                      help="Hash all files again, whatever their sizes and times say.")  # fmt: skip
MANIFEST_FORMAT_OPTION = option("--manifest-format", group=OUTPUT, type=click.Choice(["parquet", "jsonl"]),
                                help="Type of the manifest of results  [default: parquet if pyarrow is "
                                     "installed].")  # fmt: skip
RUN_OPTIONS = (
    option("--engine", group=RUN, type=click.Choice(["local", "ray"]), default="local", show_default=True,
           help="Processes of this machine, or tasks of a Ray cluster."),
    option("--workers", group=RUN, type=click.IntRange(min=1),
           help="Sources that are worked on at the same time  [default: one for each processor]."),
    option("--memory", group=RUN, metavar="SIZE",
           help="Memory that all workers may take together, e.g. 16GB  [default: 80% of what is free]."),
    option("--retries", group=RUN, type=click.IntRange(min=0), default=1, show_default=True,
           help="How often a source is tried again after its worker process died."),
    option("--ray-address", group=RUN, metavar="ADDRESS",
           help="Ray cluster to use  [default: $RAY_ADDRESS, else a new one on this machine]."),
)  # fmt: skip
FILES_OPTIONS = (quiet_option, json_option)
OUTPUTS_OPTIONS = (force_option, *FILES_OPTIONS)


@dataclass(frozen=True)
class RunRequest:
    """How the command runs and reports; the values of `RUN_OPTIONS` and `FILES_OPTIONS`."""

    engine: str
    workers: int | None
    memory: str | None
    retries: int
    ray_address: str | None
    manifest_format: str | None
    quiet: bool
    as_json: bool

    def run(self, function: Callable[..., FleetReport], *arguments: Any, noun: str, **options: Any) -> int:
        """Call one of the functions of `nola_codec.fleet.many`, print its report, and return the exit status."""
        from nola_codec.cli.progress import show_items
        from nola_codec.fleet.report import FleetInterrupted

        settings: dict[str, Any] = {
            "engine": self.engine, "workers": self.workers, "memory": self.memory, "retries": self.retries,
            "ray_address": self.ray_address, "manifest_format": self.manifest_format,
        }  # fmt: skip
        try:
            with contextlib.ExitStack() as stack:
                # Ray tells of workers that died on standard output, where only results belong.
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
                stack.enter_context(_terminated_like_interrupted())
                watch: Watcher = stack.enter_context(show_items(self.quiet, 0, noun))
                report = function(*arguments, watch=watch, **settings, **options)
        except FleetInterrupted as stopped:
            self._print(stopped.report, is_interrupted=True)
            return _INTERRUPTED
        self._print(report, is_interrupted=False)
        return 0 if report.is_good else 1

    def _print(self, report: FleetReport, *, is_interrupted: bool) -> None:
        if is_interrupted:
            echo("stopped before the end; the same command goes on from here", err=True)
        if self.as_json:
            failed = [_failure(row) for row in report.failed]
            manifest = None if report.manifest is None else str(report.manifest)
            print_json({**asdict(report), "failed": failed, "manifest": manifest, "interrupted": is_interrupted})
            return
        for row in report.failed[:_LISTED]:
            step = f"; {NEXT_STEPS[row.code]}" if row.code in NEXT_STEPS else ""
            reason = row.reason.removeprefix(f"{row.output}: ")  # of `verify`, whose outputs are the files themselves
            echo(one_line(f"failed  {row.output}: {reason}{step} [{row.code}]"))
        if len(report.failed) > _LISTED:
            where = "the manifest has all" if report.manifest is not None else "--json shows all"
            echo(f"failed  {len(report.failed) - _LISTED} more; {where}")
        echo(str(report))


def _failure(row: Row) -> dict[str, Any]:
    return {"output": row.output, "source": row.source, "code": row.code, "reason": row.reason}


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, which job managers send, stop a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
