"""What is lost of deltas that are made of several coded parts: measured on the delta, not on the parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.adapters import dialect_of
from nola_codec.adapters.adapter_delta import CombinedDelta, part_values
from nola_codec.adapters.dialects import peft_diagonals
from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import Decoded, DecodedFactors
from nola_codec.model.adapter import Adapter, Codable, LoraModule, VectorTensor


class CompositeErrors:
    """Takes decoded parts as they come and says what their delta lost, once it has all of them.

    Error and energy of a delta are shared out evenly among its parts, so that sums over records are sums over deltas.
    """

    def __init__(self, adapter: Adapter, items: Sequence[Codable]) -> None:
        every = dialect_of(adapter).combined_deltas(adapter)
        coded = [each for each in every if each.parts]
        composites = [each for each in coded if each.is_measurable]
        self._diagonals = (len(composites), len(coded)) if any(c.has_estimated_gains for c in coded) else (0, 0)
        self._bare = peft_diagonals.method_of(adapter.config) is not None and bool(adapter.vectors) and not every
        numbers = {item.name: index for index, item in enumerate(items)}
        self._estimated: dict[str, list[int]] = {}
        if peft_diagonals.method_of(adapter.config) is not None:
            exact = {part for each in composites for part in each.parts}
            for vector in adapter.vectors:
                if vector.name not in exact:
                    module = vector.name.rpartition(".")[0]
                    self._estimated.setdefault(module, []).append(numbers[vector.name])
        self._items = items
        self._of: dict[int, CombinedDelta] = {numbers[part]: each for each in composites for part in each.parts}
        self._members = {each.name: [numbers[part] for part in each.parts] for each in composites}
        self.dilution = 1.0
        """Of diagonals: what the parts' energies together are of what they would be one by one; errors are not."""
        self._waiting: dict[str, dict[str, npt.NDArray[np.float64]]] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def __contains__(self, index: int) -> bool:
        return index in self._of

    def share_energies(self, energies: npt.NDArray[np.float64]) -> None:
        """Make of the parts' energies, each that of the whole delta by its gain, shares of it, in place.

        Where errors are estimated part by part, they add up: to one delta's energy, not to that of each part.
        """
        before = float(energies.sum())
        for members in self._estimated.values():
            energies[members] /= len(members)
        for members in self._members.values():
            composite = self._of[members[0]]
            if composite.has_estimated_gains:
                energies[members] = composite.squared_distance(self._values(composite), None)
            energies[members] /= len(members)
        if self._diagonals[1] or self._bare:
            self.dilution = float(energies.sum()) / before if before else 1.0

    def notes(self) -> tuple[str, ...]:
        """On what the errors of diagonals are measured."""
        measured, coded = self._diagonals
        if self._bare:
            return ("errors are those of the diagonals, by what they do in matrices such as PEFT draws: theirs are not "
                    "in the file",)  # fmt: skip
        if measured < coded:
            return (f"errors of {coded - measured} of {coded} deltas are estimated from their diagonals: the deltas "
                    "are too large to be made again and again",)  # fmt: skip
        if coded:
            return ("errors are measured on deltas with as many inputs as the frozen matrices have: how many each "
                    "layer has, only the model tells",)  # fmt: skip
        return ()

    def add(self, index: int, decoded: Decoded) -> tuple[list[int], float] | None:
        """One decoded record: (records of its delta, squared error for each) when it was the last of them."""
        composite = self._of[index]
        parts = self._waiting.setdefault(composite.name, {})
        parts[self._items[index].name] = _value(decoded)
        members = self._members[composite.name]
        if len(parts) < len(members):
            return None
        found, original = self._waiting.pop(composite.name), self._values(composite)
        return members, composite.squared_distance(found, original) / len(members)

    def _values(self, composite: CombinedDelta) -> dict[str, npt.NDArray[np.floating]]:
        """What a delta's parts were, before they were coded."""
        parts = [self._items[i] for i in self._members[composite.name]]
        values = part_values(
            [part for part in parts if isinstance(part, LoraModule)],
            [part for part in parts if isinstance(part, VectorTensor)],
        )
        return {name: value() for name, value in values.items()}


def _value(decoded: Decoded) -> npt.NDArray[np.float64]:
    if isinstance(decoded, DecodedFactors):
        lora_B, lora_A = decoded.float32(NUMPY)
        return np.asarray(lora_B.astype(np.float64) @ lora_A.astype(np.float64))
    return np.asarray(decoded.float32(NUMPY), np.float64)
