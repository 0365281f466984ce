"""An adapter -> the bytes of a file and a report of what they decode to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key
from nola_codec.container.reader import open_container
from nola_codec.decoder.factors import Decoded, DecodedFactors, DecodedVector
from nola_codec.encoder.assemble import Envelope, code_parts, pack_raw, write_parts
from nola_codec.encoder.composites import CompositeErrors
from nola_codec.encoder.importance import match_importance
from nola_codec.encoder.content import FileContent, BlockSizes, survey
from nola_codec.encoder.notes import notes
from nola_codec.encoder.options import DEFAULT_BITS, EncodeOptions
from nola_codec.encoder.factor_form import project
from nola_codec.encoder.report import EncodeReport, TensorReport
from nola_codec.encoder.search import Draft, Search
from nola_codec.encoder.tuning import Once, tuned
from nola_codec.entropy import NAMES as CODEC_NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import OBJECTIVES
from nola_codec.fit.canonical_form import CanonicalForm, make_canonical_form
from nola_codec.fit.components import delta_energy, squared_error, squared_norm, vector_error
from nola_codec.fit.weighting import Moments, activation_errors, in_order
from nola_codec.model.adapter import Adapter, Codable, LoraModule, VectorTensor
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.version import __version__

_ATTEMPTS = 6
_TRAINED_SHARE, _TRAINED_BYTES = 0.995, 40
"""Of a size, what a file to be trained is planned for: less by what its amplitudes and losses may take more."""


class _Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        return time.perf_counter() - self._begin


@dataclass(frozen=True)
class _Coded:
    """A finished file and its losses: of each rung, and by record, squared errors as measured on what it decodes to.

    `activations` is (2, records): squared error and energy of what the layers put out on a calibration set. `weights`
    is what effective errors are shares of.
    """

    data: bytes
    material: FileContent
    rungs: tuple[dict[str, float], ...]
    squared_errors: Float64Array
    effective_errors: Float64Array | None = None
    activations: Float64Array | None = None
    weights: Float64Array | None = None


def encode_adapter(
    adapter: Adapter,
    options: EncodeOptions,
    *,
    source_bytes: int,
    config_with_rank: Mapping[str, Any] | None = None,
    form: CanonicalForm | None = None,
    parameters: int | None = None,
) -> tuple[bytes, EncodeReport]:
    """Encode an adapter.

    Args:
        adapter: As read; its modules and vectors may be in any order.
        options: Checked options.
        source_bytes: Size of what the adapter was read from, for the report.
        config_with_rank: The configuration to store when the paper's form changes the rank.
        form: `prepared` for this adapter and options, where several encodes differ in their target alone.
        parameters: Numbers that `ratio` is counted against; None is the adapter's.

    Raises:
        EncodeError: the target cannot be reached (code ``unreachable``).
    """
    clock = _Clock()
    items = _in_order(adapter)
    parameters = adapter.parameters if parameters is None else parameters
    keys = sorted(adapter.raw, key=natural_key)
    raw = {key: adapter.raw[key] for key in keys if key not in adapter.draws}
    envelope = Envelope(
        writer=f"nola-codec {__version__}",
        dialect=adapter.dialect,
        generator=GENERATOR_NAMES[options.generator],
        seed=options.seed,
        config=config_with_rank if config_with_rank is not None else adapter.config,
        metadata=adapter.metadata,
        raw=raw,
        drawn={key: (adapter.draws[key], adapter.raw[key]) for key in keys if key in adapter.draws},
    )
    with clock.stage("carried tensors"):
        raw_sections = pack_raw(raw)
    energies = np.array([_energy(item) for item in items])
    composites = CompositeErrors(adapter, items)
    composites.share_energies(energies)
    if options.projected:
        coded = _project(items, options, envelope, raw_sections, energies, composites, clock)
    else:
        coded = _spread(items, options, envelope, raw_sections, energies, composites, parameters, clock, form)
    total = float(energies.sum())
    nmse = float(coded.squared_errors.sum()) / total if total else 0.0
    effective = None
    if coded.effective_errors is not None:
        whole = total if coded.weights is None else float(coded.weights.sum())
        effective = float(coded.effective_errors.sum()) / whole if whole else 0.0
    report = EncodeReport(
        bytes=len(coded.data),
        source_bytes=source_bytes,
        parameters=parameters,
        ratio=2 * parameters / len(coded.data),
        objective="projection" if options.projected else "task" if options.tuner else options.objective_name,
        nmse=nmse,
        effective_error=effective,
        tensors=_tensor_reports(items, energies, coded),
        seconds=clock.total(),
        stages=dict(clock.seconds),
        activation_error=None if coded.activations is None else _share(coded.activations),
        rungs=coded.rungs,
        dialect=adapter.dialect,
        task=None if options.tuner is None else options.tuner.report(),
        notes=adapter.notes
        + composites.notes()
        + notes(options, nmse, effective, sum(len(data) for _, data in raw_sections) / len(coded.data)),
    )
    return coded.data, report


def prepared(adapter: Adapter, options: EncodeOptions) -> CanonicalForm:
    """What encodes of one adapter share when they differ in target and objective alone; as large as the adapter."""
    items = _in_order(adapter)
    return _bank(items, _streams(items, shared=options.shared_basis), options)


def _in_order(adapter: Adapter) -> list[Codable]:
    """Modules, then vectors: the order of a file's records."""
    for vector in adapter.vectors:
        if not vector.values.size:
            raise EncodeError("a vector has at least one element", code="empty-tensor", where=vector.name)
    return [
        *sorted(adapter.modules, key=lambda m: natural_key(m.name)),
        *sorted(adapter.vectors, key=lambda v: natural_key(v.name)),
    ]


def _energy(item: Codable) -> float:
    """Its part of ||delta_W||_F^2."""
    if isinstance(item, VectorTensor):
        return squared_norm(item.values) * item.gain**2
    return delta_energy(item.lora_B, item.lora_A) * item.error_gain**2


def _bank(items: Sequence[Codable], streams: Sequence[int], options: EncodeOptions) -> CanonicalForm:
    return make_canonical_form(
        items,
        streams,
        basis=BASIS_NAMES[options.basis],
        generator=GENERATOR_NAMES[options.generator],
        seed=options.seed,
        most=options.rank,
        importance=(
            None if options.importance is None else match_importance([item.name for item in items], options.importance)
        ),
        moments=_moments(items, options),
        progress=lambda done: _tell(options, "canonical form", done, len(items)),
    )


def _spread(
    items: Sequence[Codable],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Float64Array,
    composites: CompositeErrors,
    parameters: int,
    clock: _Clock,
    form: CanonicalForm | None,
) -> _Coded:
    """Component form: rate spread over singular components, to a size or an error."""
    objective = OBJECTIVES[options.objective_name]
    error = options.error_target
    limit = options.size if options.size is not None else int(2 * parameters / options.ratio) if options.ratio else 0
    aim: float = limit if error is None else error * composites.dilution
    tuner = None if options.tuner is None else Once(options.tuner)
    if tuner is not None and error is None:
        aim = limit * _TRAINED_SHARE - _TRAINED_BYTES
    for attempt in range(_ATTEMPTS):
        _tell(options, "rate control", attempt, _ATTEMPTS)
        # A form of its own, as large as the adapter, is let go before coding: a second attempt is rare, and makes it
        # again.
        draft, effective, weights = _drafted(
            items, options, envelope, raw_sections, energies, aim, limit, tuner, clock, form
        )
        _tell(options, "entropy coding", attempt, _ATTEMPTS)
        coded = _finish(
            draft.material,
            draft.surveyed,
            items,
            options,
            envelope,
            raw_sections,
            energies,
            composites,
            effective,
            clock,
            weights,
        )
        # Estimates are good to a few bytes, and errors to the int16 rounding: a miss is rare, and small.
        if error is None:
            over = len(coded.data) - limit
            if over <= 0:
                break
            if tuner is not None:
                limit -= over + 8
            else:
                aim -= 1.2 * over + 8
        else:
            # A delta of several parts loses what each of them loses, which the search counts one by one.
            lost, whole = coded.squared_errors, energies
            if objective.name != "nmse" and coded.effective_errors is not None and composites:
                lost, whole = coded.effective_errors, weights
            reached = float(lost.sum() / whole.sum()) if whole.sum() else 0.0
            if (objective.name != "nmse" and not composites) or reached <= error:
                break
            aim *= 0.999 * error / reached
    else:
        raise EncodeError(f"the target was missed {_ATTEMPTS} times, by ever less; ask for slightly more",
                          code="unreachable")  # fmt: skip
    _tell(options, "entropy coding", _ATTEMPTS, _ATTEMPTS)
    return coded


def _drafted(
    items: Sequence[Codable],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Float64Array,
    aim: float,
    limit: int,
    tuner: Once | None,
    clock: _Clock,
    form: CanonicalForm | None,
) -> tuple[Draft, list[Float64Array] | None, Float64Array]:
    """The draft that reaches `aim`, the records' effective errors at each rung, and the weights these are shares of.

    A trained draft has no such errors: it was not made to be near the adapter. It keeps to `limit` by itself.
    """
    streams = _streams(items, shared=options.shared_basis)
    if form is None:
        with clock.stage("canonical form"):
            form = _bank(items, streams, options)
    basis = BASIS_NAMES[options.basis]
    search = Search(items, streams, form, basis, (OBJECTIVES[options.objective_name],), envelope, raw_sections,
                    options.thorough)  # fmt: skip
    with clock.stage("rate control"):
        sized = options.error_target is None
        search = search.tamed(aim, size=sized)
        if options.ladder:
            search = search.climbing(options.rungs, search.planned(aim, size=sized))
        draft = search.for_bytes(int(aim)) if sized else search.for_error(aim)
    if tuner is not None:
        with clock.stage("training"):
            draft = tuned(search, draft, tuner, limit if sized else None)
        return draft, None, energies
    weights = search.weights() if options.weighted else energies
    return draft, search.effective_errors(draft, weights), weights


def _project(
    items: Sequence[Codable],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Float64Array,
    composites: CompositeErrors,
    clock: _Clock,
) -> _Coded:
    """The paper's form: one basis a factor, fixed width."""
    with clock.stage("fit"):
        material = project(
            items,
            _streams(items, shared=options.shared_basis),
            num_basis=options.num_basis,
            bits=options.bits or DEFAULT_BITS,
            rank=options.rank,
            basis=BASIS_NAMES[options.basis],
            generator=envelope.generator,
            seed=options.seed,
            progress=lambda done: _tell(options, "fit", done, len(items)),
        )
    return _finish(material, survey(material), items, options, envelope, raw_sections, energies, composites, None,
                   clock)  # fmt: skip


def _finish(
    material: FileContent,
    surveyed: BlockSizes,
    items: Sequence[Codable],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Float64Array,
    composites: CompositeErrors,
    effective: Sequence[Float64Array] | None,
    clock: _Clock,
    weights: Float64Array | None = None,
) -> _Coded:
    """Entropy-code, decode, and measure what was lost; the losses of each rung go into the header."""
    errors = np.zeros((len(material.ladder), len(items)))
    moments = _moments(items, options)
    activations = None if moments is None else np.zeros((len(material.ladder), 2, len(items)))
    total = float(energies.sum())
    factors: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}  # what a tuner is to measure

    def measure(rung: int, index: int, decoded: Decoded) -> None:
        item = items[index]
        if options.tuner is not None and isinstance(decoded, DecodedFactors):
            factors[item.name] = decoded.float32(NUMPY)
        with clock.stage("measuring"):
            if index in composites:
                found = composites.add(index, decoded)
                if found is not None:
                    errors[rung, found[0]] = found[1]
                return
            if isinstance(item, LoraModule) and isinstance(decoded, DecodedFactors):
                lora_B, lora_A = decoded.float32(NUMPY)
                lost = squared_error(item.lora_B, item.lora_A, lora_B, lora_A)
                if moments is not None and activations is not None:
                    pair = activation_errors(item, lora_B, lora_A, moments[index])
                    activations[rung, :, index] = np.array(pair) * item.scaling**2
            elif isinstance(item, VectorTensor) and isinstance(decoded, DecodedVector):
                lost = vector_error(item.values, decoded.float32(NUMPY))
            errors[rung, index] = lost * item.error_gain**2

    def measured(rung: int) -> dict[str, float]:
        found = {"nmse": float(errors[rung].sum()) / total if total else 0.0}
        if effective is not None:
            whole = total if weights is None else float(weights.sum())
            found["effective_error"] = float(effective[rung].sum()) / whole if whole else 0.0
        if activations is not None:
            found["activation_error"] = _share(activations[rung])
        if options.tuner is not None:
            with clock.stage("measuring the task"):
                found["loss"] = options.tuner.measure(factors)
        return found

    with clock.stage("coding and decoding"):
        codecs = [CODEC_NAMES[name] for name in options.entropy]
        parts = code_parts(material, surveyed, envelope, measure, measured, codecs)
        data = write_parts(parts, material, envelope, raw_sections)
    last = None if effective is None else effective[-1]
    with open_container(data) as container:
        rungs = tuple({"bytes": container.rung_bytes(i), **part.measured} for i, part in enumerate(parts.rungs))
    return _Coded(data, material, rungs, errors[-1], last, None if activations is None else activations[-1], weights)


def _moments(items: Sequence[Codable], options: EncodeOptions) -> list[Moments] | None:
    """Of the modules, which come first; what is said of a layer's inputs says nothing of a vector."""
    modules = [item for item in items if isinstance(item, LoraModule)]
    return None if options.weighting is None else in_order(modules, options.weighting)


def _share(lost_and_energy: Float64Array) -> float:
    lost, energy = lost_and_energy.reshape(2, -1).sum(axis=1)
    return float(lost / energy) if energy else 0.0


def _streams(items: Sequence[Codable], *, shared: bool) -> list[int]:
    """A stream a record, or one for all records of equal shapes."""
    if not shared:
        return list(range(len(items)))
    shapes: dict[tuple[int, ...], int] = {}
    return [shapes.setdefault((*item.vector_lengths, item.rank), len(shapes)) for item in items]


def _tell(options: EncodeOptions, stage: str, done: int, total: int) -> None:
    if options.progress is not None:
        options.progress(stage, done, total)


def _tensor_reports(items: Sequence[Codable], energies: Float64Array, coded: _Coded) -> tuple[TensorReport, ...]:
    reports = []
    for index, (item, record) in enumerate(zip(items, coded.material.records, strict=True)):
        energy = float(energies[index])
        share = 1 / energy if energy else 0.0
        weight = energy if coded.weights is None else float(coded.weights[index])
        reports.append(
            TensorReport(
                name=item.name,
                shape=item.vector_lengths if isinstance(item, LoraModule) else item.values.shape,
                rank=item.rank if isinstance(item, LoraModule) else None,
                kept=record.kind.vectors(record.units),
                energy=energy,
                nmse=float(coded.squared_errors[index]) * share,
                effective_error=(
                    None
                    if coded.effective_errors is None
                    else float(coded.effective_errors[index]) / weight
                    if weight
                    else 0.0
                ),
                activation_error=(
                    None
                    if coded.activations is None or isinstance(item, VectorTensor)
                    else _share(coded.activations[:, index])
                ),
            )
        )
    return tuple(reports)
