"""The rivals that round an adapter without data, each at several sizes: LoRAQuant and LoRDBA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from svd_codecs.columns import Component
from task_peers import PEER, Case, Deltas

from rivals.loraquant import LoraQuant
from rivals.sign_factors import SignFactors, amplified, best_gain

LORAQUANT = (
    LoraQuant(0.9, 3, 8), LoraQuant(0.9, 2, 8), LoraQuant(0.9, 2, 4), LoraQuant(1.0, 2, 2), LoraQuant(1.0, 2, 1),
)  # fmt: skip
SIGNS = (
    SignFactors(8, envelopes=True), SignFactors(2, envelopes=True), SignFactors(8, envelopes=False),
    SignFactors(4, envelopes=False), SignFactors(2, envelopes=False), SignFactors(1, envelopes=False),
)  # fmt: skip
GAINS = (1.0, 1.2, 1.4, 1.8, 2.4)
"""Gains that are tried on text: rounding by least squares shrinks a delta, and lost signal is what hurts a task."""


def weights_only(components: Sequence[Component], validate: Callable[[Deltas], float]) -> Iterator[Case]:
    """Yield every file at its best gain; `validate` returns the loss on rows that no result is measured on."""
    for setting in (*LORAQUANT, *SIGNS):
        count, deltas = setting(components)
        gain, _ = best_gain(deltas, GAINS, validate)
        yield Case(PEER, f"{setting.name}, gain {gain:g}", count, amplified(deltas, gain))
