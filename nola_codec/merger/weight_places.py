"""`Place`: the weight of a base model that a delta is added to, or the parts of both that meet."""

from __future__ import annotations

from dataclasses import dataclass

from nola_codec.merger.arithmetic.parts import Region


@dataclass(frozen=True)
class Place:
    """The weight of a base model that a delta is added to.

    Attributes:
        module: The name of the delta, as in `MergeTarget`.
        weight: The name of the weight in the merged checkpoint.
        source: The stored tensor that holds the base value. It differs from `weight` if tied weights are separated.
        transposed: True if the weight is stored (in, out), so that the transpose of the delta is added.
        taken: The part of the delta that is added, in the delta's own orientation; empty if it is the whole.
        put: The part of the weight that it is added to; empty if it is the whole.
        others: Further parts of the same weight.
    """

    module: str
    weight: str
    source: str
    transposed: bool
    taken: Region = ()
    put: Region = ()
    others: tuple[Place, ...] = ()

    @property
    def parts(self) -> tuple[Place, ...]:
        """This place and the others of the same weight."""
        return (self, *self.others)
