"""An ensemble of coded tensors <-> a `.nola` file in the paper's form: coefficients of one width, a basis a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nola_codec.arrays import NUMPY
from nola_codec.container.names import natural_key, split_name
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.coefficients import record_coefficients
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.encoder.assemble import Envelope, code_parts, pack_raw, write_parts
from nola_codec.encoder.material import Material, survey
from nola_codec.encoder.paper import codebook_for, fixed_width
from nola_codec.entropy import rans
from nola_codec.errors import EncodeError
from nola_codec.model.header import Header
from nola_codec.model.quantizers import Quantizer
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.quant.scales import scale_value
from nola_codec.training.coded import Ensemble, Member, Site
from nola_codec.training.quantizer import EXACT_BITS, TRAINED_BITS, quantized
from nola_codec.version import __version__

_LEAST_SAVED = 1.03
"""A table of frequencies is written where it shortens the symbols by this factor, itself included."""


@dataclass(frozen=True)
class Dress:
    """What a file says besides what was trained; see `Envelope`."""

    dialect: str
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None
    raw: Mapping[str, RawTensor] | None = None
    drawn: Mapping[str, tuple[Draw, RawTensor]] | None = None


def decoded_members(ensemble: Ensemble) -> list[torch.Tensor]:
    """What each member decodes to in the file that would be written now, float32 on the CPU, in its shape."""
    material, names = _material(ensemble)
    found: dict[str, DecodedRecord] = {}

    def keep(rung: int, index: int, decoded: DecodedRecord) -> None:
        found[names[index]] = decoded

    code_parts(material, survey(material), _envelope(ensemble, Dress("")), keep, lambda rung: {})
    tensors = []
    for member in ensemble.members:
        decoded = found[member.name]
        value = decoded.float32(NUMPY)[member.side or 0]
        tensors.append(torch.from_numpy(np.ascontiguousarray(value)).reshape(member.code.shape))
    return tensors


def file_bytes(ensemble: Ensemble, dress: Dress, measured: Mapping[str, float] | None = None) -> bytes:
    """The file: what `decoded_members` gives is what it decodes to.

    Args:
        ensemble: With members.
        dress: The rest of the header, and tensors carried as they are.
        measured: For the header's rung.
    """
    material, _ = _material(ensemble)
    envelope = _envelope(ensemble, dress)
    parts = code_parts(material, survey(material), envelope, lambda *_: None, lambda rung: dict(measured or {}))
    return write_parts(parts, material, envelope, pack_raw(envelope.raw))


def _envelope(ensemble: Ensemble, dress: Dress) -> Envelope:
    raw = dict(sorted((dress.raw or {}).items(), key=lambda item: natural_key(item[0])))
    return Envelope(
        writer=f"nola-codec {__version__}",
        dialect=dress.dialect,
        generator=ensemble.generator,
        seed=ensemble.seed,
        config=dress.config,
        metadata=dress.metadata or {},
        raw=raw,
        drawn=dict(sorted((dress.drawn or {}).items(), key=lambda item: natural_key(item[0]))),
    )


def _material(ensemble: Ensemble) -> tuple[Material, list[str]]:
    """Records and symbols of the members as they stand, and the records' names."""
    if not ensemble.members:
        raise EncodeError("nothing is parametrized", code="not-parametrized")
    bits = {m.code.bits or EXACT_BITS for m in ensemble.members}
    if len(bits) > 1:
        raise EncodeError(f"one width of coefficients a file, found {sorted(bits)} bits", code="mixed-bits")
    codebook = codebook_for(bits.pop())
    sides: dict[str, list[Member]] = {}
    for member in ensemble.members:
        sides.setdefault(member.name, []).append(member)
    names = sorted(ensemble.sites, key=lambda name: (len(ensemble.sites[name].shapes) == 1, natural_key(name)))
    records: list[CodedRecord] = []
    symbols: list[npt.NDArray[np.uint16]] = []
    for name in names:
        members = sorted(sides.get(name, []), key=lambda m: m.side or 0)
        each = [_quantized(m) for m in members]
        codes = [code + m.code.synthesis.gain_code for m, (_, code) in zip(members, each, strict=True)]
        records.append(_record(name, ensemble.sites[name], members, codes, ensemble.basis))
        symbols.append(np.concatenate([own for own, _ in each]) if each else np.empty(0, np.uint16))
    counts = np.bincount(np.concatenate(symbols), minlength=codebook.size) if codebook.size <= 256 else None
    return fixed_width(records, symbols, Quantizer(codebook, _frequencies(counts))), names


def _frequencies(counts: npt.NDArray[np.int64] | None) -> tuple[int, ...] | None:
    """Frequencies for rANS where they pay for themselves."""
    if counts is None:
        return None
    total = int(counts.sum())
    used = counts[counts > 0]
    entropy = -float((used * np.log2(used / total)).sum())
    table = 12.0 * len(counts)
    plain = total * float(np.ceil(np.log2(len(counts))))
    return rans.normalize(counts) if plain > _LEAST_SAVED * (entropy + table + 256) else None


def _quantized(member: Member) -> tuple[npt.NDArray[np.uint16], int]:
    coefficients = member.coefficients
    if member.loaded is not None and torch.equal(member.loaded[0], coefficients):
        return member.loaded[1], member.loaded[2]
    values = coefficients.detach().float().cpu().numpy()[0]
    if not np.isfinite(values).all():
        raise EncodeError("coefficients are not finite", code="not-finite", where=member.name)
    return quantized(values, member.code.bits or EXACT_BITS, member.code.synthesis.grain)


def _record(name: str, site: Site, members: Sequence[Member], codes: Sequence[int], basis: int) -> CodedRecord:
    is_pair = len(site.shapes) == 2
    split: Split = "factor" if is_pair else "component"
    counts = [m.code.synthesis.num_basis for m in members] or [1] * len(site.shapes)  # untrained: no units
    kind = CodedKind(
        template=split_name(name)[0],
        layout=site.layout,
        scaling=site.scaling,
        fan_in_fan_out=site.fan_in_fan_out,
        dtype="F32",
        basis=basis,
        split=split,
        sides=coded_sides(site.shapes, split, counts),
    )
    # The amplitude of a vector counts sixteenths of an octave, that of a factor thirty-seconds.
    amplitude = np.array(codes, np.int64) // (1 if is_pair else 2)
    zeros = np.zeros(len(members), np.int64)
    return CodedRecord(name, kind, site.stream, (0,) * len(site.shapes), zeros, zeros, amplitude)


@dataclass(frozen=True)
class Trained:
    """What a file in the paper's form says of its training.

    Attributes:
        header: Of the file.
        bits: Width of a coefficient; None for 16.
        symbols, codes: For each record's name and side, symbols (num_basis,) and the code of the coefficients' scale
            before any gain.
        raw: Tensors carried, or drawn again.
    """

    header: Header
    bits: int | None
    symbols: Mapping[tuple[str, int], npt.NDArray[np.uint16]]
    codes: Mapping[tuple[str, int], int]
    raw: Mapping[str, RawTensor]


def read_trained(source: Source) -> Trained:
    """Read a file that `file_bytes` wrote.

    Raises:
        FormatError: the file is damaged.
        EncodeError: it is not in the paper's form, or not of one width (``not-trained``).
    """
    with open_container(source) as container:
        container.check_content()
        decoder = Decoder(container, NUMPY)
        header = decoder.header
        bits = _bits_of(header)
        book = np.array(codebook_for(bits).points, np.int64)
        symbols: dict[tuple[str, int], npt.NDArray[np.uint16]] = {}
        codes: dict[tuple[str, int], int] = {}
        for record, own in zip(header.coded, decoder.symbols(), strict=True):
            points = record_coefficients(record, own, header.quantizers, [r.allocation for r in header.rungs])
            for side, values in enumerate(points.sides if record.units else ()):
                symbols[record.name, side] = np.searchsorted(book, values[0]).astype(np.uint16)
                codes[record.name, side] = int(record.scale_codes(side)[0])
        raw = dict(decoder.carried_tensors())
    return Trained(header, None if bits == EXACT_BITS else bits, symbols, codes, raw)


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
        "not a file of trained coefficients: expected one basis and one width for all", code="not-trained"
    )


def restore(member: Member, trained: Trained) -> None:
    """Put a file's coefficients into a member; until they change it is saved as it was read."""
    side = member.side or 0
    symbols, code = trained.symbols[member.name, side], trained.codes[member.name, side]
    if len(symbols) != member.code.synthesis.num_basis:
        message = f"expected {member.code.synthesis.num_basis} coefficients, found {len(symbols)}"
        raise EncodeError(message, code="not-trained", where=member.name)
    own = code - member.code.synthesis.gain_code
    scale = float(scale_value(np.array([own], np.int64))[0])
    book = np.array(codebook_for(member.code.bits or EXACT_BITS).points, np.float64)
    coefficients = member.coefficients
    with torch.no_grad():
        coefficients.copy_(torch.from_numpy((book[symbols] * scale).astype(np.float32)[None]))
    member.loaded = (coefficients.detach().clone(), symbols, own)
