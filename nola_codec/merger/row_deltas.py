"""Make the delta of one weight: the exact rows that a merge adds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.arrays import Arrays
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.merger.arithmetic.deltas import (
    ComputedDelta,
    OrderedProduct,
    RowDelta,
    VectorDelta,
    WeightedSum,
    factor_delta,
)
from nola_codec.model.records import CodedKind


def row_delta(
    part: AdapterDelta,
    decoded: Mapping[str, DecodedRecord],
    kinds: Mapping[str, CodedKind],
    xp: Arrays,
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
) -> RowDelta:
    """Return the delta of an adapter as rows of a weight.

    Args:
        part: The delta, from `adapters.deltas` of an adapter that `build_adapter` made.
        decoded: The decoded integers of each record, by its name.
        kinds: The kind of each low-rank record, by its name.
        xp: The arrays that `decoded` is made of.
        shape: The shape of the weight.
        transposed: True if the weight is stored (in, out).
    """
    if part.composite is not None:
        values = {vector.name: vector.values for vector in part.vectors}
        factors = part.composite.factors(values, shape[::-1] if transposed else shape)
        if factors is None:
            return ComputedDelta(part.dense, shape)
        left, right = (factors[1].T, factors[0].T) if transposed else factors
        return OrderedProduct(np.ascontiguousarray(left), np.ascontiguousarray(right), part.composite.scale, shape)
    terms: list[RowDelta] = [
        factor_delta(decoded[module.name], kinds[module.name], xp, shape, transposed=transposed)
        for module in part.modules
    ]
    for tensor in part.vectors:
        (values,), (exponent,) = decoded[tensor.name].sides, decoded[tensor.name].exponents
        terms.append(VectorDelta(xp.numpy(values).reshape(shape), exponent, shape))
    return terms[0] if len(terms) == 1 else WeightedSum([(term, 1.0) for term in terms])
