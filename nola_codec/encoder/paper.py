"""The paper's form as material: `num_basis` coefficients of fixed width for each factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.container.names import split_name
from nola_codec.container.units import START
from nola_codec.encoder.material import Material
from nola_codec.fit.projection import FactorBasis, fit_projection
from nola_codec.model import Codebook, LoraModule, LowRankKind, LowRankRecord, Quantizer
from nola_codec.quant.codebooks import lloyd_max, midrise, midtread
from nola_codec.quant.scales import nearest_code

SLOPE = 4
"""A precision is an eighth of an octave, a factor's amplitude code a thirty-second."""


def codebook_for(bits: int) -> Codebook:
    """Fixed-width codebook of the paper's form: a sign at 1 bit, Lloyd-Max up to 8, plain integers at 16."""
    if bits == 1:
        return midrise(1)
    return midtread(16) if bits == 16 else lloyd_max(bits)


def project_modules(
    modules: Sequence[LoraModule],
    streams: Sequence[int],
    *,
    num_basis: int | None,
    bits: int,
    rank: int | None,
    basis: int,
    generator: int,
    seed: int,
    progress: Callable[[int], None],
) -> Material:
    """Fit every module.

    Args:
        modules: In record order.
        streams: Stream number of each.
        num_basis: Coefficients a factor; None is as many as the factor has numbers. A Hadamard basis has no more.
        bits: Width of a coefficient.
        rank: Of the fitted factors; None keeps each module's.
        basis: Its id.
        generator: Its id.
        seed: Of the generator.
        progress: Called with the number of modules done.
    """
    codebook = codebook_for(bits)
    records: list[LowRankRecord] = []
    symbols: list[npt.NDArray[np.uint16]] = []
    for index, module in enumerate(modules):
        fitted = rank or module.rank
        out, columns = module.lora_B.shape[0], module.lora_A.shape[1]
        lengths = (out * fitted, fitted * columns)
        counts = tuple(n if num_basis is None else min(num_basis, n) for n in lengths)
        bases = tuple(
            FactorBasis(basis, BasisKey(generator, seed, 2 * streams[index] + side), lengths[side], counts[side])
            for side in (0, 1)
        )
        fit = fit_projection(module.lora_B, module.lora_A, fitted, (bases[0], bases[1]), codebook)
        kind = LowRankKind(
            template=split_name(module.name)[0],
            layout=module.layout,
            b_shape=(out, fitted, *module.b_shape[2:]),
            a_shape=(fitted, *module.a_shape[1:]),
            scaling=module.scaling,
            fan_in_fan_out=module.fan_in_fan_out,
            dtype=module.dtype,
            basis=basis,
            split="factor",
            num_basis=(counts[0], counts[1]),
        )
        alive = fit.energy_bound < 1.0 or bool(module.lora_B.any() and module.lora_A.any())
        codes = np.array(
            [
                nearest_code(scale / np.sqrt(basis_by_id(basis).norm2(n)))
                for scale, n in zip(fit.scales, lengths, strict=True)
            ],
            np.int64,
        )
        if not alive:
            codes = codes[:0]
        zeros = np.zeros_like(codes)
        records.append(LowRankRecord(module.name, kind, streams[index], (0, 0), zeros, zeros, codes))
        symbols.append(np.concatenate(fit.symbols) if alive else np.empty(0, np.uint16))
        progress(index + 1)
    all_codes = np.concatenate([r.amplitude for r in records]) if records else np.zeros(0, np.int64)
    middle = int(np.median(all_codes)) if all_codes.size else 0
    placed = tuple(_around(record, middle) for record in records)
    squares = tuple(_squares(record, each, codebook) for record, each in zip(placed, symbols, strict=True))
    allocation = ((-1024, 0, 0, 0),)
    return Material((placed,), (tuple(symbols),), (squares,), (Quantizer(codebook),), [(allocation, allocation)], SLOPE)


def _squares(record: LowRankRecord, symbols: npt.NDArray[np.uint16], codebook: Codebook) -> npt.NDArray[np.float64]:
    """Squared norms of both factors' coefficients, (2,) or of a record without units (0,)."""
    if not record.units:
        return np.zeros(0)
    points = np.array(codebook.points, np.float64)[symbols] ** 2
    cut = record.kind.num_basis[0]
    return np.array([points[:cut].sum(), points[cut:].sum()])


def _around(record: LowRankRecord, middle: int) -> LowRankRecord:
    """The record with its precisions set so that amplitudes are predicted to within two codes."""
    precision = np.clip(np.rint((record.amplitude - middle) / SLOPE).astype(np.int64) + START, 0, 255)
    low = SLOPE * (precision - START) + middle - 128
    return replace(
        record,
        kind=replace(record.kind, amplitude=middle - SLOPE * START),
        precision=precision,
        amplitude=np.clip(record.amplitude, low, low + 255),
    )
