"""A decoded file as an adapter: its records as modules and vectors, float32, exact."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import CodedRecord
from nola_codec.progress import Progress


def decode_adapter(decoder: Decoder, progress: Progress | None) -> Adapter:
    """Decode all of a file to an adapter of its dialect, NumPy arrays; its decoded SHA-256 is checked."""
    total = len(decoder.header.coded)
    return build_adapter(
        decoder, decoder.decode_all(lambda done: progress("decode", done, total) if progress else None)
    )


def build_adapter(decoder: Decoder, records: Sequence[DecodedRecord]) -> Adapter:
    """Make an adapter, float32 and exact, of a file's decoded records (`Decoder.decode_all`)."""
    header, pairs = decoder.header, len(decoder.header.pairs)
    modules = [_module(r, d, decoder.xp) for r, d in zip(header.pairs, records[:pairs], strict=True)]
    vectors = [_vector(r, d, decoder.xp) for r, d in zip(header.vectors, records[pairs:], strict=True)]
    raw = dict(decoder.carried_tensors())
    draws = {record.name: record.kind.draw for record in header.drawn}
    return Adapter(header.dialect, tuple(modules), raw, header.config, header.metadata, tuple(vectors), draws)


def _module(record: CodedRecord, decoded: DecodedRecord, xp: Arrays) -> LoraModule:
    lora_B, lora_A = decoded.float32(xp)
    kind = record.kind
    b_shape, a_shape = kind.stored_shapes
    return LoraModule(
        name=record.name,
        lora_A=xp.numpy(lora_A),
        lora_B=xp.numpy(lora_B),
        a_shape=a_shape,
        b_shape=b_shape,
        scaling=kind.scaling,
        layout=kind.layout,
        fan_in_fan_out=kind.fan_in_fan_out,
        dtype=kind.dtype,
    )


def _vector(record: CodedRecord, decoded: DecodedRecord, xp: Arrays) -> VectorTensor:
    (values,) = decoded.float32(xp)
    return VectorTensor(record.name, xp.numpy(values), record.kind.dtype)
