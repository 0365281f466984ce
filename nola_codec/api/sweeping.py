"""`sweep`: one adapter at many sizes or errors, and what others need for the same error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nola_codec import adapters
from nola_codec.adapters import AnySource
from nola_codec.api.encoding import source_size
from nola_codec.api.inspecting import inspect
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter, prepare_form
from nola_codec.encoder.rules import check_rules
from nola_codec.encoder.sizes import parse_size
from nola_codec.errors import EncodeError
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.model.adapter import Adapter
from nola_codec.peers.columns import component
from nola_codec.peers.svd import svd_peers
from nola_codec.progress import Progress

_FIRST = 5000
"""Least of the default sizes, if the adapter is large enough and its names leave room."""
_NOTHING = 0.9999
"""An error that all but an empty file beats: its size is about the least there is."""
_RATES = ("nmse", "size", "ratio", "error", "num_basis", "bits")


@dataclass(frozen=True)
class PeerFile:
    """What one peer needs for a point's NMSE.

    Attributes:
        name: Of the peer.
        bytes: Of its smallest file, tensors carried as they are included; None where no setting gets there.
        ratio: Those bytes over ours.
        setting: What that file is.
        nmse: What it reaches.
    """

    name: str
    bytes: int | None = None
    ratio: float | None = None
    setting: str = ""
    nmse: float | None = None


@dataclass(frozen=True)
class SweepPoint:
    """One target.

    Attributes:
        target: Bytes, or an error.
        problem: Why there is no file, and the fields below are None; empty where there is one.
        bytes: Of the file.
        ratio: Against the adapter in fp16.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2, measured on the decoded file.
        effective_error: Of the file where that is the objective.
        seconds: Of its encode, without the canonical form, which all points share.
        peers: Empty where none were asked for, or where the NMSE is 1 or more: an empty file does as well.
    """

    target: float
    problem: str = ""
    bytes: int | None = None
    ratio: float | None = None
    nmse: float | None = None
    effective_error: float | None = None
    seconds: float | None = None
    peers: tuple[PeerFile, ...] = ()


@dataclass(frozen=True)
class SweepReport:
    """A whole curve.

    Attributes:
        by: What the targets are: ``size`` or ``error``.
        objective: ``nmse`` or ``effective``.
        source_bytes: Of the adapter as it was given.
        parameters: Numbers in the adapter.
        peers: Names of the peers asked, in the order of the points' own.
        points: In the order of the targets.
        seconds: Wall time.
        notes: What the user should know, one sentence each.
    """

    by: str
    objective: str
    source_bytes: int
    parameters: int
    peers: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    seconds: float
    notes: tuple[str, ...] = ()


def sweep(
    source: AnySource,
    *,
    sizes: Sequence[int | str] | None = None,
    errors: Sequence[float] | None = None,
    objective: str = "nmse",
    peers: bool = True,
    config: Mapping[str, Any] | None = None,
    carry_unknown: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SweepReport:
    """Encode an adapter at many sizes or errors, writing nothing, and ask what peers need for the same NMSE.

    Args:
        source: What `encode` takes.
        sizes: Bytes of each file, as numbers or as ``"50KB"``; with neither these nor errors, sizes from 5 KB, or
            the least there can be, to a quarter of the adapter in fp16.
        errors: Target of each file in the objective.
        objective: ``nmse``, the measure that all codecs share, or ``effective``, what `encode` takes by default.
        peers: Ask `nola_codec.peers.svd.svd_peers`.
        config: The adapter's configuration, for bytes and streams.
        carry_unknown: Carry tensors that the dialect does not know, exact, instead of refusing them.
        progress: Called as (stage, done, total).
        **options: Fields of `EncodeOptions` that set no rate: rank, basis, generator, seed, shared_basis, entropy.

    Raises:
        AdapterError: the source cannot be read.
        EncodeError: bad options. A target that cannot be reached is a point that says so.

    Example:
        >>> report = sweep("lora_dir", sizes=["10KB", "50KB"])  # doctest: +SKIP
        >>> [(p.bytes, p.nmse) for p in report.points]  # doctest: +SKIP
    """
    begin = time.perf_counter()
    if refused := [name for name in _RATES if name in options]:
        raise _bad(f"sweep sets the rate itself, by sizes or errors: leave out {', '.join(refused)}")
    if sizes is not None and errors is not None:
        raise _bad("choose one of sizes, errors")
    try:
        base = EncodeOptions(objective=objective, progress=progress, **options)
    except TypeError as error:
        raise _bad(str(error).replace("EncodeOptions.__init__()", "sweep()")) from error
    by = "size" if errors is None else "error"
    targets: Sequence[float] | None = errors
    if sizes is not None:
        targets = [parse_size(s) if isinstance(s, str) else s for s in sizes]
    if targets is not None:
        if not targets:
            raise _bad("no sizes or errors given")
        for target in targets:
            _at(base, by, target)  # refuses what makes no sense before any work
    adapter = adapters.read(source, config=config, carry_unknown=carry_unknown)
    check_rules(adapter, base)
    if progress is not None:
        progress("canonical form", 0, 1)
    files = _Files(adapter, base, prepare_form(adapter, base), source_size(source, adapter))
    if targets is None:
        targets = files.choose_sizes()
    points = []
    carried = 0
    for target in targets:
        point, carried_here = files.point(by, target)
        carried = max(carried, carried_here)  # the same in every file
        points.append(point)
    del files  # and the form with it: each peer's own is as large
    asked: tuple[str, ...] = ()
    if peers and adapter.modules:
        asked, points = _with_peers(adapter, points, carried, progress)
    return SweepReport(
        by=by,
        objective=base.objective_name,
        source_bytes=source_size(source, adapter),
        parameters=adapter.parameters,
        peers=asked,
        points=tuple(points),
        seconds=time.perf_counter() - begin,
        notes=_notes(base.objective_name, points, bool(asked)),
    )


@dataclass(frozen=True)
class _Files:
    """Encodes of one adapter that share its canonical form."""

    adapter: Adapter
    options: EncodeOptions
    form: CanonicalForm
    source_bytes: int

    def point(self, by: str, target: float) -> tuple[SweepPoint, int]:
        """Return the point of a target, and the bytes of tensors that its file carries as they came."""
        start = time.perf_counter()
        try:
            data, report = encode_adapter(
                self.adapter, _at(self.options, by, target), source_bytes=self.source_bytes, form=self.form
            )
        except EncodeError as error:
            return SweepPoint(target, problem=str(error)), 0
        point = SweepPoint(
            target=target,
            bytes=report.bytes,
            ratio=report.ratio,
            nmse=report.nmse,
            effective_error=report.effective_error,
            seconds=time.perf_counter() - start,
        )
        return point, inspect(data)["bytes_by_part"]["carried"]

    def choose_sizes(self) -> list[int]:
        """Return 1-2-5 numbers of bytes, from 5 KB or the least there can be, to a quarter of the adapter in fp16."""
        least = self.point("error", _NOTHING)[0].bytes or 1
        return default_sizes(least, 2 * self.adapter.parameters)


def default_sizes(least: int, fp16: int) -> list[int]:
    """Sizes for a curve: 1-2-5 numbers from 5 KB, or less for a small adapter, to a quarter of `fp16`.

    Where `least` leaves no room for that, from there.

    >>> default_sizes(1700, 590_000)
    [5000, 10000, 20000, 50000, 100000]
    >>> default_sizes(801, 3000)
    [810, 1000, 2000]
    """
    top = max(fp16 // 4, 3 * least)
    start = max(least, min(_FIRST, top // 8))
    steps = [digit * 10**power for power in range(13) for digit in (1, 2, 5)]
    inside = [step for step in steps if start <= step <= top]
    digits = 10 ** max(0, len(str(least)) - 2)
    first = -(-least // digits) * digits
    return [first, *(step for step in inside if step > first)] if start == least else inside


def _with_peers(
    adapter: Adapter, points: Sequence[SweepPoint], carried: int, progress: Progress | None
) -> tuple[tuple[str, ...], list[SweepPoint]]:
    """Names of the peers, and the points with what each needs; one peer at a time is in memory."""
    components = [component(m.name, m.lora_B, m.lora_A, m.scaling) for m in adapter.modules]
    makers = svd_peers(components)
    files: list[list[PeerFile]] = [[] for _ in points]
    for done, (name, make) in enumerate(makers.items()):
        if progress is not None:
            progress("peers", done, len(makers))
        peer = make()
        for point, found in zip(points, files, strict=True):
            if point.bytes is None or point.nmse is None or point.nmse >= 1:
                continue
            best = peer.best_at(point.nmse)
            if best is None:
                found.append(PeerFile(name))
            else:
                size = best.bytes + carried
                found.append(PeerFile(name, size, size / point.bytes, best.setting, best.nmse))
    if progress is not None:
        progress("peers", len(makers), len(makers))
    return tuple(makers), [replace(p, peers=tuple(found)) for p, found in zip(points, files, strict=True)]


def _at(options: EncodeOptions, by: str, target: float) -> EncodeOptions:
    return replace(options, size=int(target)) if by == "size" else replace(options, error=target)


def _notes(objective: str, points: Sequence[SweepPoint], compared: bool) -> tuple[str, ...]:
    notes = []
    if compared and objective != "nmse":
        notes.append(
            "peers are matched on the NMSE, which the effective objective does not hold down: compare with them by "
            "the objective nmse"
        )
    if compared and any(p.nmse is not None and p.nmse >= 1 for p in points):
        notes.append("where the NMSE is 1 or more there is nothing for peers to match: an empty file has 1")
    return tuple(notes)


def _bad(message: str) -> EncodeError:
    return EncodeError(message, code="option")
