"""The dialect `parameters`: a whole network whose tensors were trained as coefficients, not a change of another one.

The name of a low-rank record is that of a parameter (``layer1.0.conv1.weight``). The parameter is the product of the
factors, in the shape that ``config["shapes"]`` gives if it differs from that of the product. The name of a vector or of
a carried tensor is its key. Together they are a plain state dict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.adapters.adapter_delta import multiply_factors
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32, from_float64

SHAPES = "shapes"
"""The key of the configuration for the shapes of parameters whose shape is not that of their product, by name."""
MOST_DIMENSIONS = 8
"""The most dimensions of a parameter."""
MOST_ELEMENTS = 1 << 31
"""The most elements of a product, since two small factors can make a large product."""
MOST_TOGETHER = 1 << 34
"""The most elements of all products together."""


def tensor_shapes(
    config: Mapping[str, Any] | None, products: Mapping[str, tuple[int, int]], where: str = "config"
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each low-rank record's parameter.

    Args:
        config: The configuration of the file.
        products: (rows, columns) of each low-rank record's product, by name.
        where: The name of the configuration, for messages.

    Raises:
        AdapterError: ``bad-config`` for an entry that is not a shape, has another number of elements than the product,
            or belongs to no product; ``limit`` for a product of more than `MOST_ELEMENTS` elements, or for all products
            of more than `MOST_TOGETHER`.
    """
    sizes = {key: rows * columns for key, (rows, columns) in products.items()}
    for key, size in sizes.items():
        if size > MOST_ELEMENTS:
            raise AdapterError(f"{size} elements, over {MOST_ELEMENTS}", code="limit", where=key)
    if sum(sizes.values()) > MOST_TOGETHER:
        message = f"{sum(sizes.values())} elements together, over {MOST_TOGETHER}"
        raise AdapterError(message, code="limit", where=where)
    given = (config or {}).get(SHAPES, {})
    if not isinstance(given, Mapping):
        raise AdapterError(mismatch(SHAPES, "a map of names to shapes", given), code="bad-config", where=where)
    shapes: dict[str, tuple[int, ...]] = dict(products)
    for key, shape in given.items():
        if key not in products:
            raise AdapterError(f"{SHAPES}: the file has no factors of {key!r}", code="bad-config", where=where)
        if not (
            isinstance(shape, list | tuple)
            and len(shape) <= MOST_DIMENSIONS
            and all(type(n) is int and n > 0 for n in shape)
            and math.prod(shape) == sizes[key]
        ):
            wanted = f"a shape of {sizes[key]} elements in at most {MOST_DIMENSIONS} dimensions"
            raise AdapterError(mismatch(f"{SHAPES}: {key}", wanted, shape), code="bad-config", where=where)
        shapes[key] = tuple(shape)
    return shapes


class Parameters(Dialect):
    """The dialect of networks that were trained as coefficients."""

    name = "parameters"
    title = "parameters of a network"
    file_name = "model.safetensors"
    holds_whole_weights = True

    def detect(self, source: AdapterSource) -> bool:
        """Return False, since no file is read in this dialect: training makes such adapters."""
        return False

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Raise AdapterError ``foreign-dialect``; see `detect`."""
        message = "a network's parameters are trained as coefficients (nola_codec.training), not encoded"
        raise AdapterError(message, code="foreign-dialect", where=source.where)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return the state dict of the network.

        Args:
            adapter: The decoded file.
            dtype: The dtype that products and vectors are rounded to, once; None is F32. Carried tensors do not change.

        Raises:
            AdapterError: ``overflow``; ``not-expressible`` for factors that are not a plain product; and those of
                `tensor_shapes`.
        """
        for module in adapter.modules:
            if module.layout != "linear" or module.scaling != 1 or module.fan_in_fan_out:
                message = mismatch("record", "a linear one with scaling 1", f"{module.layout}, {module.scaling}")
                raise AdapterError(f"{self.title}: {message}", code="not-expressible", where=module.name)
        shapes = tensor_shapes(adapter.config, {module.name: module.vector_lengths for module in adapter.modules})
        made: dict[str, RawTensor] = {}
        for module in adapter.modules:
            product = multiply_factors(module.lora_B, module.lora_A).reshape(shapes[module.name])
            made[module.name] = from_float64(product, dtype or "F32", where=module.name)
        for vector in adapter.vectors:
            made[vector.name] = from_float32(vector.values, dtype or "F32", where=vector.name)
        return {**made, **adapter.raw}

    def path_of(self, name: str) -> str:
        """Raise AdapterError ``not-expressible``."""
        message = "this is a weight of the network itself, and not a change of another weight"
        raise AdapterError(message, code="not-expressible", where=name)

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Raise AdapterError ``not-expressible``."""
        message = "the file holds a network's own weights, and not an adapter"
        raise AdapterError(message, code="not-expressible")

    def require_mergeable(self, where: str) -> None:
        """Raise AdapterError ``merge-network``."""
        message = (
            "holds a network's own weights, and not a change of another network: use "
            "model.load_state_dict(file.state_dict())"
        )
        raise AdapterError(message, code="merge-network", where=where)


PARAMETERS = Parameters()
