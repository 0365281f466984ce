"""`compare`: two adapters, in any mixture of `.nola` and what `encode` reads, by their deltas."""

from __future__ import annotations

from dataclasses import dataclass

from nola_codec.adapters import AnySource
from nola_codec.api.decoding import read_adapter
from nola_codec.errors import AdapterError
from nola_codec.fit.canonical import delta_energy, squared_error, squared_norm, vector_error
from nola_codec.model import Codable, LoraModule, VectorTensor


@dataclass(frozen=True)
class TensorComparison:
    """One adapted weight, or one tensor coded as a vector.

    Attributes:
        name: Module path, or a vector's key.
        shape: (out, in) of delta_W, convolutions flattened; of a vector its own.
        nmse: ||delta_A - delta_B||_F^2 / ||delta_A||_F^2; infinite where only delta_A is zero.
    """

    name: str
    shape: tuple[int, ...]
    nmse: float


@dataclass(frozen=True)
class Comparison:
    """Two adapters.

    Attributes:
        nmse: Over all weights and vectors that both have; NaN when there is none.
        tensors: By weight.
        only_in_a, only_in_b: Weights that one lacks.
        carried_equal, carried_different: Tensors carried as they came, by whether their bits agree.
    """

    nmse: float
    tensors: tuple[TensorComparison, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    carried_equal: tuple[str, ...]
    carried_different: tuple[str, ...]

    @property
    def same_structure(self) -> bool:
        """Whether both have the same weights, and equal carried tensors."""
        return not (self.only_in_a or self.only_in_b or self.carried_different)


def compare(a: AnySource, b: AnySource) -> Comparison:
    """Compare two adapters, scaling included. `a` is the reference.

    Raises:
        AdapterError: one cannot be read, or a weight differs in shape.
        FormatError: a damaged `.nola` file.
    """
    first, second = read_adapter(a), read_adapter(b)
    items: list[Codable] = [*first.modules, *first.vectors]
    others: dict[str, Codable] = {m.name: m for m in second.modules}
    others |= {v.name: v for v in second.vectors}
    tensors = []
    lost = energy = 0.0
    for item in items:
        other = others.get(item.name)
        if other is None:
            continue
        error, own = _error(item, other)
        lost, energy = lost + error, energy + own
        tensors.append(TensorComparison(item.name, _shape(item), _ratio(error, own)))
    names = {item.name for item in items}
    carried = sorted(set(first.raw) | set(second.raw))
    equal = tuple(key for key in carried if first.raw.get(key) == second.raw.get(key))
    return Comparison(
        nmse=_ratio(lost, energy) if tensors else float("nan"),
        tensors=tuple(tensors),
        only_in_a=tuple(sorted(names - set(others))),
        only_in_b=tuple(sorted(set(others) - names)),
        carried_equal=equal,
        carried_different=tuple(key for key in carried if key not in equal),
    )


def _shape(item: Codable) -> tuple[int, ...]:
    return item.vector_lengths if isinstance(item, LoraModule) else item.values.shape


def _error(a: Codable, b: Codable) -> tuple[float, float]:
    shapes = [_shape(item) for item in (a, b)]
    if shapes[0] != shapes[1]:
        raise AdapterError(f"delta shapes differ: {shapes[0]} and {shapes[1]}", code="shape", where=a.name)
    if isinstance(a, VectorTensor) and isinstance(b, VectorTensor):
        return vector_error(a.values, b.values), squared_norm(a.values)
    if not (isinstance(a, LoraModule) and isinstance(b, LoraModule)):
        raise AdapterError("a pair of factors in one, a vector in the other", code="shape", where=a.name)
    energy = delta_energy(a.lora_B, a.lora_A) * a.scaling**2
    error = squared_error(a.lora_B * a.scaling, a.lora_A, b.lora_B * b.scaling, b.lora_A)
    return error, energy


def _ratio(error: float, energy: float) -> float:
    if energy > 0:
        return error / energy
    return 0.0 if error == 0 else float("inf")
