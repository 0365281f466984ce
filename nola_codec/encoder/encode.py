"""An adapter -> the bytes of a file and a report of what they decode to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key
from nola_codec.decoder.factors import Factors
from nola_codec.encoder.assemble import Envelope, code_parts, pack_raw, write_parts
from nola_codec.encoder.importance import match_importance
from nola_codec.encoder.material import Material, Survey, survey
from nola_codec.encoder.options import DEFAULT_BITS, EncodeOptions
from nola_codec.encoder.paper import project_modules
from nola_codec.encoder.report import EncodeReport, TensorReport
from nola_codec.encoder.search import Draft, Search
from nola_codec.entropy import NAMES as CODEC_NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import OBJECTIVES
from nola_codec.fit.bank import build_bank
from nola_codec.fit.canonical import delta_energy, squared_error
from nola_codec.fit.weighting import Moments, activation_errors, in_order
from nola_codec.model import Adapter, LoraModule
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.version import __version__

_ATTEMPTS = 6
Vector = npt.NDArray[np.float64]


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
    """A finished file and its losses, per module: squared errors measured on the decoded factors.

    `activations` is (2, modules): squared error and energy of what the layers put out on a calibration set. `weights`
    is what effective errors are shares of.
    """

    data: bytes
    material: Material
    squared_errors: Vector
    effective_errors: Vector | None
    activations: Vector | None = None
    weights: Vector | None = None


def encode_adapter(
    adapter: Adapter,
    options: EncodeOptions,
    *,
    source_bytes: int,
    config_with_rank: Mapping[str, Any] | None = None,
) -> tuple[bytes, EncodeReport]:
    """Encode an adapter.

    Args:
        adapter: As read; its modules may be in any order.
        options: Checked options.
        source_bytes: Size of what the adapter was read from, for the report.
        config_with_rank: The configuration to store when the paper's form changes the rank.

    Raises:
        EncodeError: the target cannot be reached (code ``unreachable``).
    """
    clock = _Clock()
    modules = sorted(adapter.modules, key=lambda m: natural_key(m.name))
    raw = dict(sorted(adapter.raw.items(), key=lambda item: natural_key(item[0])))
    envelope = Envelope(
        writer=f"nola-codec {__version__}",
        dialect=adapter.dialect,
        generator=GENERATOR_NAMES[options.generator],
        seed=options.seed,
        config=config_with_rank if config_with_rank is not None else adapter.config,
        metadata=adapter.metadata,
        raw=raw,
    )
    with clock.stage("carried tensors"):
        raw_sections = pack_raw(raw)
    energies = np.array([delta_energy(m.lora_B, m.lora_A) * m.scaling**2 for m in modules])
    make = _project if options.projected else _spread
    coded = make(modules, options, envelope, raw_sections, energies, adapter.parameters, clock)
    total = float(energies.sum())
    nmse = float(coded.squared_errors.sum()) / total if total else 0.0
    effective = None
    if coded.effective_errors is not None:
        whole = total if coded.weights is None else float(coded.weights.sum())
        effective = float(coded.effective_errors.sum()) / whole if whole else 0.0
    report = EncodeReport(
        bytes=len(coded.data),
        source_bytes=source_bytes,
        parameters=adapter.parameters,
        ratio=2 * adapter.parameters / len(coded.data),
        objective="projection" if options.projected else options.objective_name,
        nmse=nmse,
        effective_error=effective,
        tensors=_tensor_reports(modules, energies, coded),
        seconds=clock.total(),
        stages=dict(clock.seconds),
        activation_error=None if coded.activations is None else _share(coded.activations),
        notes=_notes(options, nmse, effective),
    )
    return coded.data, report


def _spread(
    modules: Sequence[LoraModule],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Vector,
    parameters: int,
    clock: _Clock,
) -> _Coded:
    """Component form: rate spread over singular components, to a size or an error."""
    objective = OBJECTIVES[options.objective_name]
    error = options.error_target
    limit = options.size if options.size is not None else int(2 * parameters / options.ratio) if options.ratio else 0
    aim: float = limit if error is None else error
    for attempt in range(_ATTEMPTS):
        _tell(options, "rate control", attempt, _ATTEMPTS)
        # The bank, as large as the adapter, is let go before coding: a second attempt is rare, and makes it again.
        draft, effective, weights = _drafted(modules, options, envelope, raw_sections, energies, aim, clock)
        _tell(options, "entropy coding", attempt, _ATTEMPTS)
        coded = _finish(
            draft.material, draft.surveyed, modules, options, envelope, raw_sections, energies, draft.measured(), clock
        )
        coded = replace(coded, effective_errors=effective, weights=weights)
        # Estimates are good to a few bytes, and errors to the int16 rounding: a miss is rare, and small.
        if error is None:
            over = len(coded.data) - limit
            if over <= 0:
                break
            aim -= 1.2 * over + 8
        else:
            reached = float(coded.squared_errors.sum() / energies.sum()) if energies.sum() else 0.0
            if objective.name != "nmse" or reached <= error:
                break
            aim *= 0.999 * error / reached
    else:
        raise EncodeError(f"the target was missed {_ATTEMPTS} times, by ever less; ask for slightly more",
                          code="unreachable")  # fmt: skip
    _tell(options, "entropy coding", _ATTEMPTS, _ATTEMPTS)
    return coded


def _drafted(
    modules: Sequence[LoraModule],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Vector,
    aim: float,
    clock: _Clock,
) -> tuple[Draft, Vector | None, Vector]:
    """The draft that reaches `aim`, bytes or an error, the modules' effective errors, and the weights these are of."""
    streams = _streams(modules, shared=options.shared_basis)
    basis = BASIS_NAMES[options.basis]
    with clock.stage("canonical form"):
        bank = build_bank(
            modules,
            streams,
            basis=basis,
            generator=envelope.generator,
            seed=options.seed,
            most=options.rank,
            importance=None
            if options.importance is None
            else match_importance([m.name for m in modules], options.importance),
            moments=_moments(modules, options),
            progress=lambda done: _tell(options, "canonical form", done, len(modules)),
        )
    search = Search(modules, streams, bank, basis, OBJECTIVES[options.objective_name], envelope, raw_sections)
    with clock.stage("rate control"):
        draft = search.for_bytes(int(aim)) if options.error_target is None else search.for_error(aim)
    weights = search.weights() if options.weighted else energies
    return draft, search.effective_errors(draft, weights), weights


def _project(
    modules: Sequence[LoraModule],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Vector,
    parameters: int,
    clock: _Clock,
) -> _Coded:
    """The paper's form: one basis a factor, fixed width."""
    with clock.stage("fit"):
        material = project_modules(
            modules,
            _streams(modules, shared=options.shared_basis),
            num_basis=options.num_basis,
            bits=options.bits or DEFAULT_BITS,
            rank=options.rank,
            basis=BASIS_NAMES[options.basis],
            generator=envelope.generator,
            seed=options.seed,
            progress=lambda done: _tell(options, "fit", done, len(modules)),
        )
    return _finish(material, survey(material), modules, options, envelope, raw_sections, energies, {}, clock)


def _finish(
    material: Material,
    surveyed: Survey,
    modules: Sequence[LoraModule],
    options: EncodeOptions,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    energies: Vector,
    measured: Mapping[str, float],
    clock: _Clock,
) -> _Coded:
    """Entropy-code, decode, and measure what was lost; the measured NMSE goes into the header."""
    errors = np.zeros(len(modules))
    moments = _moments(modules, options)
    activations = None if moments is None else np.zeros((2, len(modules)))
    total = float(energies.sum())

    def measure(index: int, factors: Factors) -> None:
        module = modules[index]
        with clock.stage("measuring"):
            lora_B, lora_A = factors.float32(NUMPY)
            errors[index] = squared_error(module.lora_B, module.lora_A, lora_B, lora_A) * module.scaling**2
            if moments is not None and activations is not None:
                pair = activation_errors(module, lora_B, lora_A, moments[index])
                activations[:, index] = np.array(pair) * module.scaling**2

    with clock.stage("coding and decoding"):
        parts = code_parts(material, surveyed, envelope, measure, [CODEC_NAMES[name] for name in options.entropy])
        measured = {**measured, "nmse": float(errors.sum()) / total if total else 0.0}
        if activations is not None:
            measured["activation_error"] = _share(activations)
        data = write_parts(parts, material, envelope, raw_sections, measured)
    return _Coded(data, material, errors, None, activations)


def _moments(modules: Sequence[LoraModule], options: EncodeOptions) -> list[Moments] | None:
    return None if options.weighting is None else in_order(modules, options.weighting)


def _share(lost_and_energy: Vector) -> float:
    lost, energy = lost_and_energy.reshape(2, -1).sum(axis=1)
    return float(lost / energy) if energy else 0.0


def _streams(modules: Sequence[LoraModule], *, shared: bool) -> list[int]:
    """A stream a record, or one for all records of equal shapes."""
    if not shared:
        return list(range(len(modules)))
    shapes: dict[tuple[int, int, int], int] = {}
    return [shapes.setdefault((m.lora_B.shape[0], m.lora_A.shape[1], m.rank), len(shapes)) for m in modules]


def _tell(options: EncodeOptions, stage: str, done: int, total: int) -> None:
    if options.progress is not None:
        options.progress(stage, done, total)


def _tensor_reports(modules: Sequence[LoraModule], energies: Vector, coded: _Coded) -> tuple[TensorReport, ...]:
    reports = []
    for index, (module, record) in enumerate(zip(modules, coded.material.records, strict=True)):
        energy = float(energies[index])
        share = 1 / energy if energy else 0.0
        weight = energy if coded.weights is None else float(coded.weights[index])
        reports.append(
            TensorReport(
                name=module.name,
                shape=(module.lora_B.shape[0], module.lora_A.shape[1]),
                rank=module.rank,
                kept=record.units if record.kind.split == "component" else record.units // 2,
                energy=energy,
                nmse=float(coded.squared_errors[index]) * share,
                effective_error=(
                    None
                    if coded.effective_errors is None
                    else float(coded.effective_errors[index]) / weight
                    if weight
                    else 0.0
                ),
                activation_error=None if coded.activations is None else _share(coded.activations[:, index]),
            )
        )
    return tuple(reports)


def _notes(options: EncodeOptions, nmse: float, effective: float | None) -> tuple[str, ...]:
    if options.projected and nmse > 0.5:
        return (
            f"{nmse:.1%} of the delta's energy is lost: a random basis of few coefficients keeps about their share of "
            "it. Files for a task are trained in this form; from weights alone, leave out num_basis.",
        )
    notes = []
    if effective is not None and nmse > 0.3:
        notes.append(
            f"NMSE {nmse:.3f} is large by design: the objective keeps signal and lets through noise that models "
            "hardly see. Measure on the task; use --nmse for a bound on the weights."
        )
    if effective is not None and effective > 0.25:
        notes.append(
            f"effective error {effective:.2f} is high: at sizes this small some tasks keep nine tenths of their gain, "
            "and others fall behind the base model. Measure before you ship it."
        )
    return tuple(notes)
