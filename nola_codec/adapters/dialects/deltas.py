"""An adapter as the list of its deltas, whatever the dialect: what comparing and merging see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.adapters import dialect_of
from nola_codec.adapters.dialects.delta import SUFFIX as DIFF
from nola_codec.adapters.dialects.lycoris import Composite, part_values
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor


@dataclass(frozen=True)
class AdapterDelta:
    """What one adapter adds to one tensor: a sum of products and tensors, or what a composite makes of its parts.

    Attributes:
        name: Module path in the adapter's dialect; for a tensor that is no module's weight, its key.
        modules, vectors: The coded parts.
        composite: How the parts are combined; None is their sum, each product times its scaling.
    """

    name: str
    modules: tuple[LoraModule, ...] = ()
    vectors: tuple[VectorTensor, ...] = ()
    composite: Composite | None = None

    @property
    def product(self) -> LoraModule | None:
        """The module, where the delta is one product and nothing else."""
        single = len(self.modules) == 1 and not self.vectors and self.composite is None
        return self.modules[0] if single else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `dense` makes."""
        if self.composite is not None:
            shapes = {m.name: m.vector_lengths for m in self.modules}
            return self.composite.shape({**shapes, **{v.name: v.values.shape for v in self.vectors}})
        return self.modules[0].vector_lengths if self.modules else self.vectors[0].values.shape

    def dense(self) -> npt.NDArray[np.float64]:
        """The delta; a matrix (out, in) where it is a sum with products, else in the shape that its parts make.

        Raises:
            AdapterError: ``bad-shape`` for parts that do not fit each other.
        """
        if self.composite is not None:
            values = part_values([*self.modules, *self.vectors])
            return self.composite.combine({part: values[part]() for part in self.composite.parts})
        total: npt.NDArray[np.float64] | None = None
        for module in self.modules:
            product = module.lora_B.astype(np.float64) @ module.lora_A.astype(np.float64) * module.scaling
            total = product if total is None else total + product
        for vector in self.vectors:
            values64 = vector.values.astype(np.float64)
            total = values64 if total is None else total + values64.reshape(total.shape)
        return np.zeros(0) if total is None else total


def deltas(adapter: Adapter) -> list[AdapterDelta]:
    """All deltas, in the order of their names.

    Raises:
        AdapterError: ``foreign-dialect``, and those of the dialect's `composites`.
    """
    composites = dialect_of(adapter.dialect).composites(adapter)
    modules = {m.name: m for m in adapter.modules}
    vectors = {v.name: v for v in adapter.vectors}
    found: dict[str, AdapterDelta] = {}
    taken: set[str] = set()
    for composite in composites:
        taken.update(composite.parts)
        found[composite.name] = AdapterDelta(
            composite.name,
            tuple(modules[part] for part in composite.parts if part in modules),
            tuple(vectors[part] for part in composite.parts if part in vectors),
            composite,
        )
    for name, module in modules.items():
        if name not in taken:
            residue = vectors.get(name + DIFF)
            taken.add(name + DIFF)
            found[name] = AdapterDelta(name, (module,), () if residue is None else (residue,))
    for name, vector in vectors.items():
        if name not in taken:
            found[name] = AdapterDelta(name, (), (vector,))
    return [found[name] for name in sorted(found)]
