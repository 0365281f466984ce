"""Write a `FileReport` as one HTML page that needs neither a network nor scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.rendering import render_error, render_error_name, render_scalings, render_size
from nola_codec.reporting.coefficient_costs import BINS_PER_RMS
from nola_codec.reporting.curve_section import render_curve
from nola_codec.reporting.data import FileReport
from nola_codec.reporting.evaluation_section import render_evaluation, state_result
from nola_codec.reporting.losses_section import render_losses
from nola_codec.reporting.markup import (
    make_figure,
    make_group_tables,
    make_heat_map,
    make_section,
    make_table,
    put_beside,
)
from nola_codec.reporting.places import Group
from nola_codec.reporting.style import STYLE
from nola_codec.reporting.svg import draw_bars, draw_histogram, safe
from nola_codec.version import __version__

_MOST_ROWS = 60
"""The greatest number of entries of the metadata, the configuration and lists of names that the page shows."""
_SHARES = (
    "A block of a file codes several weights together. Its bytes are divided among them in proportion to the code "
    "lengths of their symbols."
)


def render_page(report: FileReport) -> str:
    """Return the page as text. The same report gives the same page."""
    name = str(report.facts.name).replace("\\", "/").rsplit("/", 1)[-1]
    sections = [
        render_evaluation(report.task) if report.task is not None else "",
        render_curve(report.curve, report.facts, report.expectation) if report.curve is not None else "",
        render_losses(report.losses) if report.losses is not None else "",
        _bytes(report), _places(report), _coefficients(report), _identity(report), _texts(report),
    ]  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{safe(name)}: report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{safe(name)}</h1>\n<p class="verdict">{safe(_sentence(report.verdict), 400)}</p>\n'
        f"{_measured(report)}<p>{safe(report.reason, 400)}</p>\n{_expected(report)}</header>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer><p>Written by nola-codec {safe(__version__)} with <code>nola-codec report</code>; "
        "with <code>--json</code> it prints all figures of this page.</p></footer>\n</body>\n</html>\n"
    )


def _measured(report: FileReport) -> str:
    return "" if report.task is None else f'<p class="verdict">{safe(state_result(report.task), 400)}</p>\n'


def _expected(report: FileReport) -> str:
    if report.expected is None or report.is_beyond:
        return ""
    rows = [[task, f"{share:.1%}"] for task, share in report.expected.items()]
    return make_table(
        "Share of the gain that files with this error kept on measured tasks", ["task", "kept"], rows, (1,)
    )


def _bytes(report: FileReport) -> str:
    bars = [
        (part, float(size), f"{render_size(size)} ({report.share_by_part[part]:.1%})")
        for part, size in report.bytes_by_part.items()
    ]
    rows = [[part, f"{size:,}", f"{report.share_by_part[part]:.1%}"] for part, size in report.bytes_by_part.items()]
    rows.append(["all", f"{report.facts.bytes:,}", "100.0%"])
    carried = sorted((each for each in report.facts.tensors if each.stored is not None), key=lambda t: -(t.stored or 0))
    table = make_table(
        "The largest carried tensors, which are stored as they came or in a smaller form",
        ["tensor", "shape", "bytes"],
        [[each.name, _shape(each.shape), f"{each.stored:,}"] for each in carried[:_MOST_ROWS]], (2,),
    )  # fmt: skip
    return make_section(
        "Where the bytes go",
        put_beside(
            make_figure(draw_bars("parts", "Bytes by part of the file", bars), ""),
            make_table("Bytes by part of the file", ["part", "bytes", "share"], rows, (1, 2)),
        ),
        table if carried else "",
    )  # fmt: skip


def _places(report: FileReport) -> str:
    grid = report.grid
    if not grid.types:
        return make_section("Bytes by module type and layer", "<p>The file has no coded tensors.</p>")
    largest = max(cell.sums["bytes"] for row in grid.cells for cell in row if cell is not None)
    heat = make_heat_map(
        "bytes", "Bytes of coefficients by module type and layer", grid, lambda cell: cell.sums["bytes"],
        lambda value: f"{value:,.1f} bytes", (0.0, largest),
    )  # fmt: skip
    heads = ["weights", "coefficients", "bits each", "bytes"]

    def cells(group: Group) -> list[str]:
        count, size = group.sums["coefficients"], group.sums["bytes"]
        each = f"{group.rates['bits_each']:.3f}" if count else "none"
        return [f"{group.weights:,}", f"{count:,.0f}", each, f"{size:,.0f}"]

    return make_section(
        "Bytes by module type and layer", f"<p>{_SHARES}</p>", heat,
        make_group_tables("Bytes", grid, heads, cells),
    )  # fmt: skip


def _coefficients(report: FileReport) -> str:
    figures, rows = [], []
    for number, each in enumerate(report.costs.histograms):
        count = sum(each.counts)
        if not count:
            continue
        title = f"Coefficients of {each.name}"
        drawing = draw_histogram(f"histogram{number}", title, each.counts, BINS_PER_RMS)
        bits = f"{each.ideal_bits_each:.3f}"
        figures.append(make_figure(drawing, f"{safe(each.name)}: {bits} bits each"))
        rows.append([each.name, f"{count:,}", f"{each.zero_share:.1%}", bits, f"{each.stored_bits_each:.3f}"])
    heads = ["type", "coefficients", "zeros", "entropy, bits each", "stored, bits each"]
    used = [
        [str(each.number), each.description, f"{each.symbols:,}", f"{each.bits_each:.3f}"]
        for each in report.costs.quantizers
        if each.symbols
    ]
    facts = report.facts
    return make_section(
        "Coefficients and their entropy",
        f"<p>The file has {facts.coefficients:,} coefficients, and stores them in {facts.bits_per_coefficient:.3f} "
        "bits each. The histograms are those of the module types with most bytes. A coefficient is divided by the root "
        "mean square of its vector; the outer bars hold all that lies beyond. The entropy is the code length by the "
        "frequencies that the file states.</p>",
        f'<div class="many">{"".join(figures)}</div>',
        make_table("Entropy and stored bits of these types", heads, rows, (1, 2, 3, 4)) if rows else "",
        make_table("Quantizers in use", ["number", "quantizer", "symbols", "bits each"], used, (2, 3)) if used else "",
    )  # fmt: skip


def _identity(report: FileReport) -> str:
    facts = report.facts
    draft = ", a draft" if facts.draft else ""
    rows = [
        ["size", f"{facts.bytes:,} bytes"],
        ["parameters", f"{facts.parameters:,}"],
        ["format", f"version {facts.format_version}.{facts.format_revision}{draft}"],
        ["written by", facts.writer],
        ["dialect", f"{facts.dialect} ({facts.method})" if facts.method else facts.dialect],
        ["base model", facts.base_model or "not named"],
        ["revision of the base model", facts.base_revision or "not named"],
        ["scaling", render_scalings(facts.scalings, facts.scale_origin) if facts.scalings else "none"],
        ["basis", ", ".join(facts.bases) or "none"],
        ["form", ", ".join(facts.form) or "none"],
        ["generator", facts.generator],
        ["seed", str(facts.seed)],
        ["quantizers", str(facts.quantizers)],
        ["entropy codecs", ", ".join(facts.entropy) or "none"],
        *([render_error_name(name), render_error(value)] for name, value in facts.measured.items()),
        ["content SHA-256", facts.content_sha256],
        ["decoded SHA-256", facts.decoded_sha256],
    ]
    if facts.reference is not None:
        rows += [["reference", facts.reference["name"] or "no name"], ["its SHA-256", facts.reference["sha256"]]]
    rungs = [[str(number), f"{rung['bytes']:,}", ", ".join(_errors(rung))] for number, rung in enumerate(facts.rungs)]
    return make_section(
        "Identity and provenance", make_table("What the header says", ["field", "value"], rows),
        make_table("Rungs", ["rung", "bytes", "errors"], rungs, (1,)) if len(rungs) > 1 else "",
        "<p>This report does not check the hashes; <code>nola-codec verify</code> does.</p>",
    )  # fmt: skip


def _errors(rung: Mapping[str, float]) -> list[str]:
    return [f"{render_error_name(name)} {render_error(value)}" for name, value in rung.items() if name != "bytes"]


def _texts(report: FileReport) -> str:
    facts = report.facts
    return make_section(
        "Configuration and metadata",
        "<p>The maker of the adapter wrote these texts. Long ones are cut in the middle.</p>",
        _mapping("Metadata", facts.metadata), _mapping("Configuration", facts.config or {}),
    )  # fmt: skip


def _mapping(caption: str, entries: Mapping[str, Any]) -> str:
    if not entries:
        return f"<p>{caption}: none.</p>"
    rows = [
        [str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in sorted(entries.items())[:_MOST_ROWS]
    ]
    more = len(entries) - len(rows)
    return make_table(caption + (f"; {more} more entries are left out" if more else ""), ["key", "value"], rows)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
