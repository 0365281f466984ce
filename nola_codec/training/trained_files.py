"""Write a group of coded tensors as a `.nola` file in factor form, and read such a file.

In this form all coefficients have the same number of bits, and each tensor has one basis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key, split_name
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.coefficients import Dequantizer
from nola_codec.decoder.decoder import Decoder
from nola_codec.encoder.assemble import Envelope, code_rungs, pack_raw, write_file
from nola_codec.encoder.content import FileContent, block_sizes
from nola_codec.encoder.factor_form import codebook_for, fixed_width_content
from nola_codec.encoder.reconstruct import FactsCollector, decode_rung
from nola_codec.errors import EncodeError
from nola_codec.model.header import Header
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng import PHILOX
from nola_codec.quant.scales import scale_value
from nola_codec.training.coded import CodedSide, RecordDescription
from nola_codec.training.coding import Coding
from nola_codec.training.quantizer import EXACT_BITS, TRAINED_BITS, quantize_coefficients
from nola_codec.version import __version__

if TYPE_CHECKING:
    from nola_codec.training.group import TensorGroup


@dataclass(frozen=True)
class HeaderExtras:
    """The parts of a file that training does not make: configuration, metadata, and carried or drawn tensors.

    Attributes:
        dialect, config, metadata, raw, drawn: As in `Envelope`.
    """

    dialect: str
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None
    raw: Mapping[str, RawTensor] | None = None
    drawn: Mapping[str, tuple[Draw, RawTensor]] | None = None


def decode_group(group: TensorGroup) -> list[torch.Tensor]:
    """Decode each side from the file that would be written now: float32 on the CPU, in its shape."""
    content, names = _content(group)
    found = dict(zip(names, decode_rung(content, _envelope(group, HeaderExtras("")), 0), strict=True))
    tensors = []
    for side in group.sides:
        decoded = found[side.record]
        value = decoded.float32(NUMPY)[side.index or 0]
        tensors.append(torch.from_numpy(np.ascontiguousarray(value)).reshape(side.tensor.shape))
    return tensors


def encode_group(group: TensorGroup, extras: HeaderExtras, measured: Mapping[str, float] | None = None) -> bytes:
    """Return the bytes of the file that decodes to the tensors of `decode_group`.

    Args:
        group: The coded tensors.
        extras: The rest of the header, and carried or drawn tensors.
        measured: Figures for the header, such as a loss.

    Raises:
        EncodeError: ``not-parametrized`` for an empty group; ``not-finite`` for coefficients that are not finite.
    """
    content, _ = _content(group)
    envelope = _envelope(group, extras)
    sizes = block_sizes(content)
    collector = FactsCollector()
    for decoded in decode_rung(content, envelope, 0):
        collector.add(decoded)
    facts = collector.finish(envelope, dict(measured or {}))
    return write_file(content, sizes, code_rungs(content, sizes), [facts], envelope, pack_raw(envelope.raw))


def _envelope(group: TensorGroup, extras: HeaderExtras) -> Envelope:
    raw = dict(sorted((extras.raw or {}).items(), key=lambda item: natural_key(item[0])))
    return Envelope(
        writer=f"nola-codec {__version__}",
        dialect=extras.dialect,
        generator=PHILOX,
        seed=group.seed,
        config=extras.config,
        metadata=extras.metadata or {},
        raw=raw,
        drawn=dict(sorted((extras.drawn or {}).items(), key=lambda item: natural_key(item[0]))),
    )


def _content(group: TensorGroup) -> tuple[FileContent, list[str]]:
    """Return the records and symbols of the present coefficients, and the names of the records."""
    if not group.sides:
        raise EncodeError("nothing is parametrized", code="not-parametrized")
    codebook = codebook_for(group.bits or EXACT_BITS)
    sides_of: dict[str, list[CodedSide]] = {}
    for side in group.sides:
        sides_of.setdefault(side.record, []).append(side)
    names = sorted(group.records, key=lambda name: (len(group.records[name].shapes) == 1, natural_key(name)))
    records: list[CodedRecord] = []
    symbols: list[npt.NDArray[np.uint16]] = []
    for name in names:
        sides = sorted(sides_of.get(name, []), key=lambda side: side.index or 0)
        each = [_quantize_side(side) for side in sides]
        codes = [code + side.tensor.synthesis.gain_code for side, (_, code) in zip(sides, each, strict=True)]
        records.append(_record(name, group.records[name], sides, codes, group.basis))
        symbols.append(np.concatenate([own for own, _ in each]) if each else np.empty(0, np.uint16))
    return fixed_width_content(records, symbols, codebook), names


def _quantize_side(side: CodedSide) -> tuple[npt.NDArray[np.uint16], int]:
    """Return the symbols (num_basis,) of the present coefficients of a side, and the code of their scale."""
    coefficients = side.coefficients
    if side.loaded is not None and torch.equal(side.loaded[0], coefficients):
        return side.loaded[1], side.loaded[2]
    values = coefficients.detach().float().cpu().numpy()[0]
    if not np.isfinite(values).all():
        raise EncodeError("coefficients are not finite", code="not-finite", where=side.record)
    return quantize_coefficients(values, side.tensor.group.bits or EXACT_BITS, side.tensor.synthesis.grain)


def _record(
    name: str, described: RecordDescription, sides: Sequence[CodedSide], codes: Sequence[int], basis: int
) -> CodedRecord:
    is_pair = len(described.shapes) == 2
    split: Split = "factor" if is_pair else "component"
    # An untrained record has no sides here, and no units in the file.
    counts = [side.tensor.synthesis.num_basis for side in sides] or [1] * len(described.shapes)
    kind = CodedKind(
        template=split_name(name)[0],
        layout=described.layout,
        scaling=described.scaling,
        fan_in_fan_out=described.fan_in_fan_out,
        dtype="F32",
        basis=basis,
        split=split,
        sides=coded_sides(described.shapes, split, counts),
    )
    # The amplitude of a vector counts sixteenths of an octave, that of a factor thirty-seconds.
    amplitude = np.array(codes, np.int64) // (1 if is_pair else 2)
    zeros = np.zeros(len(sides), np.int64)
    return CodedRecord(name, kind, described.stream, (0,) * len(described.shapes), zeros, zeros, amplitude)


@dataclass(frozen=True)
class TrainedFile:
    """The parts of a file in factor form that training can be resumed from.

    Attributes:
        header: The header of the file.
        bits: The bits of a coefficient; None for 16.
        symbols: The symbols (num_basis,) of each side, by the name of the record and the number of the side.
        codes: The scale code of each side, which includes the gain, by the same.
        raw: The carried and drawn tensors, by name.
    """

    header: Header
    bits: int | None
    symbols: Mapping[tuple[str, int], npt.NDArray[np.uint16]]
    codes: Mapping[tuple[str, int], int]
    raw: Mapping[str, RawTensor]

    @property
    def coding(self) -> Coding:
        """The basis, seed and bits that all tensors share. There must be a coded tensor."""
        bases = {number: name for name, number in BASIS_NAMES.items()}
        return Coding(basis=bases[self.header.coded[0].kind.basis], seed=self.header.seed, bits=self.bits)


def read_trained_file(source: Source) -> TrainedFile:
    """Read a file that `encode_group` wrote.

    Raises:
        FormatError: The file is damaged.
        EncodeError: ``not-trained``: It is not in factor form, or its coefficients do not all have the same bits.
    """
    with open_container(source) as container:
        container.check_content()
        if container.header.reference is not None:
            message = "not a file of trained coefficients: it holds the difference to an earlier version"
            raise EncodeError(message, code="not-trained")
        decoder = Decoder(container, NUMPY)
        header = decoder.header
        bits = _bits_of(header)
        book = np.array(codebook_for(bits).points, np.int64)
        symbols: dict[tuple[str, int], npt.NDArray[np.uint16]] = {}
        codes: dict[tuple[str, int], int] = {}
        dequantizer = Dequantizer(header.quantizers, [rung.allocation for rung in header.rungs])
        all_points = dequantizer.coefficients(header.coded, decoder.symbols())
        for record, points in zip(header.coded, all_points, strict=True):
            for side, values in enumerate(points.sides if record.units else ()):
                symbols[record.name, side] = np.searchsorted(book, values[0]).astype(np.uint16)
                codes[record.name, side] = int(record.scale_codes(side)[0])
        raw = dict(decoder.carried_tensors())
    return TrainedFile(header, None if bits == EXACT_BITS else bits, symbols, codes, raw)


def _bits_of(header: Header) -> int:
    fits = len(header.quantizers) == 1 and len(header.rungs) == 1
    for record in header.coded:
        split = not record.kind.is_pair or record.kind.split == "factor"
        fits &= split and record.units in (0, record.kind.most_units)
    if fits:
        for bits in (EXACT_BITS, *TRAINED_BITS):
            if header.quantizers[0].codebook == codebook_for(bits):
                return bits
    raise EncodeError(
        "not a file of trained coefficients: expected one basis and the same bits for all", code="not-trained"
    )


def restore_side(side: CodedSide, trained: TrainedFile) -> None:
    """Set the coefficients of a side to those of a file. As long as they do not change, `save` writes the same symbols.

    Raises:
        EncodeError: ``not-trained``: the file has another number of coefficients.
    """
    key, synthesis = (side.record, side.index or 0), side.tensor.synthesis
    symbols, code = trained.symbols[key], trained.codes[key]
    if len(symbols) != synthesis.num_basis:
        message = f"expected {synthesis.num_basis} coefficients, found {len(symbols)}"
        raise EncodeError(message, code="not-trained", where=side.record)
    own = code - synthesis.gain_code
    scale = float(scale_value(np.array([own], np.int64))[0])
    book = np.array(codebook_for(trained.bits or EXACT_BITS).points, np.float64)
    coefficients = side.coefficients
    with torch.no_grad():
        coefficients.copy_(torch.from_numpy((book[symbols] * scale).astype(np.float32)[None]))
    side.loaded = (coefficients.detach().clone(), symbols, own)
