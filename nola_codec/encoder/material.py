"""What an encoder hands to assembly: records, symbols and quantizers, before any byte is laid out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.entropy.rans import normalize
from nola_codec.model import Allocation, LowRankRecord, Quantizer, SymbolModel


@dataclass(frozen=True)
class Material:
    """Low-rank records of a file and their coefficients.

    Attributes:
        records: In file order, exponents still (0, 0).
        symbols: For each record, uint16 symbols in the order of its vectors (lora_B's first).
        quantizers, allocation, amplitude_slope: As in `Header`.
    """

    records: tuple[LowRankRecord, ...]
    symbols: tuple[npt.NDArray[np.uint16], ...]
    quantizers: tuple[Quantizer, ...]
    allocation: tuple[Allocation, Allocation]
    amplitude_slope: int


def side_models(symbols: npt.NDArray[np.uint16]) -> tuple[SymbolModel, SymbolModel]:
    """Models of the two halves of section 0's symbols, with frequencies fitted to them."""
    half = len(symbols) // 2
    models = []
    for part in (symbols[:half], symbols[half:]):
        counts = np.bincount(part, minlength=1)
        models.append(SymbolModel(len(counts), normalize(counts) if part.size else None))
    return models[0], models[1]
