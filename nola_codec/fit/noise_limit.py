"""How much noise a file may let in, and the objectives to choose from so that it lets in no more.

A gamma says how little noise counts, but it holds for little noise only: noise adds up through a network. What breaks a
network is noise that is large beside its own weights. The encoder does not see these, but those of different models are
alike, and the deltas of different adapters are not: a row of delta_W had a squared norm of 0.002 on average for one
adapter that was measured, and of 2 for another one. So the limit is a squared norm of the noise in a row of delta_W,
that is for an output of a layer. docs/experiments/rules.md has the
measurements.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nola_codec.fit.allocation import EFFECTIVE, Objective
from nola_codec.fit.canonical_form import LORA_B, CanonicalForm

NOISE_PER_OUTPUT = 0.01
"""Greatest mean of the noise's squared norm in a row of delta_W."""
NOISE_RANGE = (0.5, 6.0)
"""The least and the greatest limit, over ||delta_W||^2 of the file: the range that was measured."""
_STEPS = 18


def _quieter(factor: float) -> Objective:
    """Return the effective objective with gammas times a factor below 1, and its square for lora_A's."""
    u, v, dense, plain = EFFECTIVE.gamma
    return replace(EFFECTIVE, gamma=(u * factor, max(u * factor, v * factor**2), dense * factor, plain))


QUIETER_OBJECTIVES = (EFFECTIVE, *(_quieter(2 ** (-step / 4)) for step in range(1, _STEPS)))
"""`EFFECTIVE`, then objectives that let through less and less noise, down to a gamma of 1.05."""


def noise_limit(form: CanonicalForm) -> float:
    """Return the greatest noise that a plan may let in, over ||delta_W||^2 of the file.

    Tensors that are coded as vectors have no rows here; without a pair of factors the limit is the greatest one.
    """
    low, high = NOISE_RANGE
    paired = (form.roles[0] == LORA_B) & (form.lengths[1] > 0)
    energy = form.strength**2 if form.energy is None else form.energy
    energy_of_pairs = float(energy[paired].sum())
    if energy_of_pairs == 0:
        return high
    first = np.unique(form.record[paired], return_index=True)[1]
    outputs = float(form.lengths[0, paired][first].sum())
    return min(max(NOISE_PER_OUTPUT * outputs / energy_of_pairs, low), high)
