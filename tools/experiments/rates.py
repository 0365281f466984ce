"""Choose a learning rate on a ladder of rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def choose_rate(
    rates: Sequence[float], start: float, measure: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """Return the rate with the highest figure, uphill from `start`, and the figures of all rates that were tried.

    Both neighbours of the rate are lower, or it stands at an end of the ladder.

    Args:
        rates: The ladder, rising.
        start: The rate to begin with, one of the ladder.
        measure: A function that returns the figure of a rate; more is better.
    """
    tried: dict[float, float] = {}
    best = rates.index(start)
    while True:
        near = [index for index in (best - 1, best, best + 1) if 0 <= index < len(rates)]
        tried |= {rates[index]: measure(rates[index]) for index in near if rates[index] not in tried}
        found = max(near, key=lambda index: tried[rates[index]])
        if found == best:
            return rates[best], tried
        best = found
