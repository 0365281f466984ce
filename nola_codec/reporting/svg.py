"""Draw figures as SVG that stands in an HTML page; the page's style sheet gives the colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from nola_codec.rendering import escape

STEPS = 9
"""The number of colours of a heat map: the classes ``s0`` to ``s8``."""
_LONGEST = 160
_CHARACTER = 6.6
"""The width of a character of labels, in units of the drawings."""


def safe(text: object, most: int = _LONGEST) -> str:
    """Return text for HTML and SVG: cut in the middle if it is long, with control characters written out.

    >>> safe('<b onclick="x">')
    '&lt;b onclick=&quot;x&quot;&gt;'
    """
    plain = str(text)
    if len(plain) > most:
        plain = f"{plain[: most // 2]}...{plain[-(most - most // 2) :]}"
    return html.escape(escape(plain))


def draw_bars(key: str, title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Return horizontal bars: (label, value, value as text) of each."""
    largest = max((value for _, value, _ in bars), default=0) or 1
    left = _CHARACTER * max((len(label) for label, _, _ in bars), default=0) + 10
    parts = []
    for number, (label, value, text) in enumerate(bars):
        y = 26 * number
        width = 180 * value / largest
        parts.append(
            f'<text x="{left - 8:.0f}" y="{y + 16}" text-anchor="end">{safe(label)}</text>'
            f'<rect class="bar" x="{left:.0f}" y="{y + 3}" width="{width:.1f}" height="18"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 16}">{safe(text)}</text>'
        )
    described = "; ".join(f"{label}: {text}" for label, _, text in bars)
    return _svg(key, title, described, left + 320, 26 * len(bars) + 4, parts)


def draw_heat_map(
    key: str,
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[float, str] | None]],
    ends: tuple[float, float],
) -> str:
    """Return a heat map; a cell without a value stays empty.

    Args:
        key: The beginning of the ids of its parts.
        title: The name of the heat map.
        description: What people read who do not see it.
        rows: The names of the rows.
        columns: The names of the columns.
        cells: For each row the (value, value as text) of each column, or None.
        ends: The values of the palest and of the strongest colour.
    """
    names = [row if len(row) <= 32 else f"{row[:12]}...{row[-17:]}" for row in rows]
    left = _CHARACTER * max((len(name) for name in names), default=0) + 10
    size = 18
    parts = []
    for i, name in enumerate(names):
        parts.append(f'<text x="{left - 6:.0f}" y="{size * i + 13}" text-anchor="end">{safe(name)}</text>')
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                value, text = cell
                x = left + size * j
                parts.append(
                    f'<rect class="s{_step(value, ends)}" x="{x:.0f}" y="{size * i}" width="17" height="17">'
                    f"<title>{safe(rows[i], 60)}, {safe(columns[j], 60)}: {safe(text)}</title></rect>"
                )
    bottom = size * len(rows)
    every = max(1, math.ceil(len(columns) / 16), math.ceil(max(map(len, map(_short, columns)), default=1) / 2.5))
    for j in range(0, len(columns), every):
        x = left + size * j + size / 2
        parts.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle">{safe(_short(columns[j]))}</text>')
    return _svg(key, title, description, left + size * len(columns) + 20, bottom + 24, parts)


def draw_histogram(key: str, title: str, counts: Sequence[int], bars_per_unit: int) -> str:
    """Return a histogram around 0, whose bars are 1 / `bars_per_unit` wide."""
    largest = max(counts, default=0) or 1
    middle, width = len(counts) // 2, 8
    parts = []
    for number, count in enumerate(counts):
        height = 90 * count / largest
        parts.append(
            f'<rect class="bar" x="{8 + width * number}" y="{96 - height:.1f}" width="7" height="{height:.1f}">'
            f"<title>{(number - middle) / bars_per_unit:g}: {count:,}</title></rect>"
        )
    for tick in range(-(middle // bars_per_unit), middle // bars_per_unit + 1, 2):
        x = 8 + width * (middle + tick * bars_per_unit) + 3.5
        parts.append(f'<text x="{x:.1f}" y="112" text-anchor="middle">{tick}</text>')
    parts.append(f'<path class="axis" d="M4 96.5H{12 + width * len(counts)}"/>')
    described = f"Of {sum(counts):,} coefficients {counts[middle] if counts else 0:,} are in the bar of zero."
    return _svg(key, title, described, 16 + width * len(counts), 120, parts)


def draw_spectra(key: str, title: str, original: Sequence[float], decoded: Sequence[float]) -> str:
    """Return the singular values of an original, as circles, and of what a file decodes to, as squares."""
    largest = max((*original, *decoded), default=0) or 1
    count = max(len(original), len(decoded), 2)

    def place(number: int, value: float) -> tuple[float, float]:
        return 44 + 220 * number / (count - 1), 106 - 94 * value / largest

    parts = [
        '<path class="axis" d="M36 8V106.5H272"/>',
        f'<text x="32" y="14" text-anchor="end">{largest:.2g}</text><text x="32" y="110" text-anchor="end">0</text>',
        f'<text x="44" y="122" text-anchor="middle">1</text><text x="264" y="122" text-anchor="middle">{count}</text>',
    ]
    for name, values in (("first", original), ("second", decoded)):
        points = [place(number, value) for number, value in enumerate(values)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {name}" points="{line}"/>')
        for (x, y), value in zip(points, values, strict=True):
            mark = (
                f'<circle class="mark {name}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                if name == "first"
                else f'<rect class="mark {name}" x="{x - 2.6:.1f}" y="{y - 2.6:.1f}" width="5.2" height="5.2">'
            )
            parts.append(f"{mark}<title>{value:.4g}</title></{'circle' if name == 'first' else 'rect'}>")
    described = (
        f"Original: {', '.join(f'{value:.3g}' for value in original[:8])}. "
        f"Decoded: {', '.join(f'{value:.3g}' for value in decoded[:8])}."
    )
    return _svg(key, title, described, 280, 128, parts)


def draw_scale(low: str, high: str) -> str:
    """Return the colours of a heat map in a row between two values as text. It is for people who see the colours."""
    parts = [f'<rect class="s{step}" x="{18 * step}" y="0" width="17" height="12"/>' for step in range(STEPS)]
    drawn = f'<svg class="scale" viewBox="0 0 {18 * STEPS} 12" width="{18 * STEPS}" height="12" aria-hidden="true">'
    return f'<p class="legend">{safe(low)} {drawn}{"".join(parts)}</svg> {safe(high)}</p>'


def _step(value: float, ends: tuple[float, float]) -> int:
    low, high = ends
    if not math.isfinite(value):
        return STEPS - 1
    share = (value - low) / (high - low) if high > low else 0.0
    return min(max(int(share * STEPS), 0), STEPS - 1)


def _short(column: str) -> str:
    """Return the numbers in the name of a layer, or its beginning: ``12`` for ``model.layers.12``."""
    numbers = [part for part in column.replace("_", ".").split(".") if part.isascii() and part.isdigit()]
    return ".".join(numbers)[:12] or column[:5]


def _svg(key: str, title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<div class="drawing" tabindex="0" role="group" aria-label="{safe(title)}"><svg role="img" '
        f'aria-labelledby="{key}-t {key}-d" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}"><title id="{key}-t">{safe(title)}</title>'
        f'<desc id="{key}-d">{safe(description, 2000)}</desc>{"".join(parts)}</svg></div>'
    )
