"""`truncate`: the coarser file that a progressive one begins with."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from nola_codec.api.arguments import require_source, require_target, write_output
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.container.rungs import prune_quantizers
from nola_codec.container.units import pack_units
from nola_codec.container.writer import assemble
from nola_codec.entropy import adaptive
from nola_codec.errors import EncodeError
from nola_codec.remote import accepts_urls, is_url, open_url
from nola_codec.rendering import render_error, render_error_name, render_size
from nola_codec.sizes import parse_size


@dataclass(frozen=True)
class TruncateReport:
    """The file that was cut out. `print(report)` shows what the command line shows.

    Attributes:
        bytes: Size of the new file.
        rung: Number of its last rung, from 0.
        rungs: How many rungs the source has.
        measured: Errors that the encoder measured at this rung, by name.
    """

    bytes: int
    rung: int
    rungs: int
    measured: dict[str, float]

    def __str__(self) -> str:
        rungs = f"rungs 0 to {self.rungs - 1}" if self.rungs > 1 else "the only one; the file is not progressive"
        lines = [("rung", f"{self.rung} ({rungs})"), ("size", f"{render_size(self.bytes)} ({self.bytes:,} bytes)")]
        lines += [(render_error_name(name), render_error(value)) for name, value in self.measured.items()]
        return "\n".join(f"{label:<13}{value}" for label, value in lines)


@accepts_urls(out="out")
def truncate(
    source: Source,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    size: int | str | None = None,
    rung: int | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> TruncateReport:
    """Cut a file at one of its rungs. Nothing is decoded or coded anew.

    The source may itself be the beginning of a file, as an interrupted download leaves it.

    Args:
        source: The `.nola` file.
        out: Path or binary stream to write to; None only reports.
        size: Bytes that the new file may take, as a number or as ``"50KB"``: the finest rung that fits.
        rung: Number of the rung, from 0. With neither: the finest that is there whole.
        overwrite: Replace a file that is there.
        limits: As in `load`.

    Raises:
        EncodeError: ``unreachable``: the coarsest rung is larger than `size`; ``not-progressive``: so is the
            only one; ``option``: both size and rung.
        FormatError, ChecksumMismatch: the file is damaged.
        AdapterError: ``unknown-rung``: it has no such rung.
        OutputExists: `out` is there and `overwrite` is false.
    """
    if size is not None and rung is not None:
        raise EncodeError("choose one of size, rung", code="option")
    require_source(source)
    require_target(out, overwrite=overwrite)
    limit = parse_size(size) if isinstance(size, str) else size
    with ExitStack() as opened:
        if isinstance(source, str) and is_url(source):  # once, so that each byte is asked for once
            source = opened.enter_context(open_url(source))
        data, report = _cut_to(source, rung, limit, limits)
    write_output(out, data)
    return report


def _cut_to(source: Source, rung: int | None, limit: int | None, limits: Limits | None) -> tuple[bytes, TruncateReport]:
    """Cut at a rung, or at the finest one that fits into a size."""
    rungs = None
    if limit is not None:
        rung, rungs = _finest_within(source, limit, limits)
    data, report = _cut(source, rung, rungs, limits)
    while limit is not None and len(data) > limit:
        if report.rungs == 1:
            message = f"the file is not progressive, so its {len(data)} bytes cannot be cut to {limit}"
            raise EncodeError(f"{message}; `encode --progressive` makes files that can be cut", code="not-progressive")
        if report.rung == 0:
            raise EncodeError(f"size {limit} bytes cannot be reached: the coarsest rung takes {len(data)} bytes",
                              code="unreachable")  # fmt: skip
        data, report = _cut(source, report.rung - 1, report.rungs, limits)
    return data, report


def _finest_within(source: Source, limit: int, limits: Limits | None) -> tuple[int, int]:
    """Return the finest rung whose sections alone fit into a size, and the number of rungs; only the header is read."""
    if hasattr(source, "seek"):
        source.seek(0)
    with open_container(source, limits, partial=True) as container:
        there = range(len(container.header.rungs))
        fitting = [rung for rung in there if container.rung_bytes(rung) - container.header_length <= limit]
        return max(fitting, default=0), container.rungs


def _cut(source: Source, rung: int | None, rungs: int | None, limits: Limits | None) -> tuple[bytes, TruncateReport]:
    if hasattr(source, "seek"):
        source.seek(0)
    with open_container(source, limits, rung=rung, partial=True) as container:
        data = _file(container)
        last = len(container.header.rungs) - 1
        return data, TruncateReport(len(data), last, rungs or container.rungs, dict(container.header.measured))


def _file(container: Container) -> bytes:
    """Return the bytes of an open file at its rung. Its units sections are written anew, for fewer quantizers."""
    ladder = []
    for rung in range(len(container.header.rungs)):
        container.select(rung)
        ladder.append(container.read_units().coded)
    header = prune_quantizers(container.header)
    sections = [(section.codec, container.section(i)) for i, section in enumerate(header.sections)]
    units = pack_units(
        ladder,
        [rung.allocation for rung in header.rungs],
        header.amplitude_slope,
        [rung.exponents for rung in header.rungs],
    )
    for rung, data in enumerate(units):
        sections[header.units_section(rung)] = (adaptive.id, data)
    return assemble(header, sections)
