"""A comparison as a picture: error and signal by layer and module type."""

from __future__ import annotations

import math
import os
from typing import Any

from nola_codec.api.comparing import Comparison
from nola_codec.api.plotting import new_figure
from nola_codec.errors import AdapterError
from nola_codec.remote import accepts_urls
from nola_codec.rendering import escape, render_error
from nola_codec.reporting.losses import make_loss_grid
from nola_codec.reporting.places import Grid, short_layer

_MOST_TICKS = 24
"""About the greatest number of layers that are named."""
_LONGEST = 40
"""The greatest number of characters of a name."""


@accepts_urls(out="out")
def plot_comparison(
    comparison: Comparison, out: str | os.PathLike[str], *, title: str = "", overwrite: bool = False
) -> None:
    """Draw NMSE and signal of each module type in each layer, as two heat maps.

    The same comparison gives the same SVG.

    Args:
        comparison: The comparison.
        out: The file to write; it ends in ``.png`` or ``.svg``.
        title: The title of the picture.
        overwrite: True replaces a file that is there.

    Raises:
        AdapterError: ``nothing-to-compare``: no weight is in both adapters.
        EncodeError, OutputExists: as `check_plot`.
    """
    grid = make_loss_grid(comparison)
    if not grid.types:
        message = "no weight is in both adapters, so there is nothing to draw"
        raise AdapterError(message, code="nothing-to-compare")
    errors = [cell.rates["nmse"] for row in grid.cells for cell in row if cell is not None]
    largest = max((error for error in errors if math.isfinite(error)), default=0.0) or 1.0
    height = 1.6 + 0.22 * len(grid.types)
    with new_figure(out, (max(6.0, 2.5 + 0.14 * len(grid.layers)), 2 * height), overwrite=overwrite) as figure:
        above, below = figure.subplots(2, 1)
        whole = f"NMSE of delta_W, {render_error(comparison.nmse)} over all"
        _draw(figure, above, grid, "nmse", whole, (0.0, largest))
        signal = "" if math.isnan(comparison.signal) else f", {comparison.signal:.1%} over all"
        _draw(figure, below, grid, "signal", f"signal kept{signal}", (0.0, 1.0))
        if title:
            figure.suptitle(_plain(title))


def _draw(figure: Any, axes: Any, grid: Grid, rate: str, title: str, ends: tuple[float, float]) -> None:
    """Draw one heat map; a layer without such a weight stays empty, and what lies beyond an end has its colour."""
    values = [[math.nan if cell is None else _clip(cell.rates[rate], ends) for cell in row] for row in grid.cells]
    image = axes.imshow(values, cmap="Blues", vmin=ends[0], vmax=ends[1], aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set_yticks(range(len(grid.types)), [_plain(each.name) for each in grid.types], fontsize="small")
    every = max(1, math.ceil(len(grid.layers) / _MOST_TICKS))
    places = range(0, len(grid.layers), every)
    axes.set_xticks(places, [_plain(short_layer(grid.layers[place].name)) for place in places], fontsize="small")
    axes.set_xlabel("layer")
    figure.colorbar(image, ax=axes, pad=0.01)


def _clip(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])


def _plain(text: str) -> str:
    """Return a text that matplotlib does not take for a formula."""
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    return escape(short).replace("$", r"\$")
