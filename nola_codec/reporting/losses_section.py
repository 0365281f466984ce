"""The section of a page that says what was kept of the original adapter."""

from __future__ import annotations

from nola_codec.rendering import cut_common_beginning, render_error
from nola_codec.reporting.losses import Losses
from nola_codec.reporting.markup import (
    make_figure,
    make_group_tables,
    make_heat_map,
    make_section,
    make_table,
    put_beside,
)
from nola_codec.reporting.places import Group
from nola_codec.reporting.svg import draw_spectra, safe

_MOST_NAMES = 60
"""The greatest number of names that a list shows."""


def render_losses(losses: Losses) -> str:
    """Return the section."""
    found, grid = losses.comparison, losses.grid
    if not grid.types:
        return make_section(
            "What was kept of the original", "<p>The file and the original have no weight in common.</p>"
        )
    errors = [cell.rates["nmse"] for row in grid.cells for cell in row if cell is not None and cell.sums["energy"] > 0]
    nmse_map = make_heat_map(
        "nmse", "NMSE by module type and layer", grid, lambda cell: cell.rates["nmse"], render_error,
        (0.0, max(errors, default=0.0)),
    )  # fmt: skip
    signal_map = make_heat_map(
        "signal", "Signal kept by module type and layer", grid, lambda cell: cell.rates["signal"],
        lambda value: f"{value:.1%}", (0.0, 1.0),
    )  # fmt: skip
    missing = [
        make_table(title, ["name"], [[name] for name in names[:_MOST_NAMES]])
        for title, names in (
            (f"Only in the original: {len(found.only_in_a)}", found.only_in_a),
            (f"Only in the file: {len(found.only_in_b)}", found.only_in_b),
            (f"Carried tensors that differ: {len(found.carried_different)}", found.carried_different),
        )
        if names
    ]
    return make_section(
        "What was kept of the original",
        f"<p>Over {len(found.tensors):,} deltas the NMSE is {render_error(found.nmse)}{found.explanation}. The file "
        f"keeps {found.signal:.2%} of the signal: the share of the original that is in the file, which noise does not "
        "lower.</p>",
        *(f"<p><strong>Note: {safe(doubt, 400)}</strong></p>" for doubt in losses.doubts),
        *(f'<p class="soft">{safe(note, 400)}</p>' for note in found.notes),
        put_beside(nmse_map, signal_map),
        make_group_tables("Losses", grid, ["weights", "energy", "NMSE", "signal kept"], _cells),
        *missing, _spectra(losses),
    )  # fmt: skip


def _cells(group: Group) -> list[str]:
    rates = group.rates
    return [
        f"{group.weights:,}", f"{rates['energy_share']:.2%}", render_error(rates["nmse"]), f"{rates['signal']:.2%}",
    ]  # fmt: skip


def _spectra(losses: Losses) -> str:
    if not losses.spectra:
        return ""
    figures = []
    common, names = cut_common_beginning([each.name for each in losses.spectra])
    begin = f", names without {common} at their beginning" if common else ""
    for number, (name, each) in enumerate(zip(names, losses.spectra, strict=True)):
        drawing = draw_spectra(f"spectrum{number}", f"Singular values of {each.name}", each.original, each.decoded)
        cut = f", the first {len(each.original)} of {each.rank}" if len(each.original) < each.rank else ""
        figures.append(make_figure(drawing, f"{safe(name)}{cut}"))
    return (
        f"<h3>Spectrum of the weights with most energy{safe(begin)}</h3>\n"
        "<p>Circles are the singular values of the original, squares those of what the file decodes to. A square at 0 "
        "is a component that was dropped. The others may lie above the circles: noise adds to them, and the encoder "
        "makes up for what it dropped.</p>\n"
        f'<div class="many">{"".join(figures)}</div>'
    )
