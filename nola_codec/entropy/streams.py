"""Sort a stream of symbols by model, and back, as the codec `raw` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.errors import FormatError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel

if TYPE_CHECKING:
    import numpy.typing as npt


def symbol_width(model: SymbolModel) -> int:
    """Return the number of bits that hold any symbol of a model."""
    return max(1, (model.size - 1).bit_length())


def _positions(runs: Runs) -> dict[int, list[slice]]:
    ends = np.cumsum(runs.lengths)
    slices: dict[int, list[slice]] = {}
    for model, start, end in zip(runs.models.tolist(), (ends - runs.lengths).tolist(), ends.tolist(), strict=True):
        if end > start:
            slices.setdefault(model, []).append(slice(start, end))
    return slices


def symbols_by_model(symbols: npt.NDArray[Any], runs: Runs) -> list[tuple[int, npt.NDArray[Any]]]:
    """Return (model, its symbols in order) of each model that occurs, in the order of the models."""
    return [(model, np.concatenate([symbols[s] for s in slices])) for model, slices in sorted(_positions(runs).items())]


def scatter_by_model(
    parts: list[tuple[int, npt.NDArray[np.uint16]]], runs: Runs, models: Sequence[SymbolModel]
) -> npt.NDArray[np.uint16]:
    """Undo `symbols_by_model`. Raises FormatError for a symbol outside its model's alphabet."""
    out = np.empty(runs.total, np.uint16)
    positions = _positions(runs)
    for model, part in parts:
        limit = models[model].size
        if part.size and int(part.max()) >= limit:
            raise FormatError(mismatch("symbol", f"less than {limit}", int(part.max())), code="symbols")
        start = 0
        for where in positions[model]:
            length = where.stop - where.start
            out[where] = part[start : start + length]
            start += length
    return out
