"""Factor form: `num_basis` coefficients of fixed width for each factor and each vector, on one basis each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.container.names import split_name
from nola_codec.container.units import START
from nola_codec.encoder.content import FileContent
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.options import DEFAULT_BITS
from nola_codec.fit.projection import FactorBasis, fit_projection, fit_vector
from nola_codec.model.adapter import LoraModule, VectorTensor
from nola_codec.model.quantizers import Codebook, Quantizer
from nola_codec.model.records import CodedKind, CodedRecord, LowRankKind, LowRankRecord, VectorKind, VectorRecord
from nola_codec.quant.codebooks import lloyd_max, midrise, midtread
from nola_codec.quant.scales import nearest_code
from nola_codec.stores.dtypes import coded_dtype

SLOPE = 4
"""Amplitude codes in a precision: a precision is an eighth of an octave, a factor's amplitude code a thirty-second."""


def codebook_for(bits: int) -> Codebook:
    """Return the codebook of the factor form: a sign at 1 bit, Lloyd-Max up to 8, plain integers at 16."""
    if bits == 1:
        return midrise(1)
    return midtread(16) if bits == 16 else lloyd_max(bits)


def factor_content(job: EncodeJob) -> FileContent:
    """Fit every module and every vector of a job, and quantize the coefficients.

    `num_basis` None stands for as many coefficients as a factor or vector has numbers; a Hadamard basis has no more.
    `rank` None keeps the rank of each module.
    """
    options = job.options
    codebook = codebook_for(options.bits or DEFAULT_BITS)
    records: list[CodedRecord] = []
    symbols: list[npt.NDArray[np.uint16]] = []
    for index, (item, stream) in enumerate(zip(job.items, job.streams, strict=True)):
        if isinstance(item, LoraModule):
            rank = options.rank or item.rank
            bases = _bases(job, stream, [n * rank for n in item.vector_lengths])
            record, own = _module(item, stream, rank, bases, codebook)
        else:
            record, own = _vector(item, stream, _bases(job, stream, item.vector_lengths)[0], codebook)
        records.append(record)
        symbols.append(own)
        job.show_progress("fit", index + 1, len(job.items))
    return fixed_width_content(records, symbols, Quantizer(codebook))


def _bases(job: EncodeJob, stream: int, lengths: Sequence[int]) -> list[FactorBasis]:
    """Return the basis of each side of a record, for flat factors or a vector of these lengths."""
    options = job.options
    counts = [n if options.num_basis is None else min(options.num_basis, n) for n in lengths]
    return [
        FactorBasis(job.basis, BasisKey(job.envelope.generator, options.seed, 2 * stream + side), length, count)
        for side, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]


def fixed_width_content(
    records: Sequence[CodedRecord], symbols: Sequence[npt.NDArray[np.uint16]], quantizer: Quantizer
) -> FileContent:
    """Return the content of a file of one rung and one quantizer.

    Args:
        records: In file order, with scale codes as their amplitudes; precisions are set here. Codes more than some 30
            octaves from the middle one are brought nearer.
        symbols: For each record, its symbols, those of lora_B first.
        quantizer: With a plain codebook.
    """
    assert isinstance(quantizer.codebook, Codebook)
    placed = _with_precisions(records)
    squares = tuple(_squares(record, each, quantizer.codebook) for record, each in zip(placed, symbols, strict=True))
    allocation = ((-1024, 0, 0, 0),)
    return FileContent((placed,), (tuple(symbols),), (squares,), (quantizer,), [(allocation, allocation)], SLOPE)


def _module(
    module: LoraModule, stream: int, rank: int, bases: Sequence[FactorBasis], codebook: Codebook
) -> tuple[CodedRecord, npt.NDArray[np.uint16]]:
    """Fit a module; return its record and the symbols of lora_B and of lora_A, (both num_basis,)."""
    fit = fit_projection(module.lora_B, module.lora_A, rank, (bases[0], bases[1]), codebook)
    kind = LowRankKind(
        template=split_name(module.name)[0],
        layout=module.layout,
        b_shape=(module.b_shape[0], rank, *module.b_shape[2:]),
        a_shape=(rank, *module.a_shape[1:]),
        scaling=module.scaling,
        fan_in_fan_out=module.fan_in_fan_out,
        dtype=coded_dtype(module.dtype),
        basis=bases[0].id,
        split="factor",
        num_basis=(bases[0].num_basis, bases[1].num_basis),
    )
    if fit.energy_bound >= 1.0 and not (module.lora_B.any() and module.lora_A.any()):
        none = np.zeros(0, np.int64)
        return LowRankRecord(module.name, kind, stream, (0, 0), none, none, none), np.empty(0, np.uint16)
    codes = np.array([_code(scale, own) for scale, own in zip(fit.scales, bases, strict=True)], np.int64)
    zeros = np.zeros_like(codes)
    return LowRankRecord(module.name, kind, stream, (0, 0), zeros, zeros, codes), np.concatenate(fit.symbols)


def _vector(
    item: VectorTensor, stream: int, basis: FactorBasis, codebook: Codebook
) -> tuple[CodedRecord, npt.NDArray[np.uint16]]:
    """Fit a vector; return its record and its symbols (num_basis,)."""
    kind = VectorKind(
        split_name(item.name)[0], coded_dtype(item.dtype), item.values.shape, basis.id, (basis.num_basis,)
    )
    if not item.values.any():
        none = np.zeros(0, np.int64)
        return VectorRecord(item.name, kind, stream, (0,), none, none, none), np.empty(0, np.uint16)
    symbols, scale = fit_vector(item.values, basis, codebook)
    zeros = np.zeros(1, np.int64)
    codes = np.array([round(_code(scale, basis) / 2)], np.int64)  # a vector counts in sixteenths of an octave
    return VectorRecord(item.name, kind, stream, (0,), zeros, zeros, codes), symbols


def _code(scale: float, basis: FactorBasis) -> int:
    """Return the scale code of coefficients in the basis with its rows normalized."""
    return nearest_code(scale / np.sqrt(basis_by_id(basis.id).norm2(basis.length)))


def _squares(record: CodedRecord, symbols: npt.NDArray[np.uint16], codebook: Codebook) -> npt.NDArray[np.float64]:
    """Return the squared norm of each side's coefficients, float64 (sides,); (0,) for a record without units."""
    if not record.units:
        return np.zeros(0)
    points = np.array(codebook.points, np.float64)[symbols] ** 2
    return np.array([part.sum() for part in np.split(points, np.cumsum(record.kind.num_basis)[:-1])])


def _with_precisions(records: Sequence[CodedRecord]) -> tuple[CodedRecord, ...]:
    """Return the records with precisions that predict their amplitudes to within two codes."""
    placed: dict[str, CodedRecord] = {}
    for family in (LowRankRecord, VectorRecord):
        own: list[CodedRecord] = [record for record in records if isinstance(record, family)]
        codes = np.concatenate([record.amplitude for record in own]) if own else np.zeros(0, np.int64)
        middle = int(np.median(codes)) if codes.size else 0
        for record in own:
            precision = np.clip(np.rint((record.amplitude - middle) / SLOPE).astype(np.int64) + START, 0, 255)
            low = SLOPE * (precision - START) + middle - 128
            kind: CodedKind = replace(record.kind, amplitude=middle - SLOPE * START)
            amplitude = np.clip(record.amplitude, low, low + 255)
            placed[record.name] = replace(record, kind=kind, precision=precision, amplitude=amplitude)
    return tuple(placed[record.name] for record in records)
