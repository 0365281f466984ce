"""Decoded records as an adapter's modules, and as what a merge asks for."""

from __future__ import annotations

from nola_codec.adapters.checkpoint import MergeTarget, delta_shape
from nola_codec.arrays import Arrays
from nola_codec.decoder.factors import Factors
from nola_codec.model import LoraModule, LowRankRecord


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
