"""The rivals that round an adapter without data, each at several sizes: LoRAQuant and LoRDBA."""

from __future__ import annotations

import sys
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
GAINS = (1.0, 1.4, 1.8)
"""Gains of LoRDBA that are tried on validation rows."""


def weights_only(components: Sequence[Component], validate: Callable[[Deltas], float]) -> Iterator[Case]:
    """Yield every file; `validate` returns the loss on rows to choose on, which no result is measured on."""
    for setting in LORAQUANT:
        count, deltas = setting(components)
        yield Case(PEER, setting.name, count, deltas)
    for signs in SIGNS:
        count, deltas = signs(components)
        gain, losses = best_gain(deltas, GAINS, validate)
        print(f"{signs.name}: losses by gain {losses}", file=sys.stderr, flush=True)
        yield Case(PEER, f"{signs.name}, gain {gain:g}", count, amplified(deltas, gain))
