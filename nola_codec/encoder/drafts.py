"""Make drafts: an adapter quantized at one lambda, with the size and the error that its file would have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.encoder.assemble import estimate_bytes
from nola_codec.encoder.component_form import amplitude_codes, component_content
from nola_codec.encoder.content import BlockSizes, FileContent, block_sizes
from nola_codec.encoder.job import EncodeJob
from nola_codec.fit.allocation import Objective, RatePlan, make_plan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.difference_error import add_idle_units, difference_nmse
from nola_codec.fit.levels import Workspace
from nola_codec.fit.quantize import QuantizedForm, coded_nmse, quantize

FINEST, COARSEST = -60.0, 40.0
"""log2 of the least and of the greatest lambda, relative to the mean energy of a unit."""


@dataclass(frozen=True)
class Draft:
    """A candidate for the file: quantized, not yet entropy-coded.

    The symbols of its content can be read until the next draft of the same `Drafter` is made; after that, reading them
    raises `StaleDraftError`. Everything else belongs to the draft.

    Attributes:
        plan: The kept units and their coders.
        quantized: The levels of these units.
        content: The records that are made of them.
        sizes: The blocks of the content.
        bytes: The estimated size of the file in bytes.
        error: The error in the plan's last objective, relative to the whole adapter.
    """

    plan: RatePlan
    quantized: QuantizedForm
    content: FileContent
    sizes: BlockSizes
    bytes: int
    error: float


@dataclass(frozen=True)
class Drafter:
    """A maker of drafts of one adapter: it holds everything that a draft depends on but lambda.

    Attributes:
        job: The encode.
        form: The adapter's units.
        objectives: The objective of each rung.
        steps: The same as in `rate_table`, one number for each rung.
        workspace: The levels of the newest draft. Vectors that keep their coder are not searched again.
        log2_unit: The log2 of the mean squared strength of a unit; 0 if all strengths are 0.
        empty_bytes: The size in bytes of a file of one rung with no unit.
    """

    job: EncodeJob
    form: CanonicalForm
    objectives: tuple[Objective, ...]
    steps: tuple[int, ...] = (0,)
    workspace: Workspace = field(default_factory=Workspace, repr=False)
    log2_unit: float = 0.0
    empty_bytes: int = 0

    def plan(self, lagrangian: float, nudges: Int64Array | None = None) -> RatePlan:
        """Make the plan for a lambda; `nudges` are those of `make_plan`."""
        return make_plan(self.form, self.objectives, lagrangian, self.steps, nudges)

    def finest_plan(self) -> RatePlan:
        """Make the plan for the least lambda."""
        return self.plan(2.0 ** (FINEST + self.log2_unit))

    def draft(self, lagrangian: float, nudges: Int64Array | None = None) -> Draft:
        """Make the draft for a lambda. Earlier drafts become stale."""
        plan = self.plan(lagrangian, nudges)
        self.workspace.searches += bool(len(plan.kept))
        stage = f"draft {self.workspace.searches}"  # of a number that nobody knows before the search has ended
        if len(plan.kept):
            self.job.show_progress(stage, 0, 0)
        tell = partial(self.job.show_progress, stage)
        return self.lay_out(plan, quantize(self.form, plan, self.job.basis, self.workspace, tell))

    def draft_empty(self) -> Draft:
        """Make the draft with no unit."""
        return self.draft(2.0 ** (COARSEST + self.log2_unit))

    def lay_out(self, plan: RatePlan, quantized: QuantizedForm) -> Draft:
        """Make the draft of a plan that is quantized already."""
        quantized = add_idle_units(self.form, plan, quantized)
        content = component_content(self.job, self.form, plan, quantized)
        sizes = block_sizes(content, self.job.options.block_size)
        size = estimate_bytes(content, sizes, self.job.envelope, self.job.raw_sections)
        return Draft(plan, quantized, content, sizes, size, self._error(plan, quantized, content))

    def expected_error(self, plan: RatePlan) -> float:
        """Return the error that a plan will have in theory, relative to the whole adapter."""
        return self._lost_share(float((self.form.strength[plan.kept] ** 2 * plan.survival[-1]).sum()))

    def record_weights(self) -> Float64Array:
        """Return the weight of each record in the objective, float64 (records,)."""
        if self.job.options.importance is None:
            return self.job.energies
        strengths = np.bincount(self.form.record, self.form.strength**2, minlength=len(self.job.items))
        return strengths.astype(np.float64)

    def effective_errors(self, draft: Draft, weights: Float64Array) -> tuple[Float64Array, ...] | None:
        """Return the effective error of each record at each rung, float64 (records,) in the units of `weights`.

        The result is None if NMSE is the objective, for which there is no effective error.
        """
        if draft.plan.objectives[-1].name == "nmse":
            return None
        quantized = draft.quantized
        errors = []
        if self.form.whole is not None:
            weights = np.bincount(self.form.record, self.form.strength**2, minlength=len(weights)).astype(np.float64)
            weights = weights if self.form.floors is None else weights + self.form.floors
        for rung in range(quantized.rungs):
            survived = np.bincount(
                self.form.record[quantized.kept],
                self.form.strength[quantized.kept] ** 2 * self._survival(quantized, draft.content, rung),
                minlength=len(weights),
            )
            errors.append(np.maximum(weights - survived, 0.0))
        return tuple(errors)

    def _error(self, plan: RatePlan, quantized: QuantizedForm, content: FileContent) -> float:
        """Return the error of a draft in the plan's last objective."""
        last = quantized.rungs - 1
        if plan.objectives[-1].name == "nmse":
            codes = amplitude_codes(quantized, self.form, content.rungs[last])
            if self.form.whole is not None:
                return difference_nmse(self.form, quantized, codes, self.job.basis)
            return coded_nmse(self.form, quantized, codes, self.job.basis, last)
        kept = self.form.strength[quantized.kept] ** 2 * self._survival(quantized, content, last)
        return self._lost_share(float(kept.sum()))

    def _lost_share(self, survived: float) -> float:
        """Return the error that is left if so much of the units' energy survives, relative to the whole adapter."""
        total = self.form.total
        return (self.form.floor + float((self.form.strength**2).sum()) - survived) / total if total else 0.0

    def _survival(self, quantized: QuantizedForm, content: FileContent, rung: int) -> Float64Array:
        """Return the share of each kept unit's energy that survives at a rung, with its amplitude as rounded."""
        codes = amplitude_codes(quantized, self.form, content.rungs[rung])
        ratio = np.exp2((codes - quantized.amplitude[rung]) / 16)
        survival = np.prod(quantized.survival[rung], axis=0) * (2 * ratio - ratio**2)
        return np.where(quantized.entry <= rung, survival, 0.0)


def make_drafter(job: EncodeJob, form: CanonicalForm, objective: Objective) -> Drafter:
    """Return a drafter for files of one rung."""
    energy = float((form.strength**2).sum()) / max(1, form.units)
    drafter = Drafter(job, form, (objective,), log2_unit=float(np.log2(energy)) if energy > 0 else 0.0)
    return replace(drafter, empty_bytes=drafter.draft_empty().bytes)
