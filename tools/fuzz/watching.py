"""Run one input of a target, and see what becomes of it: a result, a refusal, or a finding."""

from __future__ import annotations

import os
import random
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from targets import Target

from nola_codec.errors import NolaError

HANG_SECONDS = 5  # of the processor, so that a busy machine is no finding
MEMORY_BYTES = 200_000_000
SMALL_BYTES = 10_000
_WAIT_SECONDS = 120
_TOO_LONG = f"longer than {HANG_SECONDS} s"
_MOST_INPUTS = 2000
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


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
    _places: set[str] = field(default_factory=set)
    _baseline: int = 0

    def start(self, seeds: Sequence[bytes]) -> None:
        """Run each seed as it is, and take the memory of now as what is used anyway."""
        self.inputs = list(seeds)
        for data in seeds:
            self.run(data)
        self.slowest, self._baseline = 0.0, _reset_peak()  # the first runs import what they need

    def step(self, rng: random.Random) -> None:
        """Change an input at random, and run it."""
        data = rng.choice(self.inputs)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = self.target.change(data, rng)
        self.run(data)

    def run(self, data: bytes) -> None:
        """Run an input, and count what becomes of it."""
        self.runs += 1
        begin = time.process_time()
        try:
            with _alarm():
                self.target.read(data)
            outcome, place = "read", "read"
        except NolaError as error:
            outcome, place = error.code, f"{error.code} {_place_of(error)}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, it is what this program looks for
            outcome, place = "finding", f"{type(error).__name__} {_place_of(error)}"
            self._record(place, data, "".join(traceback.format_exception(error)))
        self.slowest = max(self.slowest, time.process_time() - begin)
        self.outcomes[outcome] += 1
        if place not in self._places and len(self.inputs) < _MOST_INPUTS and outcome != "finding":
            self._places.add(place)
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


@contextmanager
def _alarm() -> Iterator[None]:
    """Raise `Hang` after `HANG_SECONDS` of processor time, or after `_WAIT_SECONDS` in which little is computed."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(_TOO_LONG)

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, HANG_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, _WAIT_SECONDS)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    begin = time.process_time()
    try:
        yield
        if time.process_time() - begin > HANG_SECONDS:  # a long call of compiled code lets no handler in
            raise Hang(_TOO_LONG)
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _place_of(error: BaseException) -> str:
    """Return the innermost place of the package that an error passed."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if f"{os.sep}nola_codec{os.sep}" in path:
            place = f"{path.rpartition(f'{os.sep}nola_codec{os.sep}')[2]}:{line}"
    return place


def _peak() -> int:
    """Return the most memory that this process had in RAM since `_reset_peak`, in bytes; 0 where no system tells it."""
    try:
        found = _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _reset_peak() -> int:
    """Forget the peak of before, and return the memory of now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return _peak()
