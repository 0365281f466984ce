"""Write a `FileReport` as one HTML page that needs neither a network nor scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nola_codec.rendering import render_error, render_error_name, render_scalings, render_size
from nola_codec.reporting.coefficient_costs import BINS_PER_RMS
from nola_codec.reporting.data import FileReport
from nola_codec.reporting.losses import Losses
from nola_codec.reporting.places import Grid, Group
from nola_codec.reporting.style import STYLE
from nola_codec.reporting.svg import draw_bars, draw_heat_map, draw_histogram, draw_scale, draw_spectra, safe
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
        _bytes(report), _places(report), *([_losses(report.losses)] if report.losses is not None else []),
        _coefficients(report), _identity(report), _texts(report),
    ]  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{safe(name)}: report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{safe(name)}</h1>\n<p class="verdict">{safe(_sentence(report.verdict), 400)}</p>\n'
        f"<p>{safe(report.reason, 400)}</p>\n{_expected(report)}</header>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>\n<footer><p>Written by nola-codec {safe(__version__)} with <code>nola-codec report</code>; "
        "with <code>--json</code> it prints all figures of this page.</p></footer>\n</body>\n</html>\n"
    )


def _expected(report: FileReport) -> str:
    if report.expected is None or report.is_beyond:
        return ""
    rows = [[task, f"{share:.1%}"] for task, share in report.expected.items()]
    return _table("Share of the gain that files with this error kept on measured tasks", ["task", "kept"], rows, (1,))


def _bytes(report: FileReport) -> str:
    bars = [
        (part, float(size), f"{render_size(size)} ({size / report.facts.bytes:.1%})")
        for part, size in report.bytes_by_part.items()
    ]
    rows = [[part, f"{size:,}", f"{size / report.facts.bytes:.1%}"] for part, size in report.bytes_by_part.items()]
    rows.append(["all", f"{report.facts.bytes:,}", "100.0%"])
    carried = sorted((each for each in report.facts.tensors if each.stored is not None), key=lambda t: -(t.stored or 0))
    table = _table(
        "The largest carried tensors, which are stored as they came or in a smaller form",
        ["tensor", "shape", "bytes"],
        [[each.name, _shape(each.shape), f"{each.stored:,}"] for each in carried[:_MOST_ROWS]], (2,),
    )  # fmt: skip
    return _section(
        "Where the bytes go", _figure(draw_bars("parts", "Bytes by part of the file", bars), ""),
        _table("Bytes by part of the file", ["part", "bytes", "share"], rows, (1, 2)), table if carried else "",
    )  # fmt: skip


def _places(report: FileReport) -> str:
    grid = report.grid
    if not grid.types:
        return _section("Bytes by module type and layer", "<p>The file has no coded tensors.</p>")
    largest = max(cell.sums["bytes"] for row in grid.cells for cell in row if cell is not None)
    heat = _heat_map(
        "bytes", "Bytes of coefficients by module type and layer", grid, lambda cell: cell.sums["bytes"],
        lambda value: f"{value:,.1f} bytes", (0.0, largest),
    )  # fmt: skip
    heads = ["weights", "coefficients", "bits each", "bytes"]

    def row(group: Group) -> list[str]:
        count, size = group.sums["coefficients"], group.sums["bytes"]
        each = f"{8 * size / count:.3f}" if count else "none"
        return [group.name, f"{group.weights:,}", f"{count:,.0f}", each, f"{size:,.0f}"]

    return _section(
        "Bytes by module type and layer", f"<p>{_SHARES}</p>", heat,
        _table("By module type", ["type", *heads], [row(each) for each in grid.types], (1, 2, 3, 4)),
        _table("By layer", ["layer", *heads], [row(each) for each in grid.layers], (1, 2, 3, 4)),
    )  # fmt: skip


def _losses(losses: Losses) -> str:
    found, grid = losses.comparison, losses.grid
    if not grid.types:
        return _section("What was kept of the original", "<p>The file and the original have no weight in common.</p>")
    errors = [_nmse(cell) for row in grid.cells for cell in row if cell is not None and cell.sums["energy"] > 0]
    nmse_map = _heat_map(
        "nmse", "NMSE by module type and layer", grid, _nmse, render_error, (0.0, max(errors, default=0.0))
    )
    signal_map = _heat_map(
        "signal", "Signal kept by module type and layer", grid, _signal, lambda v: f"{v:.1%}", (0.0, 1.0)
    )
    energy = sum(group.sums["energy"] for group in grid.types) or 1.0

    def row(group: Group) -> list[str]:
        values = [f"{group.sums['energy'] / energy:.2%}", render_error(_nmse(group)), f"{_signal(group):.2%}"]
        return [group.name, f"{group.weights:,}", *values]

    heads = ["weights", "energy", "NMSE", "signal kept"]
    noise = ": most of it is noise, which models hardly see" if found.is_effective and found.nmse > 0.1 else ""
    missing = [
        _table(title, ["name"], [[name] for name in names[:_MOST_ROWS]])
        for title, names in (
            (f"Only in the original: {len(found.only_in_a)}", found.only_in_a),
            (f"Only in the file: {len(found.only_in_b)}", found.only_in_b),
            (f"Carried tensors that differ: {len(found.carried_different)}", found.carried_different),
        )
        if names
    ]
    return _section(
        "What was kept of the original",
        f"<p>Over {len(found.tensors):,} deltas the NMSE is {render_error(found.nmse)}{noise}. The file keeps "
        f"{found.signal:.2%} of the signal: the share of the original that is in the file, which noise does not "
        "lower.</p>",
        *(f'<p class="soft">{safe(note, 400)}</p>' for note in found.notes),
        nmse_map, signal_map,
        _table("By module type", ["type", *heads], [row(each) for each in grid.types], (1, 2, 3, 4)),
        _table("By layer", ["layer", *heads], [row(each) for each in grid.layers], (1, 2, 3, 4)),
        *missing, _spectra(losses),
    )  # fmt: skip


def _spectra(losses: Losses) -> str:
    if not losses.spectra:
        return ""
    figures = []
    for number, each in enumerate(losses.spectra):
        drawing = draw_spectra(f"spectrum{number}", f"Singular values of {each.name}", each.original, each.decoded)
        cut = f", the first {len(each.original)} of {each.rank}" if len(each.original) < each.rank else ""
        figures.append(_figure(drawing, f"{safe(each.name)}{cut}"))
    return (
        "<h3>Spectrum of the weights with most energy</h3>\n<p>Circles are the singular values of the original, "
        "squares those of what the file decodes to. A square at 0 is a component that was dropped. "
        "The others may lie above the circles: noise adds to them, and the encoder makes up for what it dropped.</p>\n"
        f'<div class="many">{"".join(figures)}</div>'
    )


def _coefficients(report: FileReport) -> str:
    figures, rows = [], []
    for number, each in enumerate(report.costs.histograms):
        count = sum(each.counts)
        if not count:
            continue
        title = f"Coefficients of {each.name}"
        drawing = draw_histogram(f"histogram{number}", title, each.counts, BINS_PER_RMS)
        figures.append(_figure(drawing, f"{safe(each.name)}: {each.ideal_bits / count:.3f} bits each"))
        zeros, bits = f"{each.zeros / count:.1%}", f"{each.ideal_bits / count:.3f}"
        rows.append([each.name, f"{count:,}", zeros, bits, f"{8 * each.stored_bytes / count:.3f}"])
    heads = ["type", "coefficients", "zeros", "entropy, bits each", "stored, bits each"]
    used = [
        [str(each.number), each.description, f"{each.symbols:,}", f"{each.ideal_bits / each.symbols:.3f}"]
        for each in report.costs.quantizers
        if each.symbols
    ]
    facts = report.facts
    return _section(
        "Coefficients and their entropy",
        f"<p>The file has {facts.coefficients:,} coefficients, and stores them in {facts.bits_per_coefficient:.3f} "
        "bits each. The histograms are those of the module types with most bytes. A coefficient is divided by the root "
        "mean square of its vector; the outer bars hold all that lies beyond. The entropy is the code length by the "
        "frequencies that the file states.</p>",
        f'<div class="many">{"".join(figures)}</div>',
        _table("Entropy and stored bits of these types", heads, rows, (1, 2, 3, 4)) if rows else "",
        _table("Quantizers in use", ["number", "quantizer", "symbols", "bits a symbol"], used, (2, 3)) if used else "",
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
    return _section(
        "Identity and provenance", _table("What the header says", ["field", "value"], rows),
        _table("Rungs", ["rung", "bytes", "errors"], rungs, (1,)) if len(rungs) > 1 else "",
        "<p>This report does not check the hashes; <code>nola-codec verify</code> does.</p>",
    )  # fmt: skip


def _errors(rung: Mapping[str, float]) -> list[str]:
    return [f"{render_error_name(name)} {render_error(value)}" for name, value in rung.items() if name != "bytes"]


def _texts(report: FileReport) -> str:
    facts = report.facts
    return _section(
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
    return _table(caption + (f"; {more} more entries are left out" if more else ""), ["key", "value"], rows)


def _nmse(group: Group) -> float:
    error, energy = group.sums["error"], group.sums["energy"]
    return error / energy if energy > 0 else float("inf") if error > 0 else 0.0


def _signal(group: Group) -> float:
    energy = group.sums["energy"]
    return group.sums["inner"] / energy if energy > 0 else 0.0


def _heat_map(
    key: str,
    title: str,
    grid: Grid,
    value: Callable[[Group], float],
    render: Callable[[float], str],
    ends: tuple[float, float],
) -> str:
    cells = [[None if cell is None else (value(cell), render(value(cell))) for cell in row] for row in grid.cells]
    rows, columns = [each.name for each in grid.types], [each.name for each in grid.layers]
    described = (
        f"{len(rows)} module types by {len(columns)} layers; the palest colour is {render(ends[0])}, the strongest "
        f"{render(ends[1])}. The tables below have the sums by type and by layer."
    )
    drawing = draw_heat_map(key, title, described, rows, columns, cells, ends)
    return _figure(drawing, f"{safe(title)}; layers from left to right{draw_scale(render(ends[0]), render(ends[1]))}")


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; the columns in `numbers` are flush right, and the first cell of a row is its heading."""
    kinds = [' class="n"' if number in numbers else "" for number in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{safe(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = []
    for row in rows:
        first, *others = (safe(cell) for cell in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{safe(caption)}"><table><caption>{safe(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(drawing: str, caption: str) -> str:
    """Return a figure; both arguments are HTML."""
    return f"<figure>{drawing}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{safe(heading)}</h2>\n{chr(10).join(part for part in parts if part)}\n</section>"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
