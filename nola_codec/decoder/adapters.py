"""A decoded file as an adapter: its records as modules and vectors, float32, exact."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedFactors, DecodedVector
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import LowRankRecord
from nola_codec.progress import Progress


def decoded_adapter(decoder: Decoder, progress: Progress | None) -> Adapter:
    """All of a file as an adapter of its dialect, NumPy arrays, its digest checked."""
    header = decoder.header
    factors, vectors = decoder.checked(lambda done: progress("decode", done, len(header.coded)) if progress else None)
    return assembled(decoder, factors, vectors)


def assembled(decoder: Decoder, factors: Sequence[DecodedFactors], vectors: Sequence[DecodedVector]) -> Adapter:
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


def decoded_module(record: LowRankRecord, factors: DecodedFactors, xp: Arrays) -> LoraModule:
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
