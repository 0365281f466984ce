"""The delta of one adapted weight, as the exact rows that a merge adds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nola_codec.adapters.adapter_delta import AdapterDelta
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
    """A delta as a merge takes it.

    Args:
        part: From `adapters.deltas`, of an adapter that was `assembled`.
        decoded: By record name, what it decodes to.
        kinds: By record name, of the low-rank ones.
        xp: Where `decoded` is.
        shape: Of the weight.
        transposed: The weight is stored (in, out).
    """
    if part.composite is not None:
        values = {vector.name: vector.values for vector in part.vectors}
        factors = part.composite.factors(values, shape[::-1] if transposed else shape)
        if factors is None:
            return ComputedDelta(part.dense, shape)
        left, right = (factors[1].T, factors[0].T) if transposed else factors
        return OrderedProduct(np.ascontiguousarray(left), np.ascontiguousarray(right), part.composite.scale, shape)
    terms: list[RowDelta] = []
    for module in part.modules:
        pair = decoded[module.name]
        assert isinstance(pair, DecodedFactors)
        terms.append(factor_delta(pair, kinds[module.name], xp, shape, transposed=transposed))
    for tensor in part.vectors:
        vector = decoded[tensor.name]
        assert isinstance(vector, DecodedVector)
        terms.append(VectorDelta(xp.numpy(vector.values).reshape(shape), vector.exponents[0], shape))
    return terms[0] if len(terms) == 1 else WeightedSum([(term, 1.0) for term in terms])
