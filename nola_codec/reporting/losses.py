"""Find what was kept of the original adapter, by weight and by singular component."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.api.comparing import SIGNAL_CHANGE, AdapterPair, Comparison, compare_pair, nmse_of
from nola_codec.fit.components import singular_components
from nola_codec.progress import Progress
from nola_codec.rendering import render_error
from nola_codec.reporting.places import Grid, make_grid

MOST_SPECTRA = 6
"""The number of weights whose spectra are shown."""
MOST_VALUES = 64
"""The greatest number of singular values of a spectrum."""
_LEEWAY, _MOST_LOST = 1.5, 0.9
"""The signal that a file may lose, as a multiple of its error, and at most."""
MOST_RANK = 512
"""The greatest rank of a weight whose spectrum is shown, since its time grows with the cube of the rank."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one delta, scaling included, largest first.

    Attributes:
        name: The name of the weight.
        rank: The number of singular values of the original.
        original: At most MOST_VALUES singular values of the original.
        decoded: At most as many of what the file decodes to.
    """

    name: str
    rank: int
    original: tuple[float, ...]
    decoded: tuple[float, ...]


@dataclass(frozen=True)
class Losses:
    """What a file kept of the original adapter.

    Attributes:
        comparison: The comparison of the original adapter (A) with the file (B).
        grid: ``energy``, ``error`` and ``inner`` as in `TensorComparison`, by module type and layer; and the rates
            ``nmse``, ``signal`` and ``energy_share``, the share of the energy of all weights.
        spectra: The spectra of the weights with most energy whose deltas are one finite product of at most MOST_RANK.
        doubts: Sentences that say why the file may not be made from this adapter.
    """

    comparison: Comparison
    grid: Grid
    spectra: tuple[Spectrum, ...]
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What a terminal shows: ``It keeps 98.02% of the signal of the original, over 24 deltas (NMSE 0.1).``"""
        found = self.comparison
        if not found.tensors:
            return "The file and the original have no weight in common."
        return (
            f"It keeps {found.signal:.2%} of the signal of the original, over {len(found.tensors):,} deltas "
            f"(NMSE {render_error(found.nmse)}{found.explanation})."
        )


def measure_losses(pair: AdapterPair, measured: Mapping[str, float], progress: Progress | None = None) -> Losses:
    """Compare an original adapter with what a file decodes to.

    Args:
        pair: The original and the file.
        measured: The errors that the encoder measured, by name.
        progress: Called as (stage, done, total).

    Raises:
        AdapterError: A weight differs in shape, or the dialects have no names in common.
    """
    comparison = compare_pair(pair, progress=progress, is_effective="effective_error" in measured)
    grid = make_loss_grid(comparison)
    energies = {each.name: each.energy for each in comparison.tensors if math.isfinite(each.energy + each.error)}
    products = [both for both in pair.matching() if energies.get(both[0].name) and all(map(_has_spectrum, both))]
    strongest = sorted(products, key=lambda both: (-energies[both[0].name], both[0].name))[:MOST_SPECTRA]
    return Losses(comparison, grid, tuple(_spectrum(*both) for both in strongest), find_doubts(comparison, measured))


def find_doubts(found: Comparison, measured: Mapping[str, float]) -> tuple[str, ...]:
    """Return the sentences that say why a file may not be made from the adapter that it is compared with.

    Args:
        found: The comparison of the adapter (A) with the file (B).
        measured: The errors that the encoder measured, by name. A file may lose that much of the signal, and some more.
    """
    doubts = []
    alone_a, alone_b, shared = len(found.only_in_a), len(found.only_in_b), len(found.tensors)
    if alone_a or alone_b:
        weights = f"{shared:,} weight{'' if shared == 1 else 's'}" if shared else "no weight"
        doubts.append(
            f"the file and the original share {weights}; {alone_a:,} are only in the original and {alone_b:,} only in "
            "the file. Was the file made from this adapter?"
        )
    lost = measured.get("effective_error", measured.get("nmse", 0.0))
    if abs(1 - found.signal) > max(SIGNAL_CHANGE, min(_MOST_LOST, _LEEWAY * lost)):
        doubts.append(
            f"the file has {found.signal:.2%} of the signal of the original, which its own error does not explain. Was "
            "it made from this adapter, and with this scaling? What the verdict says holds for the adapter that it was "
            "made from"
        )
    return tuple(doubts)


def make_loss_grid(comparison: Comparison) -> Grid:
    """Return the grid of `Losses`."""
    whole = sum(each.energy for each in comparison.tensors) or 1.0
    return make_grid(
        ((each.name, {"energy": each.energy, "error": each.error, "inner": each.inner}) for each in comparison.tensors),
        {
            "nmse": lambda sums: nmse_of(sums["error"], sums["energy"]),
            "signal": _signal,
            "energy_share": lambda sums: sums["energy"] / whole,
        },
    )


def _signal(sums: Mapping[str, float]) -> float:
    return sums["inner"] / sums["energy"] if sums["energy"] > 0 else 0.0


def _has_spectrum(delta: AdapterDelta) -> bool:
    return delta.product is not None and delta.product.lora_A.shape[0] <= MOST_RANK


def _spectrum(delta: AdapterDelta, other: AdapterDelta) -> Spectrum:
    original, decoded = _singular_values(delta), _singular_values(other)
    return Spectrum(delta.name, len(original), tuple(original[:MOST_VALUES]), tuple(decoded[:MOST_VALUES]))


def _singular_values(delta: AdapterDelta) -> Sequence[float]:
    module = delta.product
    assert module is not None
    found: list[float] = (singular_components(module.lora_B, module.lora_A).s * abs(module.scaling)).tolist()
    return found
