"""An adapter with its weight in a sum, and products of numbers with weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nola_codec.adapters.dialects.module_rules import is_power_of_two
from nola_codec.array_types import Float32Array
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter to join.

    Attributes:
        name: The name of its file, for messages.
        adapter: The adapter.
        weight: The number that its deltas are multiplied by.
    """

    name: str
    adapter: Adapter
    weight: float = 1.0


def times(values: Float32Array, factor: float, name: str) -> Float32Array:
    """Return float32 values of any shape times a factor, rounded once to float32.

    Args:
        values: The values.
        factor: The factor; nothing is rounded if it is 1.
        name: The name of the file, for the message.

    Raises:
        AdapterError: ``overflow``.
    """
    if factor == 1.0:
        return values
    with np.errstate(over="ignore"):
        product = (values.astype(np.float64) * factor).astype(np.float32)
    if not np.isfinite(product).all():
        raise AdapterError(f"times {factor:g} is too large for float32", code="overflow", where=name)
    return product


def is_exact(factor: float) -> bool:
    """Return True if a product with this factor needs no rounding: for 0 and for powers of two."""
    return factor == 0 or is_power_of_two(factor)
