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
from nola_codec.encoder.material import Material
from nola_codec.encoder.spread import spread
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import Objective, Plan, ladder, make_plan, precision_shifts
from nola_codec.fit.bank import Bank
from nola_codec.fit.quantize import Quantized, quantize
from nola_codec.model import LoraModule

_DRAFTS = 7
_LOW, _HIGH = -60.0, 40.0
"""log2 of lambda relative to the adapter's mean energy a unit."""


@dataclass(frozen=True)
class Draft:
    """A candidate and what it would cost."""

    plan: Plan
    quantized: Quantized
    material: Material
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
        size = estimate_bytes(material, self.envelope, self.raw_sections)
        return Draft(plan, quantized, material, size, self._error(quantized, material))

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
        wanted = 8.0 * (limit - empty.bytes)
        best: Draft | None = None
        for _ in range(_DRAFTS):
            found = self.draft(self._solve(lambda plan: plan.bits, wanted))
            if found.bytes <= limit and (best is None or found.bytes > best.bytes):
                best = found
            if 0.997 * limit <= found.bytes <= limit:
                break
            wanted += 8.0 * (0.9985 * limit - found.bytes)
            if wanted <= 0:
                wanted = 8.0
        return best if best is not None else empty

    def for_error(self, target: float) -> Draft:
        """The smallest draft whose error is at most `target`, within 0.5% of it where the adapter allows it."""
        wanted = target
        best: Draft | None = None
        for _ in range(_DRAFTS):
            # The error rises with lambda: its complement is what falls.
            found = self.draft(self._solve(lambda plan: 1 - self.expected_error(plan), 1 - wanted))
            if found.error <= target and (best is None or found.bytes < best.bytes):
                best = found
            if 0.995 * target <= found.error <= target:
                break
            wanted *= 0.9985 * target / found.error
        if best is None:
            raise EncodeError(
                f"error {target} cannot be reached: the finest quantizers leave {found.error:.3g}", code="unreachable"
            )
        return best

    def expected_error(self, plan: Plan) -> float:
        """Error of a plan by the quantizers' theory, relative to the whole adapter."""
        total = float((self.bank.strength**2).sum())
        if total == 0:
            return 0.0
        kept = np.ones(len(plan.kept))
        for side in (0, 1):
            steps = ladder(plan.objective, side)
            kept = (
                kept * steps.survival[steps.at(plan.precision + precision_shifts(self.bank.lengths[side][plan.kept]))]
            )
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

    def effective_errors(self, draft: Draft, energies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """Effective error of each module, in the units of its energy; None where NMSE is the objective."""
        if self.objective.name == "nmse":
            return None
        survived = np.bincount(
            self.bank.module[draft.quantized.kept],
            self.bank.strength[draft.quantized.kept] ** 2 * self._share(draft.quantized, draft.material),
            minlength=len(energies),
        )
        return np.maximum(energies - survived, 0.0)

    def _share(self, quantized: Quantized, material: Material) -> npt.NDArray[np.float64]:
        """Share of each kept unit's energy that survives, with its amplitude as rounded."""
        rounded = np.concatenate([r.amplitude for r in material.records]) if material.records else np.zeros(0)
        order = np.argsort(self.bank.module[quantized.kept], kind="stable")
        ratio = np.empty(len(order))
        ratio[order] = np.exp2((rounded - quantized.amplitude[order]) / 16)
        return np.asarray(np.prod(quantized.survival, axis=0) * (2 * ratio - ratio**2))

    def _error(self, quantized: Quantized, material: Material) -> float:
        total = float((self.bank.strength**2).sum())
        if total == 0:
            return 0.0
        kept = self.bank.strength[quantized.kept] ** 2 * self._share(quantized, material)
        return 1 - float(kept.sum()) / total
