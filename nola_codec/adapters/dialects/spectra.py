"""What FourierFT and WaveFT share: one spectrum for each layer, whose numbers stand at places that a seed draws.

PEFT permutes all elements of the layer (`torch.randperm`), and the first n of them are the places. The seed is one for
all layers, so layers of one shape have the same places. Only the model tells the shape of a layer.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import Values
from nola_codec.adapters.dialects.peft_config import real_number
from nola_codec.adapters.dialects.seeded import (
    Integers,
    Layer,
    MatrixPair,
    MethodTensors,
    SeededMethod,
    Shape,
    modules_of,
    require_count,
    require_seed,
)
from nola_codec.adapters.dialects.torch_draws import MOST_PERMUTED, permutation_start
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch

_MOST_PRODUCTS = 1 << 40
"""The most products of two factors; a layer of 8192 x 8192 with 16384 numbers has as many."""


class SpectrumMethod(SeededMethod):
    """The rules that both methods share.

    Attributes:
        ending: The end of the key of a spectrum.
        count: The number of elements that PEFT takes if the configuration says none.
        scaling: The scaling that PEFT takes if the configuration says none.
        open_count: The option of the configuration that leaves the number of elements open, or an empty string.
    """

    needs_layer_shape = True
    ending: str
    count: int
    scaling: float
    open_count: str = ""

    def __init__(self) -> None:
        """Make the pattern of the keys."""
        self.coded = re.compile(rf".+{re.escape(self.ending)}")

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the number of elements, the scaling and the seed; errors as in `SeededMethod`."""
        require_count(config, "n_frequency", self.count, where)
        pattern = config.get("n_frequency_pattern") or {}
        if not isinstance(pattern, dict):
            message = mismatch("n_frequency_pattern", "a map of names to numbers", pattern)
            raise AdapterError(message, code="bad-config", where=where)
        for name in pattern:
            require_count(pattern, name, self.count, f"{where}: n_frequency_pattern")
        real_number(config.get("scaling", self.scaling), "scaling", where)
        require_seed(config, "random_loc_seed", 777, where)

    def check_shapes(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str) -> None:
        """Check that each spectrum has as many numbers as the configuration says; errors as in `SeededMethod`."""
        allowed = {config.get("n_frequency", self.count)}
        allowed |= set((config.get("n_frequency_pattern") or {}).values())
        for key, shape in shapes.items():
            if not self.coded.fullmatch(key):
                continue
            if len(shape) != 1 or not shape[0]:
                raise AdapterError(mismatch("shape", "[n]", list(shape)), code="bad-shape", where=f"{where}: {key}")
            if shape[0] not in allowed and not (self.open_count and config.get(self.open_count)):
                message = mismatch("elements", " or ".join(str(n) for n in sorted(allowed)), shape[0])
                raise AdapterError(message, code="rank-mismatch", where=f"{where}: {key}")

    def layers(self, tensors: MethodTensors, config: Mapping[str, Any]) -> dict[str, Layer]:
        """Return all layers; the model tells their shapes."""
        scale = float(config.get("scaling", self.scaling))
        found = {}
        for module in modules_of(tensors.shapes, self.ending):
            key = module + self.ending
            found[module] = Layer((key,), None, partial(self._make, key, config), scale)
        return found

    def describe_missing(self, tensors: MethodTensors, config: Mapping[str, Any]) -> str:
        """Return nothing, since the seed and the model tell all else."""
        return ""

    def _make(self, key: str, config: Mapping[str, Any], values: Values, shape: tuple[int, int]) -> MatrixPair:
        """Return the factors of a layer. Raises AdapterError ``limit`` for a layer that is too large."""
        spectrum = np.asarray(values[key], np.float64)
        if shape[0] * shape[1] > MOST_PERMUTED:
            message = mismatch("elements of the layer", f"at most {MOST_PERMUTED}", shape[0] * shape[1])
            raise AdapterError(f"{message}; merge the decoded directory with PEFT", code="limit", where=key)
        if shape[0] * shape[1] * min(len(spectrum), *shape) > _MOST_PRODUCTS:
            message = (
                f"{len(spectrum)} numbers in a layer of {shape[0]} x {shape[1]} take more products than a merge may"
            )
            raise AdapterError(f"{message}; merge the decoded directory with PEFT", code="limit", where=key)
        places = permutation_start(config.get("random_loc_seed", 777), shape[0] * shape[1], len(spectrum))
        return self.make_factors(spectrum, (places // shape[1], places % shape[1]), shape, config)

    @abstractmethod
    def make_factors(
        self,
        spectrum: Float64Array,
        places: tuple[Integers, Integers],
        shape: tuple[int, int],
        config: Mapping[str, Any],
    ) -> MatrixPair:
        """Return left (out, K) and right (K, in) of the delta before the scaling.

        Args:
            spectrum: The numbers of the layer, (n,).
            places: The row and the column of each of them.
            shape: (out, in).
            config: The configuration.
        """
