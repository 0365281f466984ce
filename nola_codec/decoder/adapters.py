"""Decode a file to an adapter: its records become modules and vectors in float32, exactly."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import CodedRecord
from nola_codec.progress import Progress


def decode_adapter(decoder: Decoder, progress: Progress | None = None, *, verify: bool = True) -> Adapter:
    """Decode a file to an adapter of its dialect, made of NumPy arrays.

    Args:
        decoder: The open file.
        progress: Called as (stage, done, total), or None.
        verify: False skips the comparison of the decoded SHA-256.

    Raises:
        ChecksumMismatch: The decoded SHA-256 is not the encoder's.
        FormatError: The file is damaged.
    """
    return build_adapter(decoder, decode_records(decoder, progress, verify=verify))


def decode_records(decoder: Decoder, progress: Progress | None = None, *, verify: bool = True) -> list[DecodedRecord]:
    """Decode all coded records on the decoder's device: first the low-rank ones, then the vectors.

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
        return decoder.decode_all(lambda done: progress("decode", done, total) if progress else None)
    records = []
    for index, record in decoder.decode():
        records.append(record)
        if progress is not None:
            progress("decode", index + 1, total)
    return records


def build_adapter(decoder: Decoder, records: Sequence[DecodedRecord]) -> Adapter:
    """Build an adapter from the decoded records and the other tensors of a file.

    Args:
        decoder: The open file.
        records: All coded records, decoded, in the order of `Header.coded`.

    Returns:
        An adapter whose factors and vectors are float32 NumPy arrays, exact.
    """
    header, pairs = decoder.header, len(decoder.header.pairs)
    modules = [_lora_module(r, d, decoder.xp) for r, d in zip(header.pairs, records[:pairs], strict=True)]
    vectors = [_vector_tensor(r, d, decoder.xp) for r, d in zip(header.vectors, records[pairs:], strict=True)]
    raw = dict(decoder.carried_tensors())
    draws = {record.name: record.kind.draw for record in header.drawn}
    return Adapter(header.dialect, tuple(modules), raw, header.config, header.metadata, tuple(vectors), draws)


def _lora_module(record: CodedRecord, decoded: DecodedRecord, xp: Arrays) -> LoraModule:
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


def _vector_tensor(record: CodedRecord, decoded: DecodedRecord, xp: Arrays) -> VectorTensor:
    (values,) = decoded.float32(xp)
    return VectorTensor(record.name, xp.numpy(values), record.kind.dtype)
