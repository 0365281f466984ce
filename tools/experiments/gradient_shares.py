"""Share one budget of coefficients out to the modules of a PEFT model: more where the first gradient is larger.

    k_m ~ |dL/d lora_B_m|      for each module m, with one constant for the whole model

lora_B is zero in a fresh adapter, and then lora_A has no gradient; so lora_B's decides for both factors of a module.
A trial: `allotment.py` and `vit.py` compare it with the same number of coefficients for each factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
LEAST = 8
"""The fewest coefficients of a factor."""
_STEPS_PER_OCTAVE = 2
"""Counts are rounded to this many steps for each doubling, since a file describes each different count once."""


def share_out_num_basis(model: Any, total: int) -> dict[str, int]:
    """Return num_basis by the path of each module: the coefficients of each of its two factors.

    Args:
        model: A model of PEFT with a LoRA, after one backward pass. It is not parametrized yet.
        total: The budget: at most so many coefficients, those of both factors of all modules.
    """
    found = {path: m for path, m in model.named_modules() if "default" in getattr(m, "lora_A", ())}
    pairs = {path: (m.lora_B["default"].weight, m.lora_A["default"].weight) for path, m in found.items()}
    norms = np.array([float(lora_B.grad.float().norm()) for lora_B, _ in pairs.values()])
    sizes = np.array([[factor.numel() for factor in pair] for pair in pairs.values()])
    if not (np.isfinite(norms).all() and norms.any()):
        raise ValueError("expected gradients of lora_B that are finite and not all zero")
    least = int(np.minimum(sizes, LEAST).sum())
    if total < least:
        raise ValueError(f"expected a budget of at least {least}, {LEAST} for each factor; found {total}")
    counts = _largest_within(norms / norms.max(), sizes, total)
    return {path: int(count) for path, count in zip(pairs, counts, strict=True)}


def _largest_within(weights: Floats, sizes: Integers, total: int) -> Integers:
    """Return counts (modules,) in proportion to weights (modules,), as many as the budget allows.

    Args:
        weights: The weights, at most 1.
        sizes: The numbers of elements of both factors, (modules, 2), which the coefficients of a factor cannot exceed.
        total: The budget.
    """
    low, high = 0.0, float(sizes.max()) / max(float(weights[weights > 0].min()), 1e-12)
    for _ in range(100):  # the spent budget never falls as the unit grows
        unit = (low + high) / 2
        spent = int(np.minimum(_round_counts(unit * weights, sizes)[:, None], sizes).sum())
        low, high = (unit, high) if spent <= total else (low, unit)
    return _round_counts(low * weights, sizes)


def _round_counts(wanted: Floats, sizes: Integers) -> Integers:
    steps = np.round(_STEPS_PER_OCTAVE * np.log2(np.maximum(wanted, LEAST)))
    counts: Integers = np.minimum(np.round(2 ** (steps / _STEPS_PER_OCTAVE)), sizes.max(1)).astype(np.int64)
    return counts
