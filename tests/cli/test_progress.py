"""What is painted on a terminal, what is written to a log, and that neither is in the way."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nola_codec.cli import main, progress
from nola_codec.cli.pace import Pace, render_rate, render_seconds

pty = pytest.importorskip("pty")  # not on Windows
ROOT = Path(__file__).parents[2]
PAINTED = re.compile(r"[━•]|^running|^a stage")


# ---------------------------------------------------------------------------------------------------------- the rate


def test_work_of_an_earlier_run_does_not_count() -> None:
    pace = Pace(30)
    pace.count(0, 900)  # a resumed training
    pace.count(10, 905)
    assert pace.rate() == 0.5
    assert pace.seconds_left(10, 95) == 190
    assert pace.seconds_left(15, 95) == 185  # time goes on between two steps


def test_only_the_latest_seconds_count() -> None:
    pace = Pace(10)
    for second in range(100):
        pace.count(second, second * 50 if second < 60 else 3000 + (second - 60))
    assert pace.rate() == pytest.approx(1)


def test_nobody_knows_a_rate_at_once_nor_after_a_stall() -> None:
    pace = Pace(30)
    assert pace.rate() is None
    assert pace.seconds_left(0, 5) is None
    pace.count(0, 1)
    pace.count(0.01, 2)
    assert pace.rate() is None  # a hundredth of a second tells nothing
    pace.count(1, 3)
    assert pace.seconds_left(1, 2) == 1
    assert pace.seconds_left(60, 2) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (90_000, "1 d 01 h")],
)
def test_times(seconds: float, words: str) -> None:
    assert render_seconds(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(2000, "2,000/s"), (1, "1.0/s"), (0.5, "2.0 s each"), (0.01, "1 min 40 s each")]
)
def test_rates(rate: float, words: str) -> None:
    assert render_rate(rate) == words


# ----------------------------------------------------------------------------------------------------- no terminal


def catch_stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = catch_stderr(monkeypatch)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.05)
    with progress.show_progress(quiet=False) as report:
        assert report is not None
        report("training", 150, 300)
        wait_for(lambda: log.getvalue().count("\n") > 1)
    assert re.match(r"\d+ s: training, 150 of 300\n", log.getvalue())


def test_a_count_that_goes_on_under_another_name_is_one_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = progress._StageDisplay("reading")
    for step in range(21):
        now[0] = 100.0 + 2 * step
        display.report("measuring a" if step < 10 else "measuring b", step, 40)
    assert display.plain_line(140) == "40 s: measuring b, 20 of 40, 2.0 s each, 40 s left"


def test_what_a_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = progress._StageDisplay("reading")
    assert display.plain_line(102) == "2 s: reading"
    for step in range(40, 61):  # the first forty are of an earlier run
        now[0] = 100.0 + 3 * (step - 40)
        display.report("training", step, 150)
    assert display.plain_line(160) == "1 min 00 s: training, 60 of 150, 3.0 s each, 4 min 30 s left"
    row, below = display.rows(160)
    assert (row.name, row.done, row.total, below) == ("training", 60, 150, "")
    assert row.figures.split() == ["40%", "3.0", "s", "each", "4:30", "left", "1:00"]
    display.report("training", 150, 150)
    assert display.plain_line(161) == "1 min 01 s: training, 150 of 150"
    display.report("draft 1", 0, 0)
    assert display.plain_line(170) == "1 min 10 s: draft 1"


def test_the_first_line_comes_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log = catch_stderr(monkeypatch)
    assert progress.LINE_EVERY == 30
    with progress.show_progress(quiet=False) as report:
        assert report is not None
        report("draft 1", 0, 0)
        time.sleep(0.05)
    assert log.getvalue() == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_short_work_is_silent(
    quiet: bool, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress, "PAINT_AFTER", 60.0)
    with pytest.raises(SystemExit, match="0"):
        main(["encode", str(adapter), "-o", str(tmp_path / "x.nola"), "--nmse", "0.1", "--json", *["-q"] * quiet])
    assert stderr.getvalue() == ""
    json.loads(capsys.readouterr().out)


def test_reports_of_threads_do_not_go_back() -> None:
    display = progress._StageDisplay("reading")
    for done in (1, 3, 2, 4):
        display.report("merging", done, 10)
    assert display.plain_line(display.begin) == "0 s: merging, 4 of 10"
    display.report("merging", 1, 10)  # another model
    assert display.plain_line(display.begin + 61) == "1 min 01 s: merging, 1 of 10"


def test_a_name_from_a_file_does_not_reach_the_terminal_as_it_is() -> None:
    display = progress._StageDisplay("reading")
    display.report("\x1b[2Jevil\n", 0, 0)
    assert display.plain_line(display.begin) == "0 s: \\x1b[2Jevil\\n"


# ------------------------------------------------------------------------------------------------------- many files


def test_counts_of_many_files() -> None:
    with progress.show_items(quiet=True, total=10, noun="adapters") as items:
        for number in range(5):
            items.skip(f"old {number}")
        items.start("a")
        items.start("b")
        items.finish("a", failed=True)
        line = items.plain_line(items.begin + 10)
    assert line.startswith("10 s: 6 of 10 adapters, 1 failed")
    assert line.endswith("; running b")
    assert (items.done, items.failed, items.skipped) == (6, 1, 5)


def test_skipped_files_do_not_make_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.show_items(quiet=True, total=1000) as items:
        for number in range(900):
            items.skip(str(number))
        now[0] = 110.0
        items.finish("one")
    assert items.plain_line(110.0) == "10 s: 901 of 1,000 files, 10 s each, 16 min 30 s left"


# --------------------------------------------------------------------------------------------------------- terminal


@dataclass
class Screen:
    """As much of a terminal as rich asks for: the lines that are left on it, and everything that ever was."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    seen: list[str] = field(default_factory=list)

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
                self.lines += [""] * (self.row >= len(self.lines))
            elif part.endswith("K"):
                self.lines[self.row] = ""
            elif part.endswith("A"):
                self.row -= int(part[2:-1] or 1)
            elif not part.startswith("\x1b"):
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)
                self.seen.append(self.lines[self.row])


@dataclass
class Painted:
    """A program that ran on a terminal."""

    status: int
    raw: str
    screen: Screen


@contextmanager
def terminal(
    code: str, *arguments: str, columns: int, **environment: str
) -> Iterator[tuple[subprocess.Popen[Any], int]]:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM")}
    variables |= {"TERM": "xterm", "PYTHONPATH": str(ROOT), "NOLA_THREADS": "1", **environment}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    ) as running:
        os.close(theirs)
        yield running, ours
    os.close(ours)


def read_all(ours: int, when: Callable[[str], None] = lambda text: None) -> str:
    raw = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            raw += part
            when(raw.decode(errors="replace"))
    return raw.decode()


def run_on_terminal(code: str, *arguments: str, columns: int = 80, **environment: str) -> Painted:
    with terminal(code, *arguments, columns=columns, **environment) as (running, ours):
        raw = read_all(ours)
    screen = Screen(columns)
    screen.feed(raw)
    assert all(len(line) < columns for line in screen.seen if PAINTED.search(line)), "a line would wrap"
    return Painted(running.wait(), raw, screen)


WORK = """
import sys, time
from nola_codec.cli import progress
progress.PAINT_AFTER = progress.LINE_EVERY = 0.05
with progress.show_progress(False) as report:
    for step in range(12):
        report("a stage whose name is longer than its column", step, 12)
        time.sleep(0.06)
        if step == 6:
            print("a warning", file=sys.stderr)
print("the result")
"""


def test_a_line_is_painted_and_wiped() -> None:
    painted = run_on_terminal(WORK)
    assert painted.status == 0
    assert any("a stage whose name" in line and "%" in line and "━" in line for line in painted.screen.seen)
    assert [line for line in painted.screen.lines if line] == ["a warning", "the result"]
    assert "\x1b[?25l" not in painted.raw  # a killed program would leave the terminal without a cursor
    assert "\x1b[3" in painted.raw or "\x1b[9" in painted.raw


@pytest.mark.parametrize(
    ("environment", "columns"),
    [({"NO_COLOR": "1"}, 80), ({"TERM": "dumb"}, 80), ({}, 50)],
    ids=["plain", "dumb", "narrow"],
)
def test_other_terminals(environment: dict[str, str], columns: int) -> None:
    painted = run_on_terminal(WORK, columns=columns, **environment)
    assert painted.status == 0
    assert "the result" in painted.screen.lines
    if "TERM" in environment:
        assert "\x1b" not in painted.raw
        assert "0 s: a stage whose name is longer than its column, " in painted.raw
    elif environment:
        assert not re.search(r"\x1b\[[0-9;]*(3|9)[0-9]m", painted.raw)


ITEMS = """
import time
from nola_codec.cli import progress
progress.PAINT_AFTER = 0.05
with progress.show_items(False, 8, "adapters") as items:
    for number in range(8):
        items.start(f"s3://a-bucket/{number}/" + "long" * 30)
        items.start(f"other {number}")
        time.sleep(0.1)
        items.finish(f"other {number}", failed=number == 2)
        if number == 2:
            items.say("other 2: no LoRA in it")
print("the result")
"""


def test_many_files_on_a_terminal() -> None:
    painted = run_on_terminal(ITEMS)
    assert [line for line in painted.screen.lines if line] == ["other 2: no LoRA in it", "the result"]
    assert any(re.match(r"[1-7] of 8 adapters", line) and "1 failed" in line for line in painted.screen.seen)
    assert any(line.startswith("running other") for line in painted.screen.seen)


COMMAND = """
import signal, sys
from nola_codec.cli import main, progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
progress.PAINT_AFTER = 0.0
main(sys.argv[1:])
"""


def test_an_error_is_printed_after_the_line_is_gone(tmp_path: Path, adapter: Path) -> None:
    painted = run_on_terminal(COMMAND, "encode", str(adapter), "-n", "--size", "100B")
    assert painted.status == 3
    first = next(line for line in painted.screen.lines if line)
    assert first.startswith("nola-codec: size 100 bytes cannot be reached")


def test_an_interrupt_is_clean(examples: Path, tmp_path: Path) -> None:
    arguments = ("encode", str(examples / "smollm2_e2e"), "-o", str(tmp_path / "x.nola"), "--size", "200KB")
    with terminal(COMMAND, *arguments, columns=80) as (running, ours):
        sent = []

        def interrupt(text: str) -> None:
            if "draft 1" in text and not sent:
                sent.append(True)
                running.send_signal(signal.SIGINT)

        raw = read_all(ours, interrupt)
    screen = Screen(80)
    screen.feed(raw)
    assert running.wait() == 130
    assert [line for line in screen.lines if line] == ["nola-codec: interrupted"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
    ],
)
def test_colours_where_they_are_wanted(
    environment: dict[str, str], is_coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="3"):
        main(["inspect", "nothing.nola"])
    assert capsys.readouterr().err.startswith("\x1b[31mnola-codec:\x1b[0m " if is_coloured else "nola-codec: ")
