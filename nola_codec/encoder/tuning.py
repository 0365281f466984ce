"""Train the coefficients of the component form on a task: the contract of a tuner, and the coding of its result.

A plan for the weights says which components are kept and how each is coded. The tuner changes the vectors. The file
then codes the trained vectors by the same plan, as if they came from the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.basis import basis_by_id
from nola_codec.encoder.drafts import Draft, Drafter
from nola_codec.encoder.report import TaskReport
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import RatePlan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.levels import Workspace
from nola_codec.fit.quantize import QuantizedForm, quantize
from nola_codec.model.adapter import Codable

FactorPairs = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""(lora_B (out, r), lora_A (r, in)) by module name."""


@dataclass(frozen=True)
class TuningStart:
    """The quantized weights from which a training starts.

    Attributes:
        items: The tensors of the records, in order.
        streams: The stream number of each record.
        form: The coefficients of all vectors.
        plan: The kept components and their coders.
        quantized: The levels of the kept components.
        basis: The id of the basis.
        generator: The id of the generator.
        seed: The seed of the generator.
    """

    items: Sequence[Codable]
    streams: Sequence[int]
    form: CanonicalForm
    plan: RatePlan
    quantized: QuantizedForm
    basis: int
    generator: int
    seed: int


@dataclass(frozen=True)
class TrainedForm:
    """The result of a training.

    Attributes:
        form: The form of the start with trained rows for the kept units; the mean square of each row is 1.
        size: float64 (units of the form,): the norm of each kept component; s u v^T has norm s.
        workspace: A workspace with the tables of the dependent coders with which the vectors were trained; None lets
            the encoder fit tables of its own. Training makes up for the noise of one code, and other tables would make
            other noise.
    """

    form: CanonicalForm
    size: Float64Array
    workspace: Workspace | None = None


class Tuner(Protocol):
    """The contract of `EncodeOptions.tuner`."""

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train the coefficients, quantized at every step."""

    def measure(self, factors: FactorPairs) -> Mapping[str, float]:
        """Return what is measured of a decoded file, for its header: ``loss`` or ``distance`` (specification)."""

    def report(self) -> TaskReport:
        """Return the losses of the training."""


@runtime_checkable
class WeighingTuner(Protocol):
    """The contract of a tuner that also says what each component is worth, so that a second plan can go by it."""

    def weigh(self, items: Sequence[Codable], form: CanonicalForm) -> CanonicalForm:
        """Return the form with other strengths for a second plan, or the form itself if there shall be none."""

    def prefer(self, starts: Sequence[TuningStart]) -> int:
        """Return the number of the start that training shall begin with."""


@runtime_checkable
class ComparingTuner(Protocol):
    """The contract of a tuner that compares its file with that from the weights alone, so that training never harms."""

    def is_better(self, trained: FactorPairs, weights: FactorPairs) -> bool:
        """Return True if the trained file shall be written, False for that from the weights alone; after `measure`.

        Args:
            trained: What the trained file decodes to.
            weights: What the file from the weights alone decodes to.
        """


@dataclass(frozen=True)
class TrainedCode:
    """Trained vectors and the plan that codes them.

    If a file misses its size by some bytes, it is made again from them without further training.

    Attributes:
        drafter: A maker of drafts of the trained vectors.
        plan: A plan of one rung.
        size: The same as in `TrainedForm`.
    """

    drafter: Drafter
    plan: RatePlan
    size: Float64Array


def make_start(drafter: Drafter, draft: Draft) -> TuningStart:
    """Return the start of a training from a draft of one rung, which `drafter` has made."""
    envelope = drafter.job.envelope
    return TuningStart(
        drafter.job.items, drafter.job.streams, drafter.form, draft.plan, draft.quantized, drafter.job.basis,
        envelope.generator, envelope.seed,
    )  # fmt: skip


def train_code(drafter: Drafter, draft: Draft, tuner: Tuner) -> TrainedCode:
    """Train the vectors of a draft of one rung, which `drafter` has made."""
    trained = tuner.tune(make_start(drafter, draft))
    workspace = trained.workspace or Workspace()
    return TrainedCode(replace(drafter, form=trained.form, workspace=workspace), draft.plan, trained.size)


def draft_trained(code: TrainedCode, limit: int | None) -> Draft:
    """Make a draft of trained vectors, of at most `limit` bytes.

    Trained amplitudes are a little harder to predict than those of singular values. If the file becomes too large, its
    weakest components are left out.

    Raises:
        EncodeError: ``unreachable``: No component fits into the limit.
    """
    drafter, plan, basis = code.drafter, code.plan, code.drafter.job.basis
    while len(plan.kept):
        quantized = quantize(drafter.form, plan, basis, Workspace(tables=drafter.workspace.tables))
        quantized = replace(quantized, amplitude=amplitudes(drafter.form, quantized, code.size, basis)[None])
        found = drafter.lay_out(plan, quantized)
        if limit is None or found.bytes <= limit:
            return found
        plan = without_weakest(
            plan, drafter.form.strength, 1 + len(plan.kept) * (found.bytes - limit) // (2 * found.bytes)
        )
    raise EncodeError(f"{limit} bytes do not hold one trained component", code="unreachable")


def amplitudes(form: CanonicalForm, quantized: QuantizedForm, size: Float64Array, basis: int) -> Float64Array:
    """Return the amplitudes (kept,), in sixteenths of an octave, at which the kept components have sizes (units,)."""
    wanted = np.maximum(size[quantized.kept], 1e-30)
    return np.asarray(16 * np.log2(wanted / norms(form, quantized, basis)))


def sizes(form: CanonicalForm, quantized: QuantizedForm, basis: int) -> Float64Array:
    """Return the norms of the kept components with their amplitudes, (kept,); the inverse of `amplitudes`."""
    return np.asarray(np.exp2(quantized.amplitude[0] / 16) * norms(form, quantized, basis))


def norms(form: CanonicalForm, quantized: QuantizedForm, basis: int) -> Float64Array:
    """Return the norms of the kept components before their amplitudes, (kept,)."""
    lengths = form.lengths[:, quantized.kept]
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) if n else 1.0 for n in side] for side in lengths])
    return np.asarray(np.sqrt(norm2.reshape(2, -1) * np.maximum(quantized.squares[0], 1e-30)).prod(axis=0))


def without_weakest(plan: RatePlan, strength: Float64Array, count: int) -> RatePlan:
    """Return a plan of one rung without its `count` components of the smallest strength, (units of the form,)."""
    order = np.argsort(strength[plan.kept], kind="stable")
    stay = np.sort(order[count:])
    arrays: dict[str, Any] = {name: getattr(plan, name)[stay] for name in ("kept", "entry", "precision")}
    return replace(plan, coder=plan.coder[:, :, stay], survival=plan.survival[:, stay], **arrays)
