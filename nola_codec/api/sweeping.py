"""`sweep`: one adapter at many sizes or errors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nola_codec import adapters
from nola_codec.api.arguments import ConfigObject
from nola_codec.api.encoding import source_size
from nola_codec.api.keywords import ObjectiveName, SweepKeywords, check_keywords
from nola_codec.api.live_sources import AdapterInput, open_live
from nola_codec.encoder.expectation import MOST_MEASURED_ERROR, Expectation, advise_size
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter, prepare_form
from nola_codec.encoder.rules import choose_objective
from nola_codec.errors import EncodeError
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.model.adapter import Adapter
from nola_codec.remote import accepts_urls
from nola_codec.rendering import render_error, render_size, render_table
from nola_codec.sizes import parse_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FIRST = 5000
"""Bytes where the default sizes begin, if the adapter is large enough and its names leave room."""
_NOTHING = 0.9999
"""An error that every file but an empty one stays under: its file is about the smallest there can be."""
_RATES = ("nmse", "size", "ratio", "error", "num_basis", "bits")


@dataclass(frozen=True)
class SweepPoint:
    """The file of one target.

    Attributes:
        target: Bytes, or an error.
        problem: The reason why there is no file, in which case the fields below are None; else empty.
        bytes: Size of the file.
        ratio: How many times smaller than the adapter in fp16.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2, measured on the decoded file.
        effective_error: The file's effective error, if that is the objective.
        seconds: Time of its encode, without the canonical form, which all points share.
        expectation: What files of this effective error kept on measured tasks, as in `EncodeReport`.
    """

    target: float
    problem: str = ""
    bytes: int | None = None
    ratio: float | None = None
    nmse: float | None = None
    effective_error: float | None = None
    seconds: float | None = None
    expectation: Expectation | None = None


@dataclass(frozen=True)
class SweepReport:
    """A whole curve. `print(report)` shows it as a table.

    Attributes:
        by: The kind of the targets: ``size``, ``nmse`` or ``error``.
        objective: ``effective`` or ``nmse``.
        source_bytes: Size of the adapter as it was given.
        parameters: Numbers in the adapter.
        points: Files, in the order of the targets.
        seconds: Wall time.
        notes: Sentences that tell how the adapter was read.
    """

    by: str
    objective: str
    source_bytes: int
    parameters: int
    points: tuple[SweepPoint, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        effective = self.objective == "effective"
        expects = any(point.expectation for point in self.points)
        rows = [["target", "file", "vs fp16", *["eff. error"] * effective, "NMSE", *["gain kept"] * expects]]
        for point in self.points:
            target = render_size(point.target) if self.by == "size" else f"{point.target:g}"
            if point.bytes is None or point.nmse is None or point.ratio is None:
                rows.append([target, "none", *[""] * (len(rows[0]) - 2)])
                continue
            own = [render_error(point.effective_error or 0.0)] * effective
            kept = [point.expectation.range if point.expectation else ""] * expects
            size = [render_size(point.bytes), f"{point.ratio:.1f}x"]
            rows.append([target, *size, *own, render_error(point.nmse), *kept])
        lines = render_table(rows, right=range(1, len(rows[0])))
        lines += [f"none: {point.problem}" for point in self.points if point.problem]
        return "\n".join([*lines, *([f"advice: {self.advice}"] if self.advice else [])])

    @property
    def advice(self) -> str:
        """The sentence that says which of the files to take; empty where no measured task says anything."""
        return advise_size({p.bytes: p.expectation for p in self.points if p.bytes and p.expectation})


@accepts_urls("source")
def sweep(
    source: AdapterInput,
    *,
    sizes: Sequence[int | str] | None = None,
    nmse: Sequence[float] | None = None,
    errors: Sequence[float] | None = None,
    objective: ObjectiveName | None = None,
    config: Mapping[str, Any] | ConfigObject | None = None,
    carry_unknown: bool = False,
    scale: float | None = None,
    **options: Unpack[SweepKeywords],
) -> SweepReport:
    """Encode an adapter at many sizes or errors, writing nothing: the whole curve of size against error.

    At most one of sizes, nmse and errors. With none of them, sizes go from 5 KB, or from the smallest file that makes
    sense, to a quarter of the adapter in fp16.

    Args:
        source: What `encode` takes.
        sizes: Bytes of each file, as numbers or as ``"50KB"``.
        nmse: The NMSE of each file; the objective is then ``nmse``.
        errors: The error of each file in the objective.
        objective: The error that is kept small, ``effective`` or ``nmse``, as in `encode`.
        config: The adapter's configuration, for bytes and streams.
        carry_unknown: True carries tensors that the dialect does not know, exact, instead of refusing them.
        scale: The scaling, for an adapter that does not say it, as in `encode`.
        **options: Those of `nola_codec.api.keywords.SweepKeywords`: rank, shared_basis, importance, seed,
            entropy, thorough, progress.

    Raises:
        AdapterError: The source cannot be read.
        EncodeError: Bad options. A target that cannot be reached is a point that says so.

    Example:
        >>> report = sweep("lora_dir", sizes=["10KB", "50KB"])  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    begin = time.perf_counter()
    given: Mapping[str, Any] = options
    if refused := [name for name in _RATES if name in given]:
        raise _option_error(f"sweep sets the rate itself, by sizes, nmse or errors: leave out {', '.join(refused)}")
    check_keywords("sweep", {**given, "scale": scale}, SweepKeywords, "scale")
    lists = {"sizes": sizes, "nmse": nmse, "errors": errors}
    for name, values in lists.items():
        if isinstance(values, str | bytes) or not (values is None or isinstance(values, Iterable)):
            raise _option_error(f"{name}: expected a list, found {values!r}")
    chosen = [name for name, values in lists.items() if values is not None]
    if len(chosen) > 1:
        raise _option_error(f"choose one of {', '.join(chosen)}")
    if nmse is not None and objective not in (None, "nmse"):
        raise _option_error("nmse is a target of the objective nmse; use errors with another objective")
    base = EncodeOptions(objective="nmse" if nmse is not None else objective, **given)
    by = chosen[0].removesuffix("s") if chosen else "size"
    targets = _targets(lists[chosen[0]]) if chosen else None
    for target in targets or ():
        _with_target(base, by, target)  # refuses what makes no sense before any work
    readable, plain = open_live(source, config)
    adapter = adapters.read(readable, config=plain, carry_unknown=carry_unknown, scale=scale)
    adapter, base = choose_objective(adapter, base)
    if base.progress is not None:
        base.progress("decomposing", 0, 0)
    files = _Files(adapter, base, prepare_form(adapter, base), source_size(readable, adapter))
    wanted: Sequence[float] = files.default_targets() if targets is None else targets
    points = [files.point(by, target, f"file {n} of {len(wanted)}") for n, target in enumerate(wanted, 1)]
    return SweepReport(
        by=by,
        objective=base.objective_name,
        source_bytes=files.source_bytes,
        parameters=adapter.parameters,
        points=tuple(points),
        seconds=time.perf_counter() - begin,
        notes=adapter.notes,
    )


def _targets(values: Sequence[int | str] | Sequence[float] | None) -> list[float]:
    numbers = [parse_size(value) if isinstance(value, str) else value for value in values or ()]
    if not numbers:
        raise _option_error("no targets given")
    return numbers


@dataclass(frozen=True)
class _Files:
    """Encodes of one adapter that share its canonical form."""

    adapter: Adapter
    options: EncodeOptions
    form: CanonicalForm
    source_bytes: int

    def point(self, by: str, target: float, label: str) -> SweepPoint:
        """Encode at a target; `label` stands before the names of the stages."""
        start = time.perf_counter()
        options, progress = self.options, self.options.progress
        if progress is not None:

            def tell(stage: str, done: int, total: int) -> None:
                progress(f"{label}: {stage}", done, total)

            options = replace(options, progress=tell)
        try:
            _, report = encode_adapter(
                self.adapter, _with_target(options, by, target), source_bytes=self.source_bytes, form=self.form
            )
        except EncodeError as error:
            return SweepPoint(target, problem=str(error))
        return SweepPoint(
            target=target,
            bytes=report.bytes,
            ratio=report.ratio,
            nmse=report.nmse,
            effective_error=report.effective_error,
            expectation=report.expectation,
            seconds=time.perf_counter() - start,
        )

    def default_targets(self) -> list[int]:
        """Sizes from 5 KB, or from the smallest file that makes sense, to a quarter of the adapter in fp16."""
        fp16 = 2 * self.adapter.parameters
        least = self.point("error", _NOTHING, "smallest file").bytes or 1
        sizes = default_sizes(least, fp16)
        if sizes[0] < _FIRST and self.options.objective_name == "effective":  # less than that may hold nothing
            sensible = self.point("error", MOST_MEASURED_ERROR, "smallest file").bytes or least
            sizes = default_sizes(max(least, min(_FIRST, sensible)), fp16)
        return sizes


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


def _with_target(options: EncodeOptions, by: str, target: float) -> EncodeOptions:
    if by == "size":
        return replace(options, size=int(target))
    return replace(options, nmse=target) if by == "nmse" else replace(options, error=target)


def _option_error(message: str) -> EncodeError:
    return EncodeError(message, code="option")
