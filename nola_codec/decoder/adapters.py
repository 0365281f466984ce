"""A decoded file as an adapter: its records as modules and vectors, float32, exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nola_codec.arrays import Arrays
from nola_codec.decoder.carried_forms import read_references, restore_carried
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import CodedRecord
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
    return build_adapter(decoder, decode_records(decoder, progress, verify=verify))


def decode_records(
    decoder: Decoder, progress: Progress | None = None, *, verify: bool = True
) -> Iterator[DecodedRecord]:
    """Yield all coded records decoded, with their float32 forms: those of low rank, then the vectors.

    The decoded SHA-256 is compared after the last one, so the caller must go to the end before it uses any record.

    Args:
        decoder: The open file.
        progress: Called as (stage, done, total), or None.
        verify: False skips the comparison of the decoded SHA-256.

    Raises:
        ChecksumMismatch: The decoded SHA-256 is not the encoder's.
        FormatError: The file is damaged.
    """
    report = count_records(decoder, progress)
    if verify:
        yield from decoder.decode_checked(report, floats=True)
        return
    for index, record in decoder.decode(floats=True):
        yield record
        if report is not None:
            report(index + 1)


def count_records(
    decoder: Decoder, progress: Progress | None, stage: str = "decoding", rungs: int = 1
) -> Callable[[int], None] | None:
    """Return the function that reports a stage of all coded records at so many rungs; None for None."""
    if progress is None:
        return None
    total = len(decoder.header.coded) * rungs
    return lambda done: progress(stage, done, total)


def build_adapter(decoder: Decoder, records: Iterable[DecodedRecord]) -> Adapter:
    """Build an adapter from decoded records and carried tensors: float32, exact, NumPy arrays.

    Carried tensors that the file holds in another form have their own keys again.

    Args:
        decoder: The open file.
        records: Each coded record in the order of `Header.coded`; an iterator is taken to its end.

    Raises:
        AdapterError: ``bad-carried``, ``duplicate-key``, ``overflow``; see `restore_carried`.
    """
    header, pairs = decoder.header, len(decoder.header.pairs)
    modules, vectors = [], []
    for number, (record, decoded) in enumerate(zip(header.coded, records, strict=True)):
        if number < pairs:
            modules.append(_lora_module(record, decoded, decoder.xp))
        else:
            vectors.append(_vector_tensor(record, decoded, decoder.xp))
    stored = dict(decoder.carried_tensors())
    raw, left = restore_carried(stored, vectors)
    references = read_references(stored, vectors)
    draws = {record.name: record.kind.draw for record in header.drawn}
    return Adapter(
        header.dialect, tuple(modules), raw, header.config, header.metadata, left, draws, references=references
    )


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
