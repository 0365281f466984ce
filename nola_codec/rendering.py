"""Format sizes, errors and tables as text, in the same way for printed reports and for the command line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

_BEFORE_UNIT = re.compile(r"(?<=\d) (?=[KMG]?B\b)")
_GLUE = "\x00"  # no printed text has it: `escape` writes it out
_MOST_NAMED = 3
"""The greatest number of tensors that `render_largest` names."""


def escape(text: str, keep: str = "") -> str:
    r"""Return text whose control characters, terminal escapes and marks of direction are written out.

    Names that strangers gave may hold them, and what prints them would obey.

    Args:
        text: The text.
        keep: Characters to leave as they are, such as a new line.

    >>> escape("q_proj\x1b[2J")
    'q_proj\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def list_first(names: Sequence[str], most: int) -> str:
    """Return the first few of some names as text, and how many more there are.

    >>> list_first(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def render_size(count: float) -> str:
    """Return a number of bytes as text; KB is 1000 bytes.

    >>> render_size(157_300)
    '157.3 KB'
    """
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def render_size_in_fp16(count: int, parameters: int) -> str:
    """Return a number of bytes in its unit and exactly, beside what the parameters take in fp16.

    >>> render_size_in_fp16(19_995, 2_442_240)
    '20.0 KB (19,995 bytes), instead of 4.9 MB in fp16'
    """
    return f"{render_size(count)} ({count:,} bytes), instead of {render_size(2 * parameters)} in fp16"


def render_ratio(ratio: float) -> str:
    """Return a ratio of sizes as text that says which of the two is smaller.

    >>> render_ratio(30.02), render_ratio(0.64)
    ('30.0x smaller', '1.6x larger')
    """
    return f"{1 / ratio:.1f}x larger" if 0 < ratio < 0.995 else f"{ratio:.1f}x smaller"


def render_verdict(count: int, ratio: float, outlook: str) -> str:
    """Return the line that a report of a file begins with: its size, and what to expect of it.

    Args:
        count: The size of the file in bytes.
        ratio: How many times smaller it is than the adapter in fp16.
        outlook: What to expect, as part of a sentence.

    >>> render_verdict(10_000, 489.13, "expect 89% to 92% of the adapter's gain")
    "10.0 KB, 489.1x smaller than fp16; expect 89% to 92% of the adapter's gain"
    """
    return f"{render_size(count)}, {render_ratio(ratio)} than fp16; {outlook}"


def render_error_name(name: str) -> str:
    """The label of an error that a file holds under this name, as a printed report has it.

    >>> render_error_name("effective_error"), render_error_name("nmse")
    ('eff. error', 'NMSE')
    """
    return {"effective_error": "eff. error", "nmse": "NMSE"}.get(name, name.replace("_", " "))


def render_error(value: float) -> str:
    """Return a relative error as text with four digits, or in powers of ten if it is small.

    >>> render_error(0.0213), render_error(0.00021), render_error(0.0)
    ('0.0213', '2.10e-04', '0')
    """
    if value == 0:
        return "0"
    return f"{value:.4f}" if value >= 0.001 else f"{value:.2e}"


def render_scalings(scalings: Sequence[float], origin: str) -> str:
    """Return the scalings of an adapter and the place that they came from.

    >>> render_scalings([2.0], "tensor"), render_scalings([0.5, 1.0], "assumed")
    ('2, from its alphas', '0.5 to 1, assumed: the adapter does not say it')
    """
    ends = sorted({f"{scalings[0]:g}", f"{scalings[-1]:g}"}, key=float)
    places = {
        "tensor": "from its alphas",
        "config": "from its configuration",
        "metadata": "from its metadata",
        "option": "given by the user",
        "dialect": "the rule of the dialect if nothing says a scale",
        "assumed": "assumed: the adapter does not say it",
    }
    return f"{' to '.join(ends)}, {places.get(origin, 'from an unknown place')}"


def render_row(label: str, value: str, indent: int, width: int = 80) -> str:
    """Return a label and its value, which goes on in further lines if it is long; a single word is not broken.

    A number and its unit of bytes stay on one line.

    >>> print(render_row("bytes", "header 688 B, units 81 B", 8, 25))
    bytes   header 688 B,
            units 81 B
    """
    text = _BEFORE_UNIT.sub(_GLUE, f"{label:<{indent}}{escape(value)}")
    lines = textwrap.fill(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return lines.replace(_GLUE, " ")


def cut_common_beginning(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return what all names begin with, up to a dot, and the names without it.

    >>> cut_common_beginning(["model.layers.0.q", "model.layers.1.q"])
    ('model.layers.', ['0.q', '1.q'])
    """
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while len(names) > 1 and all(len(own) > shared and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    common = "".join(f"{part}." for part in parts[0][:shared]) if names else ""
    return common, [name[len(common) :] for name in names]


def render_named_table(
    rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), width: int | None = None
) -> list[str]:
    """Return the lines of a table whose last column has names; what all of them begin with stands above it, once.

    Args:
        rows: The rows, of which the first one is the heading.
        right: The columns that are flush right.
        width: The width of the screen. If a row is wider, each name stands on a line of its own, below its figures.
            None stands for any width.
    """
    common, names = cut_common_beginning([row[-1] for row in rows[1:]])
    shown = [rows[0], *([*row[:-1], name] for row, name in zip(rows[1:], names, strict=True))]
    lines = render_table(shown, right=right)
    if width is not None and max(map(len, lines)) > width:
        figures = render_table([row[:-1] for row in shown], right=right)
        lines = [line for pair in zip(figures, (f"  {escape(row[-1])}" for row in shown), strict=True) for line in pair]
    return [*([f"all names begin with {escape(common)}"] if common else []), *lines]


def render_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns, those in `right` flush right. The first row is the heading."""
    rows = [[escape(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def render_largest(sizes: Mapping[str, int]) -> str:
    """Return the largest of some tensors as text, with their sizes: ``lm_head.weight 16.4 MB and 3 others``.

    Args:
        sizes: The size of each tensor in bytes, by its key; there is at least one.
    """
    largest = sorted(sizes, key=lambda key: (-sizes[key], key))
    named = [f"{key} {render_size(sizes[key])}" for key in largest[:_MOST_NAMED]]
    others = len(largest) - len(named)
    if others:
        named.append(f"{others} other{'' if others == 1 else 's'}")
    return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
