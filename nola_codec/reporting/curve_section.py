"""The section of a page that shows size against error."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.api.inspecting import FileFacts
from nola_codec.api.sweeping import SweepPoint
from nola_codec.encoder.expectation import Expectation
from nola_codec.rendering import render_error, render_ratio, render_size
from nola_codec.reporting.curve import Curve
from nola_codec.reporting.markup import make_figure, make_section, make_table, put_beside
from nola_codec.reporting.peers import PeerPoint
from nola_codec.reporting.svg import Series, draw_curves, safe

_STYLES = ("second", "third", "fourth")
_BELOW = 5
"""Other ways to store the adapter are drawn if their error is at least the smallest one of our own over this."""
_NAMES = {"effective_error": "effective error", "nmse": "NMSE"}


def render_curve(curve: Curve, facts: FileFacts, expected: Expectation | None) -> str:
    """Return the section; `expected` is what to expect of the file itself."""
    fp16 = 2 * facts.parameters
    own = facts.measured.get(curve.error)
    error = _NAMES[curve.error]
    made = [point for point in curve.points if point.bytes is not None]
    series = [Series("nola-codec, other sizes", "first", [_place(curve, point) for point in made])]
    lowest = min([y for _, y, _ in series[0].points] + ([] if own is None else [own]), default=0.0) / _BELOW
    for style, name in zip(_STYLES, dict.fromkeys(peer.name for peer in curve.peers), strict=False):
        points = [_place_peer(curve, peer) for peer in curve.peers if peer.name == name]
        points = [point for point in points if point[1] >= lowest]
        series.append(Series(name, style, points))
    if own is not None:
        text = f"this file: {render_size(facts.bytes)}, {error} {render_error(own)}"
        series.append(Series("this file", "own", [(facts.bytes, own, text)]))
    described = (
        "Files of this adapter at other sizes, this file, and files of other ways to store the adapter. The tables of "
        "this section have all points."
    )
    drawing = draw_curves(
        "curve", f"Size against {error}", described, series, ("size of the file", error), ("smaller than fp16", fp16)
    )
    return make_section(
        "Size against error",
        f"<p>The same adapter at other sizes, encoded from the weights alone with this file's objective and seed. "
        f"{safe(_explain(curve), 400)}</p>",
        *(f'<p class="soft">{safe(note, 400)}</p>' for note in curve.notes),
        put_beside(
            make_figure(drawing, "Towards the lower left is better.") if drawing else "",
            _own_table(curve, facts, expected) + _after(curve),
            _peer_table(curve),
        ),
    )


def _after(curve: Curve) -> str:
    """Return the sentences below the table of other sizes."""
    texts = [f"Advice from the files of other sizes: {curve.advice}."] if curve.advice else []
    texts += [f"none: {point.problem}" for point in curve.points if point.problem]
    return "".join(f"<p>{safe(text, 400)}</p>" for text in texts)


def _explain(curve: Curve) -> str:
    if curve.error == "nmse":
        return "The error is the NMSE of the weights."
    end = (
        " That of the other ways to store the adapter follows the same definition. No task was measured with them here."
        if curve.peers
        else ""
    )
    return (
        "The error is the effective error, which the encoder kept small: all of the signal that is lost, and a small "
        f"part of the noise.{end}"
    )


def _own_table(curve: Curve, facts: FileFacts, expected: Expectation | None) -> str:
    effective = curve.error == "effective_error"
    expects = expected is not None or any(point.expectation is not None for point in curve.points)
    entries: list[tuple[float, list[str]]] = []
    for point in curve.points:
        if point.bytes is None or point.ratio is None:
            cells = ["none", *[""] * (2 + effective + expects)]
        else:
            errors = [point.effective_error, point.nmse][1 - effective :]
            cells = _cells(point.bytes, point.ratio, errors, point.expectation, expects)
        entries.append((point.bytes or point.target, [render_size(point.target), *cells]))
    errors = [facts.measured.get("effective_error"), facts.measured.get("nmse")][1 - effective :]
    own = ["this file", *_cells(facts.bytes, facts.ratio, errors, expected, expects)]
    rows = [cells for _, cells in sorted([*entries, (facts.bytes, own)], key=lambda entry: entry[0])]
    heads = ["asked for", "bytes", "than fp16", *["effective error"] * effective, "NMSE", *["gain kept"] * expects]
    caption = "This adapter at other sizes"
    if expects:
        caption += "; gain kept is that of files with the same effective error on measured tasks"
    return make_table(caption, heads, rows, range(1, len(heads)), rows.index(own))


def _cells(
    size: int, ratio: float, errors: Sequence[float | None], expected: Expectation | None, expects: bool
) -> list[str]:
    kept = [expected.range if expected is not None else "not known"] * expects
    rendered = ["" if error is None else render_error(error) for error in errors]
    return [f"{size:,}", render_ratio(ratio), *rendered, *kept]


def _peer_table(curve: Curve) -> str:
    if not curve.peers:
        return ""
    effective = curve.error == "effective_error"
    heads = ["kept as", "rank", "bytes", "than fp16", *["effective error"] * effective, "NMSE"]
    rows = []
    for peer in curve.peers:
        errors = [peer.effective_error, peer.nmse] if effective else [peer.nmse]
        size = [f"{peer.bytes:,}", render_ratio(peer.ratio)]
        rows.append([peer.name, f"{peer.rank}", *size, *(render_error(error) for error in errors)])
    return make_table(
        "Other ways to store this adapter, at one rank for all weights; bytes without names",
        heads, rows, range(1, len(heads)),
    )  # fmt: skip


def _place(curve: Curve, point: SweepPoint) -> tuple[float, float, str]:
    error = (point.effective_error if curve.error == "effective_error" else point.nmse) or 0.0
    return point.bytes or 0, error, f"{render_size(point.bytes or 0)}, {_NAMES[curve.error]} {render_error(error)}"


def _place_peer(curve: Curve, peer: PeerPoint) -> tuple[float, float, str]:
    error = peer.effective_error if curve.error == "effective_error" else peer.nmse
    text = f"{peer.name}, rank {peer.rank}: {render_size(peer.bytes)}, {_NAMES[curve.error]} {render_error(error)}"
    return peer.bytes, error, text
