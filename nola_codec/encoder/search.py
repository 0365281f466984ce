"""Spread form with rate control: from a form to material of the wanted size or error.

Expected sizes and errors come from the plan alone; a draft (quantized, not yet entropy-coded) corrects them. Two or
three drafts reach the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.encoder.assemble import Envelope, estimate_bytes
from nola_codec.encoder.filling import fill
from nola_codec.encoder.content import FileContent, BlockSizes, survey
from nola_codec.encoder.component_form import spread, units_of_records
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import NOISE_CAP, PRECISION_STEPS, QUIETER_OBJECTIVES, Grain, Objective, RatePlan, make_plan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.quantize import QuantizedForm, coded_nmse, quantize
from nola_codec.model.adapter import Codable

_DRAFTS = 7
_SLACK = 0.004
"""Share of a target that may be left unused without a further draft."""
_SEARCHED_BYTES = 1_000_000
"""Coefficients' bytes beyond which quantizers with memory are left out, unless the search is to be thorough."""
_FINE_BYTES = 40_000
"""Coefficients' bytes from which all quantizers are offered."""
_NARROW = 2e-3
"""Width of a bracket of log2 lambda at which the hunt ends."""
RUNGS = 4
"""Most rungs of a ladder that is not told how many to have."""
SMALLEST_RUNG = 5000
"""Bytes below which such a ladder has no rung."""
_LOW, _HIGH = -60.0, 40.0
"""log2 of lambda relative to the adapter's mean energy a unit."""


@dataclass(frozen=True)
class Draft:
    """A candidate and what it would cost."""

    plan: RatePlan
    quantized: QuantizedForm
    material: FileContent
    surveyed: BlockSizes
    bytes: int
    error: float


@dataclass(frozen=True)
class Search:
    """Everything a draft is made of but lambda.

    A new draft writes over the levels of the one before.
    """

    items: Sequence[Codable]
    streams: Sequence[int]
    form: CanonicalForm
    basis: int
    objectives: tuple[Objective, ...]
    envelope: Envelope
    raw_sections: Sequence[tuple[int, bytes]]
    thorough: bool = False
    steps: tuple[int, ...] = (0,)
    workspace: Workspace = field(default_factory=Workspace)

    def draft(self, lagrangian: float, nudges: Int64Array | None = None) -> Draft:
        """Quantize at a lambda and estimate size and error."""
        plan = make_plan(self.form, self.objectives, lagrangian, self.steps, nudges)
        return self.laid_out(plan, quantize(self.form, plan, self.basis, self.workspace))

    def laid_out(self, plan: RatePlan, quantized: QuantizedForm) -> Draft:
        """The draft of a plan that is quantized already."""
        material = spread(self.items, self.streams, self.form, plan, quantized, self.basis)
        surveyed = survey(material)
        size = estimate_bytes(material, surveyed, self.envelope, self.raw_sections)
        last = quantized.rungs - 1
        error = (
            coded_nmse(self.form, quantized, self._amplitudes(quantized, material, last), self.basis, last)
            if self.objectives[-1].name == "nmse"
            else self._error(quantized, material)
        )
        return Draft(plan, quantized, material, surveyed, size, error)

    def for_bytes(self, limit: int) -> Draft:
        """The best draft of at most `limit` bytes, within 0.3% where the adapter allows it.

        Raises:
            EncodeError: even with nothing kept the file is larger.
        """
        empty = self.draft(2.0 ** (_HIGH + self._unit))
        if empty.bytes > limit:
            raise EncodeError(
                f"size {limit} bytes cannot be reached: names, configuration and tensors carried as they are "
                f"take {empty.bytes} bytes", code="unreachable"
            )  # fmt: skip
        finest = make_plan(self.form, self.objectives, 2.0 ** (_LOW + self._unit), self.steps)
        if finest.bits.sum() / 8 + empty.bytes <= limit:
            return self.draft(finest.lagrangian)
        overhead = float(empty.bytes)

        def guess(found: Draft | None) -> float:
            nonlocal overhead
            if found is not None:
                overhead = found.bytes - found.plan.bits.sum() / 8
            return self._solve(lambda plan: plan.bits.sum() / 8, 0.9985 * limit - overhead)

        hunted = self._hunt(guess, lambda d: d.bytes <= limit, lambda d: d.bytes >= 0.997 * limit, largest=False)
        if hunted is None:
            return empty
        return self._filled(hunted, lambda d: d.bytes <= limit, lambda d: 1 - d.bytes / limit, bits=8.0 * limit)

    def for_error(self, target: float) -> Draft:
        """The smallest draft whose error is at most `target`, within 0.5% of it where the adapter allows it.

        Raises:
            EncodeError: the finest quantizers lose more.
        """
        ratio = 1.0

        def guess(found: Draft | None) -> float:
            nonlocal ratio
            if found is not None and found.error > 0:
                ratio = found.error / max(self.expected_error(found.plan), 1e-12)
            # The error rises with lambda: its complement is what falls.
            return self._solve(lambda plan: 1 - self.expected_error(plan), 1 - 0.9985 * target / ratio)

        hunted = self._hunt(guess, lambda d: d.error <= target, lambda d: d.error >= 0.995 * target, largest=True)
        if hunted is None:
            finest = self.draft(2.0 ** (_LOW + self._unit))
            if finest.error > target:
                raise EncodeError(
                    f"error {target:g} cannot be reached: the finest quantizers leave {finest.error:.3g}",
                    code="unreachable",
                )
            return finest
        return self._filled(hunted, lambda d: d.error <= target, lambda d: 1 - d.error / target, error=target)

    def _filled(
        self,
        found: Draft,
        fits: Callable[[Draft], bool],
        slack: Callable[[Draft], float],
        *,
        bits: float = 0.0,
        error: float = 0.0,
    ) -> Draft:
        """A draft that fits, and what single units can still do for it.

        Args:
            found: It.
            fits: Whether a draft meets the target.
            slack: Share of the target that a draft leaves unused.
            bits: The target where it is a size, else 0.
            error: The target where it is an error, else 0.
        """
        left = slack(found)
        if left < _SLACK or len(self.steps) > 1:
            return found
        plan = found.plan
        del found
        for share in (0.95, 0.7, 0.4):
            nudges = fill(self.form, plan, bits=share * left * bits, error=share * left * error)
            tried = self.draft(plan.lagrangian, nudges)
            if fits(tried):
                return tried
        return self.draft(plan.lagrangian)

    def _hunt(
        self,
        guess: Callable[[Draft | None], float],
        fits: Callable[[Draft], bool],
        close: Callable[[Draft], bool],
        *,
        largest: bool,
    ) -> Draft | None:
        """Drafts at guessed lambdas, kept inside a bracket that closes, until one fits closely.

        Args:
            guess: lambda from the theory, corrected by the last draft.
            fits: Whether a draft meets the target.
            close: Whether one that fits comes close enough to it.
            largest: Small lambdas fit (an error is the target), and large ones do not; or the other way round.

        Returns:
            The closest draft that fits, if any was found.
        """
        inside: float | None = None  # log2 lambda of the best draft that fits
        outside: float | None = None
        kept = False  # whether `found` is the best draft; an older one would be made again, not held in memory
        found: Draft | None = None
        for attempt in range(_DRAFTS):
            at = float(np.log2(guess(found)))
            if inside is not None and outside is not None:
                low, high = min(inside, outside), max(inside, outside)
                if high - low < _NARROW:
                    break
                margin = (high - low) / 8
                if attempt % 3 == 2 or not low < at < high:
                    at = (low + high) / 2
                at = min(max(at, low + margin), high - margin)
            elif found is not None and abs(at - float(np.log2(found.plan.lagrangian))) < _NARROW:
                at += (-1.0 if largest == (outside is not None) else 1.0) * 2.0 ** min(attempt - 3, 4)
            found = None  # lets go of the last draft before the next is made
            found = self.draft(2.0**at)
            kept = fits(found)
            if not kept:
                outside = at
                continue
            inside = at
            if close(found):
                break
        if inside is None:
            return None
        return found if kept else self.draft(2.0**inside)

    def expected_error(self, plan: RatePlan) -> float:
        """Error of a plan by the quantizers' theory, relative to the whole adapter."""
        total = float((self.form.strength**2).sum())
        if total == 0:
            return 0.0
        return 1 - float((self.form.strength[plan.kept] ** 2 * plan.survival[-1]).sum()) / total

    def tamed(self, target: float, *, size: bool) -> Search:
        """The search with the boldest objective whose noise stays under NOISE_CAP at the target.

        Gamma is a slope for little noise. Noise adds up through a network, and beyond about 3 to 5 times the delta's
        own energy models were seen to break, so a plan that would have more takes a smaller gamma.

        Args:
            target: Bytes, or an error.
            size: Whether they are bytes.
        """
        chosen = self.objectives[-1]
        if chosen.name != "nmse":
            low, high = 0, len(QUIETER_OBJECTIVES) - 1  # high is tame whatever the plan
            while low < high:
                middle = (low + high) // 2
                tried = replace(self, objectives=(QUIETER_OBJECTIVES[middle],))
                if tried.planned(target, size=size).noise[-1] <= NOISE_CAP:
                    high = middle
                else:
                    low = middle + 1
            chosen = QUIETER_OBJECTIVES[low]
        coded = float(replace(self, objectives=(chosen,)).planned(target, size=size).bits.sum()) / 8
        grain: Grain = "fine" if coded > _FINE_BYTES else "coarse"
        if coded > _SEARCHED_BYTES and not self.thorough:
            grain = "scalar"
        return replace(self, objectives=(replace(chosen, grain=grain),))

    def planned(self, target: float, *, size: bool) -> RatePlan:
        """A plan for a target by theory alone."""
        if size:
            lagrangian = self._solve(lambda plan: plan.bits.sum() / 8, max(1.0, target - self.overhead))
        else:
            lagrangian = self._solve(lambda plan: 1 - self.expected_error(plan), 1 - target)
        return make_plan(self.form, self.objectives, lagrangian, self.steps)

    def climbing(self, sizes: Sequence[int] | None, last: RatePlan) -> Search:
        """The search for a ladder whose last rung is about `last`.

        Args:
            sizes: Bytes of the coarser rungs; None is quarters of the whole down to SMALLEST_RUNG, RUNGS at most.
            last: A plan of one rung.
        """
        whole = float(last.bits.sum() / 8 + self.overhead)
        if sizes is None:
            quarters = [whole / 4**k for k in range(RUNGS - 1, 0, -1)]
            sizes = [int(size) for size in quarters if size >= max(SMALLEST_RUNG, 2 * self.overhead)]
        steps = {0: last.objectives[-1]}
        for size in sizes:
            alone = self.tamed(size, size=True)
            coarser = alone.planned(size, size=True)
            beside = alone.draft(coarser.lagrangian).bytes - float(coarser.bits.sum()) / 8 - self.overhead
            coarser = alone.planned(max(1.0, size - beside), size=True)
            step = round(PRECISION_STEPS / 2 * float(np.log2(last.lagrangian / coarser.lagrangian)))
            if step < 0:
                steps.setdefault(step, coarser.objectives[-1])
        return replace(self, steps=tuple(sorted(steps)), objectives=tuple(steps[step] for step in sorted(steps)))

    @property
    def overhead(self) -> int:
        """Bytes of a file with nothing kept."""
        if not self.workspace.empty_bytes:
            alone = replace(self, steps=(0,), objectives=self.objectives[-1:])
            self.workspace.empty_bytes = alone.draft(2.0 ** (_HIGH + self._unit)).bytes
        return self.workspace.empty_bytes

    @property
    def _unit(self) -> float:
        energy = float((self.form.strength**2).sum()) / max(1, self.form.units)
        return float(np.log2(energy)) if energy > 0 else 0.0

    def _solve(self, falling: Callable[[RatePlan], float], wanted: float) -> float:
        """lambda at which a quantity that falls with it gets down to `wanted`."""
        low, high = _LOW + self._unit, _HIGH + self._unit
        for _ in range(26):
            middle = (low + high) / 2
            if falling(make_plan(self.form, self.objectives, 2.0**middle, self.steps)) > wanted:
                low = middle
            else:
                high = middle
        return float(2.0 ** ((low + high) / 2))

    def weights(self) -> Float64Array:
        """Weight of each record in the objective, (records,): its energy unless it is weighted otherwise."""
        return np.bincount(self.form.record, self.form.strength**2, minlength=len(self.items)).astype(np.float64)

    def effective_errors(self, draft: Draft, weights: Float64Array) -> list[Float64Array] | None:
        """Effective error of each record at each rung, in the units of its weight; None where NMSE is the objective."""
        if self.objectives[-1].name == "nmse":
            return None
        errors = []
        for rung in range(draft.quantized.rungs):
            survived = np.bincount(
                self.form.record[draft.quantized.kept],
                self.form.strength[draft.quantized.kept] ** 2 * self._share(draft.quantized, draft.material, rung),
                minlength=len(weights),
            )
            errors.append(np.maximum(weights - survived, 0.0))
        return errors

    def _share(self, quantized: QuantizedForm, material: FileContent, rung: int) -> Float64Array:
        """Share of each kept unit's energy that survives at a rung, with its amplitude as rounded."""
        ratio = np.exp2((self._amplitudes(quantized, material, rung) - quantized.amplitude[rung]) / 16)
        share = np.prod(quantized.survival[rung], axis=0) * (2 * ratio - ratio**2)
        return np.where(quantized.entry <= rung, share, 0.0)

    def _error(self, quantized: QuantizedForm, material: FileContent) -> float:
        total = float((self.form.strength**2).sum())
        if total == 0:
            return 0.0
        kept = self.form.strength[quantized.kept] ** 2 * self._share(quantized, material, quantized.rungs - 1)
        return 1 - float(kept.sum()) / total

    def _amplitudes(self, quantized: QuantizedForm, material: FileContent, rung: int) -> npt.NDArray[np.int64]:
        """Amplitude codes at a rung, in the order of the kept units; 0 before they come."""
        codes = np.zeros(len(quantized.kept), np.int64)
        for units, record in zip(
            units_of_records(quantized, self.form, len(self.items)), material.ladder[rung], strict=True
        ):
            codes[units[: record.units]] = record.amplitude
        return codes
