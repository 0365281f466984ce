"""Spread form with rate control: from a bank to material of the wanted size or error.

Expected sizes and errors come from the plan alone; a draft (quantized, not yet entropy-coded) corrects them. Two or
three drafts reach the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.encoder.assemble import Envelope, estimate_bytes
from nola_codec.encoder.material import Material, Survey, survey
from nola_codec.encoder.spread import spread
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import Objective, Plan, ladder, make_plan, precision_shifts
from nola_codec.fit.bank import Bank
from nola_codec.fit.quantize import Quantized, coded_nmse, quantize
from nola_codec.fit.weighted_plan import cosine2_of
from nola_codec.model import LoraModule

_DRAFTS = 16
_NARROW = 2e-3
"""Width of a bracket of log2 lambda at which the hunt ends."""
_LOW, _HIGH = -60.0, 40.0
"""log2 of lambda relative to the adapter's mean energy a unit."""


@dataclass(frozen=True)
class Draft:
    """A candidate and what it would cost."""

    plan: Plan
    quantized: Quantized
    material: Material
    surveyed: Survey
    bytes: int
    error: float

    def measured(self) -> dict[str, float]:
        """What the header says of the objective."""
        return {} if self.plan.objective.name == "nmse" else {"effective_error": self.error}


@dataclass(frozen=True)
class Search:
    """Everything a draft is made of but lambda."""

    modules: Sequence[LoraModule]
    streams: Sequence[int]
    bank: Bank
    basis: int
    objective: Objective
    envelope: Envelope
    raw_sections: Sequence[tuple[int, bytes]]

    def draft(self, lagrangian: float) -> Draft:
        """Quantize at a lambda and estimate size and error."""
        plan = make_plan(self.bank, self.objective, lagrangian)
        quantized = quantize(self.bank, plan, self.basis)
        material = spread(self.modules, self.streams, self.bank, plan, quantized, self.basis)
        surveyed = survey(material)
        size = estimate_bytes(material, surveyed, self.envelope, self.raw_sections)
        error = (
            coded_nmse(self.bank, quantized, _amplitudes(quantized, material, self.bank), self.basis)
            if self.objective.name == "nmse"
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
        finest = make_plan(self.bank, self.objective, 2.0 ** (_LOW + self._unit))
        if finest.bits / 8 + empty.bytes <= limit:
            return self.draft(finest.lagrangian)
        overhead = float(empty.bytes)

        def guess(found: Draft | None) -> float:
            nonlocal overhead
            if found is not None:
                overhead = found.bytes - found.plan.bits / 8
            return self._solve(lambda plan: plan.bits / 8, 0.9985 * limit - overhead)

        hunted = self._hunt(guess, lambda d: d.bytes <= limit, lambda d: d.bytes >= 0.997 * limit, largest=False)
        return hunted if hunted is not None else empty

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
        return hunted

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

    def expected_error(self, plan: Plan) -> float:
        """Error of a plan by the quantizers' theory, relative to the whole adapter."""
        total = float((self.bank.strength**2).sum())
        if total == 0:
            return 0.0
        kept = np.ones(len(plan.kept))
        for side in (0, 1):
            steps = ladder(plan.objective, side)
            survival = steps.survival[steps.at(plan.precision + precision_shifts(self.bank.lengths[side][plan.kept]))]
            if self.bank.tolerance is not None:
                cosine2 = cosine2_of(survival, plan.objective.gamma[side])
                survival = plan.objective.survival(cosine2, side, self.bank.bears(side, plan.kept))
            kept = kept * survival
        return 1 - float((self.bank.strength[plan.kept] ** 2 * kept).sum()) / total

    @property
    def _unit(self) -> float:
        energy = float((self.bank.strength**2).sum()) / max(1, self.bank.units)
        return float(np.log2(energy)) if energy > 0 else 0.0

    def _solve(self, falling: Callable[[Plan], float], wanted: float) -> float:
        """lambda at which a quantity that falls with it gets down to `wanted`."""
        low, high = _LOW + self._unit, _HIGH + self._unit
        for _ in range(44):
            middle = (low + high) / 2
            if falling(make_plan(self.bank, self.objective, 2.0**middle)) > wanted:
                low = middle
            else:
                high = middle
        return float(2.0 ** ((low + high) / 2))

    def weights(self) -> npt.NDArray[np.float64]:
        """Weight of each module in the objective, (modules,): its energy unless it is weighted otherwise."""
        return np.bincount(self.bank.module, self.bank.strength**2, minlength=len(self.modules)).astype(np.float64)

    def effective_errors(self, draft: Draft, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """Effective error of each module, in the units of its weight; None where NMSE is the objective."""
        if self.objective.name == "nmse":
            return None
        survived = np.bincount(
            self.bank.module[draft.quantized.kept],
            self.bank.strength[draft.quantized.kept] ** 2 * self._share(draft.quantized, draft.material),
            minlength=len(weights),
        )
        return np.maximum(weights - survived, 0.0)

    def _share(self, quantized: Quantized, material: Material) -> npt.NDArray[np.float64]:
        """Share of each kept unit's energy that survives, with its amplitude as rounded."""
        ratio = np.exp2((_amplitudes(quantized, material, self.bank) - quantized.amplitude) / 16)
        return np.asarray(np.prod(quantized.survival, axis=0) * (2 * ratio - ratio**2))

    def _error(self, quantized: Quantized, material: Material) -> float:
        total = float((self.bank.strength**2).sum())
        if total == 0:
            return 0.0
        kept = self.bank.strength[quantized.kept] ** 2 * self._share(quantized, material)
        return 1 - float(kept.sum()) / total


def _amplitudes(quantized: Quantized, material: Material, bank: Bank) -> npt.NDArray[np.int64]:
    """Amplitude codes in the order of the kept units; records hold them by module."""
    codes = np.empty(len(quantized.kept), np.int64)
    if material.records:
        order = np.argsort(bank.module[quantized.kept], kind="stable")
        codes[order] = np.concatenate([r.amplitude for r in material.records])
    return codes
