"""A table of the tensors of a file, added up by module type."""

from __future__ import annotations

from nola_codec.api.inspecting import FileFacts
from nola_codec.rendering import render_named_table, render_size
from nola_codec.reporting.places import make_grid


def render_type_table(facts: FileFacts, width: int | None = None) -> str:
    """Return the sums over all layers for each module type, the most coefficients first.

    Args:
        facts: The result of `inspect`.
        width: Columns of the screen; see `render_named_table`.
    """
    grid = make_grid(
        (
            (item.name, {"coefficients": item.coefficients or 0, "kept": item.units or 0, "bytes": item.stored or 0})
            for item in facts.tensors
        ),
        {"share": lambda sums: sums["coefficients"] / max(facts.coefficients, 1)},
    )
    has_carried = any(item.stored is not None for item in facts.tensors)
    rows = [["tensors", "kept", "coefficients", "share", *(["carried"] * has_carried), "module type"]]
    for group in grid.types:
        count, carried = int(group.sums["coefficients"]), group.sums["bytes"]
        coded = [f"{group.sums['kept']:,.0f}", f"{count:,}", f"{group.rates['share']:.1%}"]
        own = coded if count or not carried else ["", "", ""]
        rows.append([str(group.weights), *own, *([render_size(carried) if carried else ""] * has_carried), group.name])
    return "\n".join(render_named_table(rows, right=range(len(rows[0]) - 1), width=width))
