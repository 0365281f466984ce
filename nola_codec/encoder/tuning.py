"""Spread form whose coefficients are trained on a task: what the encoder asks of a tuner, and how its answer is coded.

The plan of the weight-space code says which components are kept and what each is coded with; the tuner moves the
vectors. The file is then the plan's code of the moved vectors, as if they had been the adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.basis import basis_by_id
from nola_codec.encoder.report import TaskReport
from nola_codec.encoder.search import Draft, Search
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import RatePlan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.quantize import QuantizedForm, quantize
from nola_codec.model.adapter import Codable

FactorPairs = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""(lora_B (out, r), lora_A (r, in)) by module name."""


@dataclass(frozen=True)
class TuningStart:
    """The weight-space code that tuning starts from.

    Attributes:
        items: Records' tensors, in order.
        streams: Of the records.
        form: Coefficients of all components' vectors.
        plan: Components that are kept, and their coders.
        quantized: Their code.
        basis, generator, seed: Of the bases.
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
    """A tuner's answer.

    Attributes:
        form: The start's with the kept units' rows replaced, mean square 1 as ever.
        size: float64 (units of the form,): norm of each kept component, u s v^T having norm s.
    """

    form: CanonicalForm
    size: Float64Array


class Tuner(Protocol):
    """What `EncodeOptions.tuner` offers."""

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train the coefficients, quantization in the loop."""

    def measure(self, factors: FactorPairs) -> float:
        """Held-out loss of a decoded file."""

    def report(self) -> TaskReport:
        """What was trained and measured."""


class Once:
    """A tuner whose training is done once: a file that misses its size by some bytes is laid out anew, not trained."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._moved: TrainedForm | None = None

    def tune(self, start: TuningStart) -> TrainedForm:
        """The first answer, again and again."""
        if self._moved is None:
            self._moved = self._tuner.tune(start)
        return self._moved


def tuned(search: Search, draft: Draft, tuner: Once, limit: int | None) -> Draft:
    """The draft with its vectors moved by a tuner, of at most `limit` bytes.

    Trained amplitudes are a little harder to predict than those of singular values. Where a file so comes out too
    large, its weakest components are left out.

    Args:
        search: That made the draft.
        draft: Of one rung.
        tuner: Trains.
        limit: Bytes, or None.

    Raises:
        EncodeError: ``unreachable``: nothing is left to leave out.
    """
    envelope = search.envelope
    start = TuningStart(
        search.items, search.streams, search.form, draft.plan, draft.quantized, search.basis, envelope.generator,
        envelope.seed,
    )  # fmt: skip
    moved = tuner.tune(start)
    plan = draft.plan
    while len(plan.kept):
        made = quantize(moved.form, plan, search.basis, Workspace())
        made = replace(made, amplitude=amplitudes(moved, made, search.basis)[None])
        found = replace(search, form=moved.form).laid_out(plan, made)
        if limit is None or found.bytes <= limit:
            return found
        plan = without_weakest(plan, moved.size, 1 + len(plan.kept) * (found.bytes - limit) // (2 * found.bytes))
    raise EncodeError(f"{limit} bytes do not hold one trained component", code="unreachable")


def amplitudes(moved: TrainedForm, made: QuantizedForm, basis: int) -> Float64Array:
    """Amplitudes (kept,) in sixteenths of an octave that give the kept components their sizes."""
    return np.asarray(16 * np.log2(np.maximum(moved.size[made.kept], 1e-30) / norms(moved.form, made, basis)))


def sizes(form: CanonicalForm, made: QuantizedForm, basis: int) -> Float64Array:
    """Norms of the kept components as a code has them, (kept,): the inverse of `amplitudes`."""
    return np.asarray(np.exp2(made.amplitude[0] / 16) * norms(form, made, basis))


def norms(form: CanonicalForm, made: QuantizedForm, basis: int) -> Float64Array:
    """Norms of the kept components before their amplitudes, (kept,)."""
    lengths = form.lengths[:, made.kept]
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) if n else 1.0 for n in side] for side in lengths])
    return np.asarray(np.sqrt(norm2.reshape(2, -1) * np.maximum(made.squares[0], 1e-30)).prod(axis=0))


def without_weakest(plan: RatePlan, size: Float64Array, count: int) -> RatePlan:
    """The plan of one rung without `count` components, those of the smallest size."""
    order = np.argsort(size[plan.kept], kind="stable")
    stay = np.sort(order[count:])
    arrays: dict[str, Any] = {name: getattr(plan, name)[stay] for name in ("kept", "entry", "precision")}
    return replace(plan, coder=plan.coder[:, :, stay], survival=plan.survival[:, stay], **arrays)
