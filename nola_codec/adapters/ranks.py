"""Give modules other ranks: drop components that are zero, and add such components where a dialect needs them.

A component is a column of lora_B and the same row of lora_A. It is zero if one of the two holds only zeros, since it
then adds nothing to the delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nola_codec.array_types import Float32Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import LoraModule

_MOST_ADDED = 4096
"""The most zero components that `raise_rank` adds."""


@dataclass(frozen=True)
class TrimCount:
    """The numbers of components before and after a trim.

    Attributes:
        found: The number of components of all modules before.
        dropped: The number of zero components that are gone.
        kept: The number of zero components that stay, because the dialect needs them.
    """

    found: int
    dropped: int
    kept: int

    @property
    def note(self) -> str:
        """The sentence for the user."""
        parts = "components (rows of lora_A with columns of lora_B)"
        if not self.dropped:
            return f"no rank is smaller: none of {self.found} {parts} could be left out"
        text = f"{self.dropped} of {self.found} {parts} were zero and are left out"
        if self.kept:
            text += f"; {self.kept} zero components stay, since the dialect cannot express every rank"
        return text


def without_zeros(module: LoraModule) -> LoraModule:
    """Return a module without its zero components. If all are zero, one of them stays, since no tool loads rank 0."""
    used = np.asarray(module.lora_A.any(axis=1) & module.lora_B.any(axis=0))
    if used.all():
        return module
    if not used.any() and len(used):
        used[0] = True
    return with_factors(module, np.ascontiguousarray(module.lora_A[used]), np.ascontiguousarray(module.lora_B[:, used]))


def with_rank(module: LoraModule, rank: int) -> LoraModule:
    """Return a module with zero components added up to a rank that is at least its own."""
    missing = rank - module.rank
    if missing < 0:
        raise ValueError(mismatch("rank", f"at least {module.rank}", rank))
    if not missing:
        return module
    return with_factors(
        module, np.pad(module.lora_A, ((0, missing), (0, 0))), np.pad(module.lora_B, ((0, 0), (0, missing)))
    )


def with_largest_rank(modules: Sequence[LoraModule]) -> list[LoraModule]:
    """Return the modules, each with the largest of their ranks."""
    largest = max(module.rank for module in modules)
    return [with_rank(module, largest) for module in modules]


def raise_rank(module: LoraModule, fits: Callable[[int], bool], dialect: str) -> LoraModule:
    """Return a module with as few zero components added as make its rank fit.

    Args:
        module: The module.
        fits: Returns True for a rank with which the dialect can express the scaling exactly.
        dialect: The name of the dialect, for the message.

    Raises:
        AdapterError: ``not-expressible``: no rank fits that is at most 4096 larger.
    """
    for rank in range(module.rank, module.rank + _MOST_ADDED + 1):
        if fits(rank):
            return with_rank(module, rank)
    message = f"{dialect} has no alpha that gives the scaling {module.scaling} at rank {module.rank}"
    raise AdapterError(message, code="not-expressible", where=module.name)


def with_factors(module: LoraModule, lora_A: Float32Array, lora_B: Float32Array) -> LoraModule:
    """Return a module with other factors, lora_A (r, in) and lora_B (out, r), and the stored shapes of these."""
    return replace(
        module,
        lora_A=lora_A,
        lora_B=lora_B,
        a_shape=(len(lora_A), *module.a_shape[1:]),
        b_shape=(*lora_B.shape, *module.b_shape[2:]),
    )
