"""Run one input of a target, and see what becomes of it: a result, a refusal, or a finding."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

from target import Target

from nola_codec.errors import NolaError

HANG_SECONDS = 5  # of the processor, so that a busy machine is no finding
MEMORY_BYTES = 200_000_000
SMALL_BYTES = 10_000
_WAIT_SECONDS = 120
_TOO_LONG = f"longer than {HANG_SECONDS} s"
_MOST_INPUTS = 2000
_PACKAGE = f"{os.sep}nola_codec{os.sep}"


class Hang(BaseException):
    """An input took longer than `HANG_SECONDS`."""


@dataclass
class Watch:
    """Runs inputs of one target, and keeps what is new.

    An input is kept as a seed if it is refused at a place of the package where none was before.

    Attributes:
        target: The target.
        folder: The folder for findings.
        inputs: The seeds, and the inputs that were kept.
        outcomes: The number of inputs by outcome: "read", or the code of the refusal.
        findings: For the place of each finding, a line that tells of it.
        runs: The number of inputs that were run.
        slowest: The most processor time that an input took, in seconds.
        memory: The most memory that an input under `SMALL_BYTES` took, in bytes.
    """

    target: Target
    folder: Path
    inputs: list[bytes] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    runs: int = 0
    slowest: float = 0.0
    memory: int = 0
    _seconds: dict[bytes, float] = field(default_factory=dict)
    _places: set[str] = field(default_factory=set)
    _baseline: int = 0

    def start(self, seeds: Sequence[bytes]) -> None:
        """Run each seed as it is, and take the memory of now as what is used anyway."""
        for data in seeds:  # the first runs import what they need, which says nothing of a seed's own time
            with suppress(Exception):
                self.target.read(data)
        for data in seeds:
            self.run(data, keep=True)
        self.slowest, self._baseline = 0.0, _reset_peak()

    def step(self, rng: random.Random) -> None:
        """Change an input at random, and run it. Of two inputs it takes the faster one, so that more are run."""
        data = min(rng.choice(self.inputs), rng.choice(self.inputs), key=self._seconds.__getitem__)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = self.target.change(data, rng)
        self.run(data)

    def run(self, data: bytes, *, keep: bool = False) -> None:
        """Run an input, and count what becomes of it; `keep` keeps it as a seed whatever that is."""
        _install_alarms()
        self.runs += 1
        begin = time.process_time()
        try:
            _set_alarms(HANG_SECONDS, _WAIT_SECONDS)
            try:
                self.target.read(data)
                if time.process_time() - begin > HANG_SECONDS:  # a long call of compiled code lets no handler in
                    raise Hang(_TOO_LONG)
            finally:
                _set_alarms(0, 0)
            outcome, place = "read", "read"
        except NolaError as error:
            outcome, place = error.code, f"{error.code} {_place_of(error)}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, it is what this program looks for
            outcome, place = "finding", f"{type(error).__name__} {_place_of(error)}"
            self._record(place, data, "".join(traceback.format_exception(error)))
        seconds = time.process_time() - begin
        self.slowest = max(self.slowest, seconds)
        self.outcomes[outcome] += 1
        is_new = place not in self._places and len(self.inputs) < _MOST_INPUTS and outcome != "finding"
        if keep or is_new:
            self._places.add(place)
            self._seconds[data] = seconds
            self.inputs.append(data)
        if self._baseline and len(data) < SMALL_BYTES:
            taken = _peak() - self._baseline
            self.memory = max(self.memory, taken)
            if taken > MEMORY_BYTES:
                self.outcomes["finding"] += 1
                self._record(f"memory {place}", data, f"{taken} bytes for a file of {len(data)}\n")
                self._baseline = _reset_peak()

    def _record(self, place: str, data: bytes, text: str) -> None:
        if place in self.findings:
            return
        self.findings[place] = f"{place}: {text.strip().splitlines()[-1][:200]}"
        folder = self.folder / self.target.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(self.findings)}.bin").write_bytes(data)
        (folder / f"{len(self.findings)}.txt").write_text(f"{place}\n{text}", encoding="utf-8")


@cache
def _install_alarms() -> None:
    """Let both alarms of `_set_alarms` raise `Hang`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(_TOO_LONG)

    signal.signal(signal.SIGPROF, ring)
    signal.signal(signal.SIGALRM, ring)


def _set_alarms(computing: float, waiting: float) -> None:
    """Ring after so much processor time, and after so much time in which little is computed; 0 rings never."""
    signal.setitimer(signal.ITIMER_PROF, computing)
    signal.setitimer(signal.ITIMER_REAL, waiting)


def _place_of(error: BaseException) -> str:
    """Return the innermost place of the package that an error passed."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if _PACKAGE in path:
            place = f"{path.rpartition(_PACKAGE)[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _peak() -> int:
    """Return the most memory that this process had in RAM since `_reset_peak`, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> int:
    """Forget the peak of before, and return the memory of now; 0, which measures nothing, where no system forgets."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return _peak()
