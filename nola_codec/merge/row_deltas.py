"""The delta of one weight, as the exact rows that a merge adds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nola_codec.adapters.dialects.deltas import AdapterDelta
from nola_codec.adapters.dialects.diagonals import Diagonals
from nola_codec.arrays import Arrays
from nola_codec.decoder.factors import Decoded, DecodedFactors, DecodedVector
from nola_codec.merge.arithmetic.deltas import (
    ComputedDelta,
    OrderedProduct,
    RowDelta,
    VectorDelta,
    WeightedSum,
    factor_delta,
)
from nola_codec.model.records import LowRankKind


def row_delta(
    part: AdapterDelta,
    decoded: Mapping[str, Decoded],
    kinds: Mapping[str, LowRankKind],
    xp: Arrays,
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
) -> RowDelta:
    """Return the delta of an adapter as rows of a weight.

    Args:
        part: The delta, from `adapters.deltas.deltas` of an adapter that `build_adapter` made.
        decoded: The decoded integers of each record, by its name.
        kinds: The kind of each low-rank record, by its name.
        xp: The arrays that `decoded` is made of.
        shape: The shape of the weight.
        transposed: True if the weight is stored (in, out).
    """
    if isinstance(part.composite, Diagonals):
        values = {vector.name: vector.values for vector in part.vectors}
        left, right = part.composite.factors(values, shape[::-1] if transposed else shape)
        left, right = (right.T, left.T) if transposed else (left, right)
        return OrderedProduct(np.ascontiguousarray(left), np.ascontiguousarray(right), part.composite.scale, shape)
    if part.composite is not None:
        return ComputedDelta(part.dense, shape)
    terms: list[RowDelta] = []
    for module in part.modules:
        factors = decoded[module.name]
        assert isinstance(factors, DecodedFactors)
        terms.append(factor_delta(factors, kinds[module.name], xp, shape, transposed=transposed))
    for tensor in part.vectors:
        vector = decoded[tensor.name]
        assert isinstance(vector, DecodedVector)
        terms.append(VectorDelta(xp.numpy(vector.values).reshape(shape), vector.exponents[0], shape))
    return terms[0] if len(terms) == 1 else WeightedSum([(term, 1.0) for term in terms])
