"""Show the progress of long work on stderr.

On a terminal that is one line, or two for many files, which is painted after a second and wiped at the end. Elsewhere,
such as in a log, it is a plain line every half minute. Either is written by a thread, so that time goes on visibly
while a stage reports nothing.

A program that shows progress must not fork: a forked process would have the line, but not the thread that wipes it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nola_codec.cli.messages import one_line
from nola_codec.cli.pace import Pace, render_clock, render_rate, render_seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from nola_codec.progress import Progress

PAINT_AFTER = 1.0
"""Seconds before anything is painted on a terminal: short work stays silent."""
LINE_EVERY = 30.0
"""Seconds between two plain lines, and before the first of them."""
_REFRESH = 0.125
_WIDTH = 79
_STAGE, _BAR, _FIGURES = 24, 12, 41
_WINDOW, _ITEMS_WINDOW = 30.0, 180.0
"""Seconds that a rate looks back: for the steps of one work, and for many files."""


def has_live_terminal() -> bool:
    """Return True if stderr is a terminal on which a line can be painted over."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextmanager
def show_progress(quiet: bool, stage: str = "reading") -> Iterator[Progress | None]:
    """Show the progress of one work while the context is open.

    Args:
        quiet: True shows nothing.
        stage: The name of the stage until another one is reported.

    Yields:
        The function that the work calls as (stage, done, total); None if `quiet`. A total of 0 stands for a number
        that nobody knows.
    """
    if quiet:
        yield None
        return
    display = _StageDisplay(stage)
    with display.shown():
        yield display.report


class _Display:
    """A thread that paints the state of some work; subclasses say what there is to paint."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self._over = threading.Event()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Paint while the context is open. Afterwards nothing of it is left on a terminal."""
        run = self._paint if has_live_terminal() else self._write_lines
        thread = threading.Thread(target=run, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def plain_line(self, now: float) -> str:
        """Return the state as one line of text."""
        raise NotImplementedError

    def rows(self, now: float) -> tuple[_Row, str]:
        """Return the row with the bar, and the text of the line below it, or nothing."""
        raise NotImplementedError

    def align(self, figures: Sequence[str], now: float) -> str:
        """Return figures, and the time of the whole work flush right behind them."""
        elapsed = render_clock(now - self.begin)
        room = _FIGURES - len(elapsed) - 2
        return f"{'  '.join(figures)[:room]:<{room}}  {elapsed}"

    def _write_lines(self) -> None:
        while not self._over.wait(LINE_EVERY):
            print(self.plain_line(time.monotonic()), file=sys.stderr, flush=True)

    def _paint(self) -> None:
        if self._over.wait(PAINT_AFTER):
            return
        from rich.live import Live  # takes a tenth of a second, which short work should not pay

        # Whatever else is written to stderr meanwhile appears above the line. Stdout is left alone: it may be a file.
        console = _make_console()
        with Live(
            get_renderable=lambda: self._render(console.width), console=console, auto_refresh=False, transient=True,
            redirect_stdout=False,
        ) as live:  # fmt: skip
            while True:
                live.refresh()
                if self._over.wait(_REFRESH):
                    return

    def _render(self, width: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        row, below = self.rows(time.monotonic())
        line = row.render(width)
        return Group(line, Text(below, style="dim", no_wrap=True, overflow="ellipsis")) if below else line


class _Row:
    """A name, a bar and figures: what one painted line shows."""

    def __init__(self, name: str, done: float, total: float, figures: str) -> None:
        self.name, self.done, self.total, self.figures = name, done, total, figures

    def render(self, width: int) -> RenderableType:
        """Return the line for rich, in columns of constant widths, so that nothing jumps.

        A narrow terminal has no room for the bar.
        """
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if width < _WIDTH:
            room = max(0, width - _FIGURES - 1)
            name = f"{self.name[:room]:<{room}} " if room else ""
            return Text(f"{name}{self.figures}", no_wrap=True, overflow="ellipsis")
        # Without a total the bar would be a claim: a dot moves instead.
        bar: Any = ProgressBar(self.total, self.done, width=_BAR) if self.total else Text(_moving_dot(), style="cyan")
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=_STAGE, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=_BAR, no_wrap=True)
        grid.add_column(width=_FIGURES, no_wrap=True, overflow="ellipsis")
        grid.add_row(Text(self.name), bar, Text(self.figures))
        return grid


def _moving_dot() -> str:
    span = _BAR - 1
    place = int(time.monotonic() / _REFRESH) % (2 * span)
    return " " * min(place, 2 * span - place) + "•"


def _make_console() -> Console:
    """Return a console on stderr of at most 80 columns.

    The cursor stays visible: a program that is killed could not bring it back.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    made = PlainConsole(file=sys.stderr, force_terminal=True, highlight=False)
    made.width = min(made.width - 1, _WIDTH)
    return made


class _StageDisplay(_Display):
    """The stages of one work, one after another."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._state = _Stage(stage, 0)

    def report(self, stage: str, done: int, total: int) -> None:
        """Take a report of the work; `nola_codec.progress.Progress`."""
        state = self._state
        # Threads report in any order, so a count that is a little behind is old. One far behind is a stage begun anew.
        if total and total == state.total and done >= state.done > 0:
            state.name = stage  # a count that goes on under another name is one work, such as one for many models
        elif (stage, total) != (state.name, state.total) or 2 * done < state.done:
            state = _Stage(stage, total)
        state.count(done)
        self._state = state  # at once: the other thread may look at any time

    def plain_line(self, now: float) -> str:
        """``1 min 30 s: training, 40 of 150, 2.1 s each, 3 min 50 s left``."""
        state = self._state
        parts = [one_line(state.name)]
        parts += [f"{state.done:,} of {state.total:,}"] if state.total else []
        return f"{render_seconds(now - self.begin)}: {', '.join([*parts, *state.pace_words(now)])}"

    def rows(self, now: float) -> tuple[_Row, str]:
        """The name of the stage, its bar, its rate, the time that is left of it and the time of the whole work."""
        state = self._state
        percent = [f"{100 * state.done // state.total:3}%"] if state.total else []
        figures = [*percent, *state.pace_words(now, render_clock)]
        return _Row(one_line(state.name), state.done, state.total, self.align(figures, now)), ""


class _Stage:
    """One stage: its name, how far it is, and its pace."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.pace = Pace(_WINDOW)

    def count(self, done: int) -> None:
        """Tell how far the stage is."""
        self.done = max(self.done, min(done, self.total) if self.total else done)
        self.pace.count(time.monotonic(), self.done)

    def pace_words(self, now: float, render: Callable[[float], str] = render_seconds) -> list[str]:
        """Return the rate and the time left, as far as they are known."""
        if not self.total or self.done >= self.total:
            return []
        rate = self.pace.rate()
        left = self.pace.seconds_left(now, self.total - self.done)
        words = [] if rate is None else [render_rate(rate)]
        return words if left is None else [*words, f"{render(left)} left"]


@contextmanager
def show_items(quiet: bool, total: int, noun: str = "files") -> Iterator[ItemsProgress]:
    """Show the progress of many pieces of work, several of which may run at a time, while the context is open.

    Args:
        quiet: True shows nothing; the counts are kept all the same.
        total: The number of pieces; 0 as long as nobody knows it (`ItemsProgress.total` may be set later).
        noun: What the pieces are, in the plural.

    Example:
        >>> with show_items(quiet=True, total=2, noun="adapters") as items:
        ...     items.start("a")
        ...     items.finish("a")
        ...     items.skip("b")
        >>> items.done, items.failed, items.skipped
        (2, 0, 1)
    """
    items = ItemsProgress(total, noun)
    if quiet:
        yield items
        return
    with items.shown():
        yield items


class ItemsProgress(_Display):
    """The state of many pieces of work. All methods may be called from any thread.

    Attributes:
        total: The number of pieces, or 0 if nobody knows it.
        noun: What the pieces are, in the plural.
        done: The pieces that are over: finished, failed or skipped.
        failed: Those of them that failed.
        skipped: Those of them that an earlier run had done. They do not count for the rate.
    """

    def __init__(self, total: int, noun: str) -> None:
        super().__init__()
        self.total, self.noun = total, noun
        self.done = self.failed = self.skipped = 0
        self._running: dict[str, None] = {}
        self._pace = Pace(_ITEMS_WINDOW)
        self._pace.count(self.begin, 0)
        self._lock = threading.Lock()

    def start(self, name: str) -> None:
        """Tell that a piece was begun."""
        with self._lock:
            self._running[name] = None

    def finish(self, name: str, *, failed: bool = False) -> None:
        """Tell that a piece is over."""
        with self._lock:
            self._running.pop(name, None)
            self.done += 1
            self.failed += failed
            self._pace.count(time.monotonic(), self.done - self.skipped)

    def skip(self, name: str) -> None:
        """Tell that an earlier run had done a piece."""
        with self._lock:
            self._running.pop(name, None)
            self.done += 1
            self.skipped += 1

    def say(self, text: str) -> None:
        """Write a line to stderr; on a terminal it appears above the bar."""
        print(one_line(text), file=sys.stderr, flush=True)  # click.echo would write past rich's place above the bar

    def plain_line(self, now: float) -> str:
        """``1 min 30 s: 40 of 300 adapters, 2 failed, 1.3/s, 3 min 20 s left; running a, b``."""
        with self._lock:
            of = f" of {self.total:,}" if self.total else ""
            parts = [f"{self.done:,}{of} {self.noun}", *self._failed_words(), *self._pace_words(now)]
            running = f"; running {self._names()}" if self._running else ""
            return f"{render_seconds(now - self.begin)}: {', '.join(parts)}{running}"

    def rows(self, now: float) -> tuple[_Row, str]:
        """The counts with their bar, and the names of what is running below."""
        with self._lock:
            of = f" of {self.total:,}" if self.total else ""
            name = f"{self.done:,}{of} {self.noun}"
            figures = [*self._pace_words(now, render_clock), *self._failed_words()]
            row = _Row(name, self.done, self.total, self.align(figures, now))
            return row, f"running {self._names()}"[:_WIDTH] if self._running else " "

    def _failed_words(self) -> list[str]:
        return [f"{self.failed:,} failed"] if self.failed else []

    def _pace_words(self, now: float, render: Callable[[float], str] = render_seconds) -> list[str]:
        rate = self._pace.rate()
        if rate is None:
            return []
        left = self._pace.seconds_left(now, self.total - self.done) if self.total > self.done else None
        return [render_rate(rate), *([f"{render(left)} left"] if left is not None else [])]

    def _names(self) -> str:
        """Return the names of what is running, the latest first, as far as a line has room for them."""
        return one_line(", ".join(list(reversed(self._running))[:8]))
