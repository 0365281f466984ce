"""Measure how fast work goes on, and say times and rates in words."""

from __future__ import annotations

from collections import deque

_SPACING = 0.2
"""Seconds between two samples that are kept."""
_LEAST = 0.5
"""Seconds that a rate must look back at least, so that it is no guess."""


class Pace:
    """The rate of some work over the last seconds, and the time that is left.

    The first sample is where the count starts, so that work which an earlier run has done does not make this one look
    fast. Only a window of the latest seconds counts, since the parts of a work are not equally hard.
    """

    def __init__(self, window: float) -> None:
        """Make a pace; `window` is the number of seconds that it looks back."""
        self._window = window
        self._samples: deque[tuple[float, float]] = deque()
        self._last: tuple[float, float] | None = None

    def count(self, now: float, done: float) -> None:
        """Tell that `done` steps are done at the time `now`, in seconds."""
        self._last = (now, done)
        if not self._samples or now - self._samples[-1][0] >= _SPACING:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()

    def rate(self) -> float | None:
        """Return the steps in a second, or None as long as nobody can know them."""
        if self._last is None:
            return None
        (begin, before), (end, after) = self._samples[0], self._last
        return (after - before) / (end - begin) if end - begin >= _LEAST and after > before else None

    def seconds_left(self, now: float, steps: float) -> float | None:
        """Return the seconds that `steps` more steps will take, counted from `now`.

        None stands for nobody knows: there is no rate yet, or the next step is overdue by more than all of them should
        take.
        """
        rate = self.rate()
        if rate is None or self._last is None:
            return None
        wanted = steps / rate
        waited = now - self._last[0]
        if waited > 2 * wanted + 2:
            return None
        return max(0.0, wanted - waited)


def render_seconds(seconds: float) -> str:
    """Return a time in two units at most.

    >>> render_seconds(3.7), render_seconds(98), render_seconds(3725), render_seconds(200_000)
    ('3 s', '1 min 38 s', '1 h 02 min', '2 d 07 h')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def render_clock(seconds: float) -> str:
    """Return a time as a clock shows it, for lines in which place is short.

    >>> render_clock(3.7), render_clock(98), render_clock(3725)
    ('0:03', '1:38', '1:02:05')
    """
    whole = int(seconds)
    hours = f"{whole // 3600}:{whole % 3600 // 60:02}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02}"


def render_rate(rate: float) -> str:
    """Return a number of steps in a second, or the seconds of a step if it takes longer than one.

    >>> render_rate(1234.5), render_rate(3.21), render_rate(0.05)
    ('1,234/s', '3.2/s', '20 s each')
    """
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 20 else f"{rate:.1f}/s"
    each = 1 / rate
    return f"{each:.1f} s each" if each < 10 else f"{render_seconds(each)} each"
