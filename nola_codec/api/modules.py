"""Decoded records as an adapter's modules, and as what a merge asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nola_codec.adapters.dialects.deltas import Delta as AdapterDelta
from nola_codec.adapters.dialects.diagonals import Diagonals
from nola_codec.adapters.models.checkpoint import MergeTarget, delta_shape
from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.deltas import (
    ComputedDelta,
    Delta,
    OrderedProduct,
    VectorDelta,
    WeightedSum,
    factor_delta,
)
from nola_codec.decoder.factors import Decoded, Factors, Vector
from nola_codec.encoder.options import Progress
from nola_codec.model import Adapter, LoraModule, LowRankKind, LowRankRecord, VectorTensor


def decoded_adapter(decoder: Decoder, progress: Progress | None) -> Adapter:
    """All of a file as an adapter of its dialect, NumPy arrays, its digest checked."""
    header = decoder.header
    factors, vectors = decoder.checked(lambda done: progress("decode", done, len(header.coded)) if progress else None)
    return assembled(decoder, factors, vectors)


def assembled(decoder: Decoder, factors: Sequence[Factors], vectors: Sequence[Vector]) -> Adapter:
    """Decoded records as an adapter, float32, exact."""
    header = decoder.header
    modules = [decoded_module(r, f, decoder.xp) for r, f in zip(header.lowrank, factors, strict=True)]
    raw = dict(decoder.carried())
    draws = {record.name: record.kind.draw for record in header.drawn}
    tensors = [
        VectorTensor(record.name, decoder.xp.numpy(vector.float32(decoder.xp)), record.kind.dtype)
        for record, vector in zip(header.vectors, vectors, strict=True)
    ]
    return Adapter(header.dialect, tuple(modules), raw, header.config, header.metadata, tuple(tensors), draws)


def decoded_module(record: LowRankRecord, factors: Factors, xp: Arrays) -> LoraModule:
    """A record and its decoded factors as an adapter's module, float32, exact."""
    lora_B, lora_A = factors.float32(xp)
    kind = record.kind
    return LoraModule(
        name=record.name,
        lora_A=xp.numpy(lora_A),
        lora_B=xp.numpy(lora_B),
        a_shape=kind.a_shape,
        b_shape=kind.b_shape,
        scaling=kind.scaling,
        layout=kind.layout,
        fan_in_fan_out=kind.fan_in_fan_out,
        dtype=kind.dtype,
    )


def merge_target(record: LowRankRecord) -> MergeTarget:
    """What a record asks of a base model."""
    kind = record.kind
    shape = delta_shape(kind.layout, kind.a_shape, kind.b_shape)
    return MergeTarget(record.name, kind.layout, shape, kind.scaling, kind.fan_in_fan_out)


def row_delta(
    part: AdapterDelta,
    decoded: Mapping[str, Decoded],
    kinds: Mapping[str, LowRankKind],
    xp: Arrays,
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
) -> Delta:
    """A delta as a merge takes it.

    Args:
        part: From `adapters.deltas.deltas`, of an adapter that was `assembled`.
        decoded: By record name, what it decodes to.
        kinds: By record name, of the low-rank ones.
        xp: Where `decoded` is.
        shape: Of the weight.
        transposed: The weight is stored (in, out).
    """
    if isinstance(part.composite, Diagonals):
        values = {vector.name: vector.values for vector in part.vectors}
        left, right = part.composite.factors(values, shape[::-1] if transposed else shape)
        left, right = (right.T, left.T) if transposed else (left, right)
        return OrderedProduct(np.ascontiguousarray(left), np.ascontiguousarray(right), part.composite.scale, shape)
    if part.composite is not None:
        return ComputedDelta(part.dense, shape)
    terms: list[Delta] = []
    for module in part.modules:
        factors = decoded[module.name]
        assert isinstance(factors, Factors)
        terms.append(factor_delta(factors, kinds[module.name], xp, shape, transposed=transposed))
    for tensor in part.vectors:
        vector = decoded[tensor.name]
        assert isinstance(vector, Vector)
        terms.append(VectorDelta(xp.numpy(vector.values).reshape(shape), vector.exponents[0], shape))
    return terms[0] if len(terms) == 1 else WeightedSum([(term, 1.0) for term in terms])
