"""The parts that a page is made of: sections, tables, figures and heat maps, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nola_codec.rendering import cut_common_beginning
from nola_codec.reporting.places import Grid, Group
from nola_codec.reporting.svg import draw_heat_map, draw_scale, safe


def make_section(heading: str, *parts: str) -> str:
    """Return a section; the parts are HTML, and empty ones are left out."""
    return f"<section><h2>{safe(heading)}</h2>\n{chr(10).join(part for part in parts if part)}\n</section>"


def make_figure(drawing: str, caption: str) -> str:
    """Return a figure; both arguments are HTML."""
    return f"<figure>{drawing}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def make_table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), marked: int = -1
) -> str:
    """Return a table; all cells are text.

    Args:
        caption: What the table shows.
        heads: The headings of the columns.
        rows: The cells of each row; the first one is the heading of the row.
        numbers: The columns that are flush right.
        marked: The number of a row in bold; -1 for none.
    """
    kinds = [' class="n"' if number in numbers else "" for number in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{safe(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body, own = [], ' class="own"'
    for number, row in enumerate(rows):
        first, *others = (safe(cell) for cell in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        body.append(f'<tr{own if number == marked else ""}><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{safe(caption)}"><table><caption>{safe(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def put_beside(*parts: str) -> str:
    """Return parts of a page, as HTML, that stand beside each other where the page is wide enough."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def make_heat_map(
    key: str,
    title: str,
    grid: Grid,
    value: Callable[[Group], float],
    render: Callable[[float], str],
    ends: tuple[float, float],
) -> str:
    """Return the heat map of a figure by module type and layer.

    Args:
        key: The beginning of the ids of its parts.
        title: The name of the figure.
        grid: The weights by module type and layer.
        value: The figure of a group of weights.
        render: The figure as text.
        ends: The values of the palest and of the strongest colour.
    """
    cells = [[None if cell is None else (value(cell), render(value(cell))) for cell in row] for row in grid.cells]
    rows, columns = [each.name for each in grid.types], [each.name for each in grid.layers]
    described = (
        f"{len(rows)} module types by {len(columns)} layers; the palest colour is {render(ends[0])}, the strongest "
        f"{render(ends[1])}. The tables below have the sums by type and by layer."
    )
    drawing = draw_heat_map(key, title, described, rows, columns, cells, ends)
    caption = f"{safe(title)}; layers from left to right{draw_scale(render(ends[0]), render(ends[1]))}"
    return make_figure(drawing, caption)


def make_group_tables(what: str, grid: Grid, heads: Sequence[str], cells: Callable[[Group], list[str]]) -> str:
    """Return the tables by module type and by layer, beside each other where the page is wide enough.

    Args:
        what: What the tables show, since no two tables of a page may have one name.
        grid: The weights by module type and layer.
        heads: The headings of the figures, which are flush right.
        cells: The figures of a group as text.
    """
    numbers = range(1, len(heads) + 1)
    common, names = _shorten([each.name for each in grid.layers])
    begin = f"; names without {common} at their beginning" if common else ""
    types = [[each.name, *cells(each)] for each in grid.types]
    layers = [[name, *cells(each)] for name, each in zip(names, grid.layers, strict=True)]
    return put_beside(
        make_table(f"{what} by module type", ["type", *heads], types, numbers),
        make_table(f"{what} by layer{begin}", ["layer", *heads], layers, numbers),
    )


def _shorten(layers: Sequence[str]) -> tuple[str, list[str]]:
    """Return what the names of all layers with a dot begin with, and the names of all layers without it."""
    common, names = cut_common_beginning([name for name in layers if "." in name])
    short = iter(names)
    return common, [next(short) if "." in name else name for name in layers]
