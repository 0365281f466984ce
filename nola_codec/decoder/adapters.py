"""A decoded file as an adapter: its records as modules and vectors, float32, exact."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedFactors, DecodedVector
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import LowRankRecord
from nola_codec.progress import Progress


def decode_adapter(decoder: Decoder, progress: Progress | None = None, *, verify: bool = True) -> Adapter:
    """Decode all of a file to an adapter of its dialect, NumPy arrays.

    Args:
        decoder: The open file.
        progress: Called as (stage, done, total), or None.
        verify: False skips the comparison of the decoded SHA-256.

    Raises:
        ChecksumMismatch: The decoded SHA-256 is not the encoder's.
        FormatError: The file is damaged.
    """
    return build_adapter(decoder, *decode_records(decoder, progress, verify=verify))


def decode_records(
    decoder: Decoder, progress: Progress | None = None, *, verify: bool = True
) -> tuple[list[DecodedFactors], list[DecodedVector]]:
    """Decode all coded records: those of low rank, then the vectors, on the decoder's device.

    Args:
        decoder: The open file.
        progress: Called as (stage, done, total), or None.
        verify: False skips the comparison of the decoded SHA-256.

    Raises:
        ChecksumMismatch: The decoded SHA-256 is not the encoder's.
        FormatError: The file is damaged.
    """
    total = len(decoder.header.coded)
    if verify:
        return decoder.checked(lambda done: progress("decode", done, total) if progress else None)
    factors: list[DecodedFactors] = []
    vectors: list[DecodedVector] = []
    for index, item in decoder.decoded():
        if isinstance(item, DecodedFactors):
            factors.append(item)
        else:
            vectors.append(item)
        if progress is not None:
            progress("decode", index + 1, total)
    return factors, vectors


def build_adapter(decoder: Decoder, factors: Sequence[DecodedFactors], vectors: Sequence[DecodedVector]) -> Adapter:
    """Build an adapter from decoded records and carried tensors: float32, exact, NumPy arrays."""
    header = decoder.header
    modules = [lora_module(r, f, decoder.xp) for r, f in zip(header.lowrank, factors, strict=True)]
    raw = dict(decoder.carried())
    draws = {record.name: record.kind.draw for record in header.drawn}
    tensors = [
        VectorTensor(record.name, decoder.xp.numpy(vector.float32(decoder.xp)), record.kind.dtype)
        for record, vector in zip(header.vectors, vectors, strict=True)
    ]
    return Adapter(header.dialect, tuple(modules), raw, header.config, header.metadata, tuple(tensors), draws)


def lora_module(record: LowRankRecord, factors: DecodedFactors, xp: Arrays) -> LoraModule:
    """A record and its decoded factors as a module of an adapter: float32, exact, NumPy arrays."""
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
