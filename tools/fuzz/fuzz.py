"""Read files that were changed at random, in every way that a stranger's file can be read.

    python tools/fuzz/fuzz.py --minutes 10
    python tools/fuzz/fuzz.py --target container --target "store gguf" --minutes 1
    python tools/fuzz/fuzz.py --target undo --input fuzz-findings/undo/1.bin     # one input, with its traceback

Each target (`targets.py`) is run in a process of its own, and each gets the same share of the time. A finding is any
exception that is no NolaError, a run of more than 5 seconds, more than 200 MB of memory for a file under 10 KB, or the
death of the process. Each is written to a folder, once for each place of the code, and the exit status is 1.
`coverage_guided.py` does the same with Atheris, which looks for inputs that reach new branches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]

from target import Target  # noqa: E402
from targets import all_targets  # noqa: E402
from watching import Watch  # noqa: E402

from nola_codec.errors import NolaError  # noqa: E402
from nola_codec.parallel import one_blas_thread  # noqa: E402
from nola_codec.rendering import render_size, render_table  # noqa: E402

_MOST_MEMORY = 8 << 30
"""The address space of a process: a limit for what a finding may take from the machine."""
_REPORT_SECONDS = 2.0
_SILENT_SECONDS = 300


@dataclass(frozen=True)
class Row:
    """What became of a target.

    Attributes:
        target: Its name.
        runs: The number of inputs.
        seconds: The time that they took.
        computed: The seconds of the processor among them, without those for the seeds.
        outcomes: The number of inputs by outcome.
        slowest: The most processor time of an input, in seconds.
        memory: The most memory that an input under 10 KB took beyond what the process had before, in bytes.
        findings: A line for each finding.
    """

    target: str
    runs: int
    seconds: float
    computed: float
    slowest: float
    memory: int
    outcomes: dict[str, int]
    findings: list[str]


def fuzz(target: Target, seconds: float, seed: int, folder: Path) -> Row:
    """Fuzz a target in a process of its own; a process that dies is a finding, and another one goes on."""
    seeds = target.seeds()
    begin = time.monotonic()
    parts: list[dict[str, Any]] = []
    died: list[str] = []
    while (left := seconds - (time.monotonic() - begin)) > 0:
        receive, send = multiprocessing.Pipe(duplex=False)
        arguments = (target, seeds, left, seed + len(parts), folder, send)
        process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        process.start()
        send.close()
        found: dict[str, Any] = {
            "runs": 0,
            "computed": 0.0,
            "slowest": 0.0,
            "memory": 0,
            "outcomes": {},
            "findings": [],
        }
        try:
            while receive.poll(_SILENT_SECONDS):
                found = receive.recv()
            process.kill()  # it hangs where no signal reaches it
        except EOFError:
            pass
        process.join()
        parts.append(found)
        if process.exitcode == 0:
            break
        died.append(f"the process died with {process.exitcode}; a run with --seed {arguments[3]} repeats it")
        if len(died) > 20:
            break
    outcomes: dict[str, int] = {}
    for part in parts:
        for outcome, count in part["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    listed = [line for part in parts for line in part["findings"]] + died
    return Row(
        target=target.name,
        runs=sum(part["runs"] for part in parts),
        seconds=round(time.monotonic() - begin, 1),
        computed=round(sum(part["computed"] for part in parts), 2),
        slowest=round(max(part["slowest"] for part in parts), 3),
        memory=max(part["memory"] for part in parts),
        outcomes=outcomes,
        findings=list(dict.fromkeys(listed)),
    )


def _work(target: Target, seeds: Sequence[bytes], seconds: float, seed: int, folder: Path, send: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    mock.patch("importlib.metadata.entry_points", return_value=()).start()  # it takes longer than all the rest
    watch = Watch(target, folder)
    one_blas_thread().__enter__()  # for the whole process, since each decode would start a thread to ask for it
    watch.start(seeds)
    begin = reported = time.monotonic()
    watch.runs, started = 0, time.process_time()
    rng = random.Random(seed)
    while (now := time.monotonic()) - begin < seconds and watch.inputs:
        watch.step(rng)
        if now - reported > _REPORT_SECONDS:
            _report(watch, started, send)
            reported = now
    _report(watch, started, send)


def _report(watch: Watch, started: float, send: Connection) -> None:
    listed = list(watch.findings.values())
    computed = time.process_time() - started
    figures = {"runs": watch.runs, "computed": computed, "slowest": watch.slowest, "memory": watch.memory}
    send.send({**figures, "outcomes": dict(watch.outcomes), "findings": listed})


def main() -> int:
    """Fuzz the targets, and print a table or JSON."""
    os.environ["NOLA_THREADS"] = "1"
    targets = all_targets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="time for all targets together (default: 1)")
    parser.add_argument("--target", action="append", choices=list(targets), help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, help="seed of the changes (default: from the clock)")
    parser.add_argument("--input", type=Path, help="read this input alone, by the one target")
    parser.add_argument("--findings", type=Path, default=ROOT / "fuzz-findings", help="folder for findings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    warnings.simplefilter("error")  # as in the tests: a warning of NumPy is a number that nobody checked
    chosen = [targets[name] for name in options.target or targets]
    if options.input is not None:
        return _replay(chosen[0], options.input.read_bytes())
    seed = time.time_ns() % 2**32 if options.seed is None else options.seed
    options.findings.mkdir(parents=True, exist_ok=True)
    share = 60 * options.minutes / len(chosen)
    rows = [fuzz(target, share, seed, options.findings) for target in chosen]
    if options.json:
        print(json.dumps({"seed": seed, "rows": [vars(row) for row in rows]}, indent=1))
    else:
        lines = [["target", "runs", "per CPU s", "read", "refused", "codes", "slowest", "memory", "findings"]]
        for row in rows:
            read, wrong = row.outcomes.get("read", 0), row.outcomes.get("finding", 0)
            codes = len(row.outcomes.keys() - {"read", "finding"})
            refused = max(0, row.runs - read - wrong)
            numbers = [row.runs, round(row.runs / max(row.computed, 0.01)), read, refused, codes]
            most = [f"{row.slowest:.2f} s", render_size(row.memory)]
            lines.append([row.target, *(f"{number:,}" for number in numbers), *most, str(len(row.findings))])
        print("\n".join(render_table(lines, right=range(1, 9))))
        print(f"{sum(row.runs for row in rows):,} runs, seed {seed}")
        for row in rows:
            for line in row.findings:
                print(f"{row.target}: {line}")
    return int(any(row.findings for row in rows))


def _replay(target: Target, data: bytes) -> int:
    try:
        target.read(data)
    except NolaError as error:
        print(f"refused: {error} [{error.code}]")
        return 0
    except Exception:
        traceback.print_exc()
        return 1
    print("read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
