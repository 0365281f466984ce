"""Format sizes, errors and tables as text, in the same way for printed reports and for the command line."""

from __future__ import annotations

from collections.abc import Sequence


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


def render_ratio(ratio: float) -> str:
    """Return a ratio of sizes as text that says which of the two is smaller.

    >>> render_ratio(30.02), render_ratio(0.64)
    ('30.0x smaller', '1.6x larger')
    """
    return f"{1 / ratio:.1f}x larger" if 0 < ratio < 0.995 else f"{ratio:.1f}x smaller"


def render_error_name(name: str) -> str:
    """The label of an error that a file holds under this name, as a printed report has it.

    >>> render_error_name("effective_error"), render_error_name("nmse")
    ('eff. error', 'NMSE')
    """
    return {"effective_error": "eff. error", "nmse": "NMSE"}.get(name, name.replace("_", " "))


def render_error(value: float) -> str:
    """Return a relative error as text with four digits, or in powers of ten if it is small.

    >>> render_error(0.0213), render_error(0.00021)
    ('0.0213', '2.10e-04')
    """
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


def render_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns, those in `right` flush right. The first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
