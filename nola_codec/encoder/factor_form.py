"""Factor form: each factor and each vector has one basis, and `num_basis` coefficients of a fixed number of bits."""

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
from nola_codec.entropy import rans
from nola_codec.fit.projection import FactorBasis, fit_projection, fit_vector
from nola_codec.model.adapter import Codable
from nola_codec.model.quantizers import Codebook, Quantizer
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.quant.codebooks import SIGNS, integer_codebook, lloyd_max_codebook
from nola_codec.quant.scales import nearest_code
from nola_codec.stores.dtypes import coded_dtype

_TABLE_BITS = 12
"""Bits that a frequency takes in the header."""
_LANES_BITS = 256
"""Bits that the lanes of rANS take at least."""
SLOPE = 4
"""Amplitude codes in one precision: a precision is an eighth of an octave, and a code of a factor a thirty-second."""


def codebook_for(bits: int) -> Codebook:
    """Return the codebook of the factor form: a sign at 1 bit, Lloyd-Max up to 8, plain integers at 16."""
    if bits == 1:
        return SIGNS
    return integer_codebook(16) if bits == 16 else lloyd_max_codebook(bits)


def factor_content(job: EncodeJob) -> FileContent:
    """Fit every module and every vector of a job, and quantize the coefficients.

    If `num_basis` is None, a factor or vector has as many coefficients as elements, which is all that a Hadamard basis
    can have. If `rank` is None, each module keeps its rank.
    """
    options = job.options
    codebook = codebook_for(options.bits or DEFAULT_BITS)
    records: list[CodedRecord] = []
    symbols: list[npt.NDArray[np.uint16]] = []
    for index, (item, stream) in enumerate(zip(job.items, job.streams, strict=True)):
        rank = (options.rank or item.rank) if item.is_pair else 1
        bases = _bases(job, stream, [n * rank for n in item.vector_lengths])
        if item.is_pair:
            record, own = _fit_pair(item, stream, rank, bases, codebook)
        else:
            record, own = _fit_vector(item, stream, bases, codebook)
        records.append(record)
        symbols.append(own)
        job.show_progress("fitting", index + 1, len(job.items))
    return fixed_width_content(records, symbols, codebook)


def _bases(job: EncodeJob, stream: int, lengths: Sequence[int]) -> list[FactorBasis]:
    """Return the basis of each side of a record, for flat factors or a vector of these lengths."""
    options = job.options
    counts = [n if options.num_basis is None else min(options.num_basis, n) for n in lengths]
    return [
        FactorBasis(job.basis, BasisKey(job.envelope.generator, options.seed, 2 * stream + side), length, count)
        for side, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]


def fixed_width_content(
    records: Sequence[CodedRecord], symbols: Sequence[npt.NDArray[np.uint16]], codebook: Codebook
) -> FileContent:
    """Return the content of a file of one rung and one quantizer.

    Args:
        records: The records in file order, with scale codes as amplitudes. Their precisions are set here. Codes more
            than about 30 octaves from the median are brought nearer.
        symbols: For each record, its symbols, those of lora_B first.
        codebook: The codebook of all coefficients. Its quantizer gets frequencies if they make the file smaller.
    """
    quantizer = Quantizer(codebook, _frequencies(symbols, codebook.size))
    placed = _with_precisions(records)
    squares = tuple(_squares(record, each, codebook) for record, each in zip(placed, symbols, strict=True))
    sides = max((len(record.kind.sides) for record in placed), default=0)  # each side has a table
    allocations = [(((-1024, 0, 0),),) * sides]
    return FileContent((placed,), (tuple(symbols),), (squares,), (quantizer,), allocations, SLOPE)


def _frequencies(symbols: Sequence[npt.NDArray[np.uint16]], size: int) -> tuple[int, ...] | None:
    """Return the frequencies of symbols for rANS; None if their table would take more than it saves."""
    if size > rans.MAX_ALPHABET or not symbols:
        return None
    counts = np.bincount(np.concatenate(symbols), minlength=size)
    frequencies = rans.normalize(counts)
    plain = float(counts.sum()) * (size - 1).bit_length()
    return frequencies if plain > rans.coded_bits(counts, frequencies) + _TABLE_BITS * size + _LANES_BITS else None


def _fit_pair(
    item: Codable, stream: int, rank: int, bases: Sequence[FactorBasis], codebook: Codebook
) -> tuple[CodedRecord, npt.NDArray[np.uint16]]:
    """Fit a pair of factors; return its record, and the symbols of lora_B followed by those of lora_A."""
    (lora_B, lora_A), (b_shape, a_shape) = item.sides, item.stored_shapes
    fit = fit_projection(lora_B, lora_A, rank, (bases[0], bases[1]), codebook)
    shapes = (b_shape[0], rank, *b_shape[2:]), (rank, *a_shape[1:])
    kind = _kind(item, "factor", shapes, bases)
    if fit.energy_bound >= 1.0 and not (lora_B.any() and lora_A.any()):
        return _record(item, kind, stream, []), np.empty(0, np.uint16)
    codes = [_code(scale, own) for scale, own in zip(fit.scales, bases, strict=True)]
    return _record(item, kind, stream, codes), np.concatenate(fit.symbols)


def _fit_vector(
    item: Codable, stream: int, bases: Sequence[FactorBasis], codebook: Codebook
) -> tuple[CodedRecord, npt.NDArray[np.uint16]]:
    """Fit a vector; return its record and its symbols (num_basis,)."""
    (values,), (basis,) = item.sides, bases
    kind = _kind(item, "component", item.stored_shapes, bases)
    if not values.any():
        return _record(item, kind, stream, []), np.empty(0, np.uint16)
    symbols, scale = fit_vector(values, basis, codebook)
    # The amplitude of a vector counts sixteenths of an octave.
    return _record(item, kind, stream, [round(_code(scale, basis) / 2)]), symbols


def _kind(
    item: Codable, split: Split, stored_shapes: Sequence[tuple[int, ...]], bases: Sequence[FactorBasis]
) -> CodedKind:
    return CodedKind(
        template=split_name(item.name)[0],
        layout=item.layout,
        scaling=item.scaling,
        fan_in_fan_out=item.fan_in_fan_out,
        dtype=coded_dtype(item.dtype),
        basis=bases[0].id,
        split=split,
        sides=coded_sides(stored_shapes, split, [basis.num_basis for basis in bases]),
    )


def _record(item: Codable, kind: CodedKind, stream: int, codes: Sequence[int]) -> CodedRecord:
    amplitude = np.array(codes, np.int64)
    zeros = np.zeros_like(amplitude)
    return CodedRecord(item.name, kind, stream, (0,) * len(kind.sides), zeros, zeros, amplitude)


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
    for is_pair in (True, False):
        own = [record for record in records if record.kind.is_pair == is_pair]
        codes = np.concatenate([record.amplitude for record in own]) if own else np.zeros(0, np.int64)
        middle = int(np.median(codes)) if codes.size else 0
        for record in own:
            precision = np.clip(np.rint((record.amplitude - middle) / SLOPE).astype(np.int64) + START, 0, 255)
            low = SLOPE * (precision - START) + middle - 128
            kind: CodedKind = replace(record.kind, amplitude=middle - SLOPE * START)
            amplitude = np.clip(record.amplitude, low, low + 255)
            placed[record.name] = replace(record, kind=kind, precision=precision, amplitude=amplitude)
    return tuple(placed[record.name] for record in records)
