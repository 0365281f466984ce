"""Draw figures as SVG that stands in an HTML page; the page's style sheet gives the colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nola_codec.rendering import escape
from nola_codec.reporting.places import short_layer

STEPS = 9
"""The number of colours of a heat map: the classes ``s0`` to ``s8``."""
_LONGEST = 160
_CHARACTER = 6.6
"""The width of a character of labels, in units of the drawings."""


@dataclass(frozen=True)
class Series:
    """A curve of a drawing.

    Attributes:
        name: Its name, as its legend has it.
        style: Its class in the style sheet, which also picks the form of its marks: one of ``first``, ``second``,
            ``third``, ``fourth`` and ``own``.
        points: (x, y, text) of each mark.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float, str]]


def safe(text: object, most: int = _LONGEST, keep: str = "") -> str:
    """Return text for HTML and SVG: cut in the middle if it is long, with control characters written out but `keep`.

    >>> safe('<b onclick="x">')
    '&lt;b onclick=&quot;x&quot;&gt;'
    """
    plain = str(text)
    if len(plain) > most:
        plain = f"{plain[: most // 2]}...{plain[-(most - most // 2) :]}"
    return html.escape(escape(plain, keep))


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
    every = max(1, math.ceil(len(columns) / 16), math.ceil(max(map(len, map(short_layer, columns)), default=1) / 2))
    for j in range(0, len(columns), every):
        x = left + size * j + size / 2
        parts.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle">{safe(short_layer(columns[j]))}</text>')
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


def draw_curves(
    key: str, title: str, description: str, curves: Sequence[Series], axes: tuple[str, str], above: tuple[str, float]
) -> str:
    """Return curves over two logarithmic axes, each with its marks and, below the drawing, its name.

    Args:
        key: The beginning of the ids of its parts.
        title: The name of the drawing.
        description: What people read who do not see it.
        curves: The curves. Their x are sizes in bytes; points with an x or a y that is not positive are left out.
        axes: The names of the x axis and of the y axis.
        above: The name of an axis above the drawing, and the number that x divides on it.
    """
    shown = [[(x, y, text) for x, y, text in each.points if x > 0 and 0 < y < math.inf] for each in curves]
    every = [point for points in shown for point in points]
    if not every:
        return ""
    low_x, high_x = _rounded_ends([x for x, _, _ in every])
    low_y, high_y = _rounded_ends([y for _, y, _ in every])
    left, right, top, bottom = 64, 620, 40, 300

    def across(x: float) -> float:
        return left + (right - left) * math.log(x / low_x) / math.log(high_x / low_x)

    def down(y: float) -> float:
        return bottom - (bottom - top) * math.log(y / low_y) / math.log(high_y / low_y)

    parts = []
    for y in _ticks(low_y, high_y, most=8):
        parts.append(f'<path class="grid" d="M{left} {down(y):.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(low_x, high_x, most=8):
        parts.append(f'<path class="grid" d="M{across(x):.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 16}" text-anchor="middle">{_size_label(x)}</text>')
    name, total = above
    parts += [
        f'<text x="{across(total / times):.1f}" y="{top - 6}" text-anchor="middle">{times:g}x</text>'
        for times in _ticks(total / high_x, total / low_x, most=8)
    ]
    parts.append(f'<text x="{right}" y="{top - 24}" text-anchor="end">{safe(name)}</text>')
    parts.append(f'<text x="6" y="{top - 24}">{safe(axes[1])}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 34}" text-anchor="end">{safe(axes[0])}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    for number, (each, points) in enumerate(zip(curves, shown, strict=True)):
        line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y, _ in sorted(points))
        if len(points) > 1:
            parts.append(f'<polyline class="line {each.style}" points="{line}"/>')
        parts += [_mark(each.style, across(x), down(y), text) for x, y, text in points]
        below = bottom + 54 + 18 * number
        parts.append(f'<path class="line {each.style}" d="M{left - 14} {below - 4}H{left + 14}"/>')
        parts.append(_mark(each.style, left, below - 4, ""))
        parts.append(f'<text x="{left + 24}" y="{below}">{safe(each.name)}</text>')
    return _svg(key, title, description, right + 24, bottom + 54 + 18 * len(curves), parts)


def draw_scale(low: str, high: str) -> str:
    """Return the colours of a heat map in a row between two values as text. It is for people who see the colours."""
    parts = [f'<rect class="s{step}" x="{18 * step}" y="0" width="17" height="12"/>' for step in range(STEPS)]
    drawn = f'<svg class="scale" viewBox="0 0 {18 * STEPS} 12" width="{18 * STEPS}" height="12" aria-hidden="true">'
    return f'<p class="legend">{safe(low)} {drawn}{"".join(parts)}</svg> {safe(high)}</p>'


def _mark(style: str, x: float, y: float, text: str) -> str:
    """Return a mark whose form tells curves apart without their colours."""
    title = f"<title>{safe(text)}</title>" if text else ""
    if style == "first":
        return f'<circle class="mark first" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'
    size, forms = 3.5, {"third": "M{l} {b}L{x} {t}L{r} {b}Z", "fourth": "M{l} {t}L{r} {t}L{x} {b}Z"}
    if style == "own":
        size, forms = 7.0, {"own": "M{x} {t}L{r} {y}L{x} {b}L{l} {y}Z"}
    form = forms.get(style, "M{l} {t}H{r}V{b}H{l}Z")
    ends = {"x": x, "y": y, "l": x - size, "r": x + size, "t": y - size, "b": y + size}
    path = form.format(**{name: f"{value:.1f}" for name, value in ends.items()})
    return f'<path class="mark {style}" d="{path}">{title}</path>'


def _rounded_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the numbers 1, 2 or 5 times a power of ten that some positive values lie strictly between."""
    steps = [digit * 10.0**power for power in range(-18, 19) for digit in (1, 2, 5)]
    low = max((step for step in steps if step < min(values)), default=min(values) / 2)
    return low, min((step for step in steps if step > max(values)), default=2 * max(values))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most so many of the numbers 1, 2 and 5 times a power of ten between two ends, the ends included."""
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**p for p in range(-18, 19) for d in digits if low <= 1.0001 * d * 10.0**p <= 1.0002 * high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _size_label(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:g} {unit}"
        count /= 1000
    return f"{count:g} GB"


def _step(value: float, ends: tuple[float, float]) -> int:
    low, high = ends
    if not math.isfinite(value):
        return STEPS - 1
    share = (value - low) / (high - low) if high > low else 0.0
    return min(max(int(share * STEPS), 0), STEPS - 1)


def _svg(key: str, title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<div class="drawing" tabindex="0" role="group" aria-label="{safe(title)}"><svg role="img" '
        f'aria-labelledby="{key}-t {key}-d" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}"><title id="{key}-t">{safe(title)}</title>'
        f'<desc id="{key}-d">{safe(description, 2000)}</desc>{"".join(parts)}</svg></div>'
    )
