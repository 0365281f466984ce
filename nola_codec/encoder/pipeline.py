"""Encode an adapter: read -> canonical form -> plan -> quantize -> code -> measure -> write.

Each stage is a function from one frozen dataclass to the next:

    Adapter, EncodeOptions   -> EncodeJob           open_job          (job.py)
    EncodeJob                -> CanonicalForm       canonical_form    (here, then fit/canonical_form.py)
    CanonicalForm            -> QuantizedAdapter    quantize_to       (rate_control.py, drafts.py, component_form.py)
      or EncodeJob           -> QuantizedAdapter    quantize_factors  (factor_form.py)
    QuantizedAdapter         -> CodedFile           code_file         (assemble.py, reconstruct.py, measuring.py)
    CodedFile                -> EncodeReport        make_report       (summary.py)

If a file misses its target by a little, `_encode_to_target` makes it again with another aim. A trained file is written
if it is better than the file from the weights alone (`_encode_trained`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.encoder.assemble import code_rungs, write_file
from nola_codec.encoder.content import QuantizedAdapter, block_sizes
from nola_codec.encoder.drafts import Draft, Drafter, make_drafter
from nola_codec.encoder.emptiness import require_content
from nola_codec.encoder.factor_form import factor_content
from nola_codec.encoder.importance import match_importance
from nola_codec.encoder.job import EncodeJob, open_job, with_objective
from nola_codec.encoder.measuring import decode_factors, measure_rung
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.rate_control import (
    RateTarget,
    correct_target,
    correction_of,
    first_target,
    reach_target,
    too_fine,
)
from nola_codec.encoder.report import EncodeReport
from nola_codec.encoder.summary import CodedFile, make_report, reached_error
from nola_codec.encoder.tuning import (
    ComparingTuner,
    TrainedCode,
    WeighingTuner,
    draft_trained,
    make_start,
    train_code,
)
from nola_codec.entropy import NAMES as CODEC_NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import pin_carried
from nola_codec.fit.canonical_form import CanonicalForm, FormSettings, make_canonical_form
from nola_codec.fit.difference_form import make_difference_form
from nola_codec.fit.noise_limit import QUIETER_OBJECTIVES
from nola_codec.model.adapter import Adapter
from nola_codec.parallel import one_blas_thread
from nola_codec.prng import PHILOX

_FLOOR = 0.5
"""The greatest share of an error target that may come from a reference and stay."""
_CHAIN_NOISE = 3.0
"""Greatest noise of a file with a reference and of the reference together, over ||delta_W||^2."""
_ATTEMPTS = 12
"""Greatest number of files that are made for one target."""


def encode_adapter(
    adapter: Adapter,
    options: EncodeOptions,
    *,
    source_bytes: int,
    form: CanonicalForm | None = None,
    parameters: int | None = None,
) -> tuple[bytes, EncodeReport]:
    """Encode an adapter.

    Args:
        adapter: The adapter as read; its modules and vectors may be in any order.
        options: The checked options.
        source_bytes: The size in bytes of the source of the adapter, for the report.
        form: The result of `prepare_form`, to share it between encodes; None makes it here.
        parameters: The number of parameters that `ratio` refers to; None stands for the number of the adapter.

    Returns:
        The bytes of the file, and a report of what it decodes to.

    Raises:
        EncodeError: ``unreachable``: The target cannot be reached, or a file of this size holds nothing of the
            adapter; or another code of the stages.
    """
    # BLAS sums in another order with each number of threads, and the last bit of an error is in the file.
    with one_blas_thread() if options.tuner is None else nullcontext():
        job, tuner = open_job(adapter, options, source_bytes=source_bytes, parameters=parameters), options.tuner
        if options.is_factor_form:
            quantized = quantize_factors(job)
            file = code_file(job, quantized)
        elif tuner is not None and isinstance(tuner, ComparingTuner):
            quantized, file = _encode_trained(job, tuner, form)
        elif job.prediction is None:
            quantized, file = _encode_to_target(job, form)
        else:
            job, quantized, file = _encode_difference(job)
        report = make_report(job, quantized, file)

        def measure(other: EncodeOptions) -> int:
            return encode_adapter(adapter, other, source_bytes=source_bytes, form=form)[1].bytes

        require_content(job, report, measure)
        return file.data, report


def prepare_form(adapter: Adapter, options: EncodeOptions) -> CanonicalForm:
    """Make the form that several encodes of one adapter can share if they differ only in target and objective.

    It takes as much memory as the adapter.
    """
    return canonical_form(open_job(adapter, options))


def canonical_form(job: EncodeJob) -> CanonicalForm:
    """Decompose every module into its singular components, and express all vectors in their bases."""
    options = job.options
    names = [item.name for item in job.items]
    settings = FormSettings(
        basis=BASIS_NAMES[options.basis],
        generator=PHILOX,
        seed=options.seed,
        most=options.rank,
        importance=None if options.importance is None else match_importance(names, options.importance),
    )
    with job.clock.stage("canonical form"):
        if job.prediction is not None:
            gammas = job.objective.gammas
            known = job.prediction
            whole = float(job.energies.sum())
            for moment in (0.5, 1.0):
                form = make_difference_form(
                    job.items, known.items, job.streams, settings, known.entry.gains, gammas, moment, options.progress
                )
                if options.error_target is None or form.floor <= _FLOOR * options.error_target * whole:
                    break
            return replace(form, whole=whole)
        return make_canonical_form(job.items, job.streams, settings, options.progress)


def _encode_to_target(job: EncodeJob, form: CanonicalForm | None) -> tuple[QuantizedAdapter, CodedFile]:
    """Make files in the component form until one meets the size or the error. The first one mostly does.

    If no form is given, each attempt makes one and drops it before the file is coded, to save memory. A second attempt
    is rare.
    """
    target = first_target(job)
    trained: TrainedCode | None = None
    is_finest = False
    for _ in range(_ATTEMPTS):
        if job.options.tuner is None:
            quantized, correction, is_finest = quantize_to(job, target, form)
            target = replace(target, correction=correction)
        else:
            trained = trained or train_to(job, target, form)
            quantized = quantize_trained(job, trained, target)
        file = code_file(job, quantized)
        reached = reached_error(job, file)
        corrected = correct_target(job, target, len(file.data), reached)
        if corrected is None:
            return quantized, file
        if is_finest and job.options.error_target is not None and reached is not None:
            raise too_fine(job.options.error_target, reached)  # no other aim has a finer draft
        target = corrected
    message = f"the target was missed {_ATTEMPTS} times, each time by less; ask for slightly more bytes or error"
    raise EncodeError(message, code="unreachable")


def _encode_trained(
    job: EncodeJob, tuner: ComparingTuner, form: CanonicalForm | None
) -> tuple[QuantizedAdapter, CodedFile]:
    """Make a trained file and a file from the weights alone, both to the target, and return the better one.

    That from the weights comes first, so that a target out of reach is refused before the training.
    """
    form = canonical_form(job) if form is None else form
    plain = replace(job, options=replace(job.options, fit="weights", tuner=None))
    weights = _encode_to_target(plain, form)
    weights_factors = decode_factors(plain, weights[0])
    trained = _encode_to_target(job, form)
    with job.clock.stage("comparing with the weights alone"):
        return trained if tuner.is_better(decode_factors(job, trained[0]), weights_factors) else weights


def _encode_difference(job: EncodeJob) -> tuple[EncodeJob, QuantizedAdapter, CodedFile]:
    """Make a file with a reference, whose noise adds to that of the reference.

    If both together are more than a network takes, the file is made again with an objective that lets through less.
    """
    objectives = QUIETER_OBJECTIVES[::3] if job.objective.name != "nmse" else (job.objective,)
    for objective in objectives:
        job = with_objective(job, objective)
        quantized, file = _encode_to_target(job, None)
        if float(file.rungs[-1].squared_errors.sum()) <= (1 + _CHAIN_NOISE) * float(job.energies.sum()):
            break
    return job, quantized, file


def quantize_to(job: EncodeJob, target: RateTarget, form: CanonicalForm | None) -> tuple[QuantizedAdapter, float, bool]:
    """Plan and quantize an adapter so that its file meets a target.

    Returns:
        The quantized adapter; the `correction_of` its draft; and True if no draft is finer, although the estimated
        error of this one misses the target.
    """
    drafter, draft = _draft_to(job, target, form)
    weights = drafter.record_weights()
    quantized = QuantizedAdapter(draft.content, draft.sizes, drafter.effective_errors(draft, weights), weights)
    is_finest = not target.is_size and not target.fits(draft)
    return quantized, correction_of(drafter, target, draft), is_finest


def train_to(job: EncodeJob, target: RateTarget, form: CanonicalForm | None) -> TrainedCode:
    """Plan and quantize an adapter, then train the kept vectors on the task."""
    tuner = job.options.tuner
    assert tuner is not None
    form = canonical_form(job) if form is None else form
    drafts = [_draft_to(job, target, form)]
    if isinstance(tuner, WeighingTuner):
        with job.clock.stage("training"):
            weighed = tuner.weigh(job.items, form)
        if weighed is not form:
            drafts.append(_draft_to(job, target, weighed))
            drafts = [drafts[tuner.prefer([make_start(*each) for each in drafts])]]
    with job.clock.stage("training"):
        return train_code(*drafts[0], tuner)


def quantize_trained(job: EncodeJob, trained: TrainedCode, target: RateTarget) -> QuantizedAdapter:
    """Quantize trained vectors. They have no effective error, since they are not meant to be near the adapter."""
    with job.clock.stage("training"):
        draft = draft_trained(trained, target.limit - target.margin if target.is_size else None)
    return QuantizedAdapter(draft.content, draft.sizes, None, job.energies)


def _draft_to(job: EncodeJob, target: RateTarget, form: CanonicalForm | None) -> tuple[Drafter, Draft]:
    """Make the draft that meets a target, and return it with its drafter."""
    if form is None:
        form = canonical_form(job)
    job.show_progress("planning", 0, 0)
    with job.clock.stage("rate control"):
        exact = sum(len(data) for _, data in job.raw_sections)
        form = pin_carried(form, target.limit - exact if target.is_size else None)
        drafter = make_drafter(job, form, job.objective)
        return drafter, reach_target(drafter, target)


def quantize_factors(job: EncodeJob) -> QuantizedAdapter:
    """Fit and quantize an adapter in the factor form: its size follows from the number of coefficients and bits."""
    with job.clock.stage("fit"):
        content = factor_content(job)
        return QuantizedAdapter(content, block_sizes(content, job.options.block_size), None, job.energies)


def code_file(job: EncodeJob, quantized: QuantizedAdapter) -> CodedFile:
    """Entropy-code a quantized adapter, measure what it decodes to, and write both into a file."""
    content, sizes = quantized.content, quantized.sizes
    codecs = [CODEC_NAMES[name] for name in job.options.entropy]
    job.show_progress("coding", 0, 0)
    with job.clock.stage("coding and decoding"):
        coded = code_rungs(content, sizes, codecs)
        measured = tuple(measure_rung(job, quantized, rung) for rung in range(len(content.rungs)))
        facts = [rung.facts for rung in measured]
        data = write_file(content, sizes, coded, facts, job.envelope, job.raw_sections)
    return CodedFile(data, measured)
