"""What rivals do to the columns of an SVD (fp16, group scales, NF4, rotation + Lloyd-Max, signs), and their file.

A quantizer maps row vectors (m, n) to values and to what a file must hold for each row. Rows are independent, so one
pass over all components serves every choice of which components to keep.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import zstandard
from common import Floats

NF4 = np.array(  # bitsandbytes' NormalFloat table
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
_SHRINKS = (1.0, 0.91, 0.82, 0.73, 0.64)


@dataclass(frozen=True)
class Quantized:
    """Rows after quantization.

    Attributes:
        values: (m, n) reconstruction.
        codes: (m, n') uint8 symbols below ``2**bits``, or None where all is in `side`.
        bits: Width of a packed symbol.
        side: What else a row stores, each (m, ...) in its stored dtype.
    """

    values: Floats
    codes: Floats | None
    bits: int
    side: tuple[Floats, ...] = ()


class Quantizer(Protocol):
    """One way to store a row vector."""

    name: str

    def __call__(self, rows: Floats) -> Quantized: ...


def _groups(rows: Floats, group: int) -> Floats:
    """(m, n) -> (m, ceil(n / group), group), padded with zeros; ``group = 0`` takes the row as one group."""
    m, n = rows.shape
    group = min(group, n) or n
    return np.pad(rows, ((0, 0), (0, -n % group))).reshape(m, -1, group)


def _flat(groups: Floats, n: int) -> Floats:
    return groups.reshape(len(groups), -1)[:, :n]


@dataclass(frozen=True)
class Half:
    """The numbers in fp16."""

    name: str = "fp16"

    def __call__(self, rows: Floats) -> Quantized:
        half = rows.astype(np.float16)
        return Quantized(half.astype(np.float64), None, 0, (half,))


@dataclass(frozen=True)
class Integers:
    """Round to nearest with one fp16 scale a group: symmetric, clip chosen for the least squared error of the group.

    Four bits and more: levels -L..L with L = 2^(bits-1) - 1. Two and three: 2^bits levels at odd halves of a step.
    """

    bits: int
    group: int = 64

    @property
    def name(self) -> str:
        return f"int{self.bits}/g{self.group}"

    def __call__(self, rows: Floats) -> Quantized:
        x = _groups(rows.astype(np.float32), self.group)
        odd_halves = self.bits < 4
        top = 2 ** (self.bits - 1) - (0.5 if odd_halves else 1)
        best = None
        for shrink in _SHRINKS if self.bits < 8 else _SHRINKS[:1]:
            scale = (np.abs(x).max(2, keepdims=True) * shrink / top).astype(np.float16)
            step = np.where(scale == 0, 1, scale).astype(np.float32)
            levels = np.clip(np.floor(x / step) + np.float32(0.5) if odd_halves else np.rint(x / step), -top, top)
            values = levels * scale.astype(np.float32)
            error = ((x - values) ** 2).sum(2, keepdims=True)
            if best is None:
                best = [error, levels, scale, values]
            else:
                better = (error < best[0])[..., 0]
                for old, new in zip(best, (error, levels, scale, values), strict=True):
                    old[better] = new[better]
        assert best is not None
        _, levels, scale, values = best
        n = rows.shape[1]
        return Quantized(_flat(values, n), (_flat(levels, n) + top).astype(np.uint8), self.bits, (scale[..., 0],))


@dataclass(frozen=True)
class Nf4:
    """bitsandbytes' 4-bit NormalFloat: group absmax in fp32, or in 8 bits over one fp32 a row ("double quant")."""

    double: bool = True
    group: int = 64

    @property
    def name(self) -> str:
        return f"nf4/g{self.group}" + ("dq" if self.double else "")

    def __call__(self, rows: Floats) -> Quantized:
        x = _groups(rows, self.group)
        absmax = np.abs(x).max(2).astype(np.float32)
        side: tuple[Floats, ...] = (absmax,)
        if self.double:
            largest = absmax.max(1, keepdims=True)
            short = np.rint(absmax / np.where(largest == 0, 1, largest) * 255).astype(np.uint8)
            absmax, side = short * largest / 255, (short, largest)
        unit = x / np.where(absmax == 0, 1, absmax)[..., None]
        codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, unit).astype(np.uint8)
        n = rows.shape[1]
        return Quantized(_flat(NF4[codes] * absmax[..., None], n), _flat(codes, n), 4, side)


@functools.cache
def lloyd_max(bits: int) -> Floats:
    """The 2^bits levels of least squared error for a standard Gaussian (0.363, 0.1175, 0.0345, 0.0095 at 1-4 bits)."""
    grid = np.linspace(-8, 8, 200_001)
    weight = np.exp(-(grid**2) / 2)
    mass, moment = np.cumsum(weight), np.cumsum(weight * grid)
    levels = np.linspace(-1, 1, 2**bits) * (0.8 + 0.55 * (bits - 1))
    for _ in range(3000):
        cuts = np.searchsorted(grid, np.concatenate([[-8], (levels[1:] + levels[:-1]) / 2, [8]]))
        cuts[-1] = len(grid) - 1
        new = np.diff(moment[cuts]) / np.diff(mass[cuts])
        if np.abs(new - levels).max() < 1e-7:
            break
        levels = new
    return levels


def rotate(rows: Floats, seed: int = 7, inverse: bool = False) -> Floats:
    """Orthonormal randomized Hadamard transform of each row; blocks of the largest power of two dividing n, twice.

    Signs and the permutation between the two rounds are seeded, so they cost a file nothing.
    """
    n = rows.shape[1]
    block = n & -n
    rng = np.random.default_rng([seed, n])
    signs, order = rng.choice([-1.0, 1.0], (2, n)), rng.permutation(n)
    if inverse:
        rows = _hadamard(rows, block) * signs[1]
        rows = rows[:, np.argsort(order)]
        return _hadamard(rows, block) * signs[0]
    rows = _hadamard(rows * signs[0], block)
    return _hadamard(rows[:, order] * signs[1], block)


def _hadamard(rows: Floats, block: int) -> Floats:
    """Walsh-Hadamard over each block, as a Kronecker product of two small matrices; its own inverse."""
    m, n = rows.shape
    a = 2 ** (int(math.log2(block)) // 2)
    left, right = _walsh(a), _walsh(block // a)
    return (left @ rows.reshape(m, n // block, a, block // a) @ right).reshape(m, n) / math.sqrt(block)


@functools.cache
def _walsh(order: int) -> Floats:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@dataclass(frozen=True)
class Eden:
    """Seeded Hadamard rotation, then Lloyd-Max of a Gaussian at a fixed width; one least-squares gain a row, fp16."""

    bits: int

    @property
    def name(self) -> str:
        return f"eden{self.bits}"

    def __call__(self, rows: Floats) -> Quantized:
        levels = lloyd_max(self.bits)
        y = rotate(rows)
        norm = np.sqrt((y**2).mean(1, keepdims=True))
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, y / np.where(norm == 0, 1, norm)).astype(np.uint8)
        unit = levels[codes]
        gain = ((y * unit).sum(1, keepdims=True) / (unit**2).sum(1, keepdims=True)).astype(np.float16)
        return Quantized(rotate(unit * gain, inverse=True), codes, self.bits, (gain,))


@dataclass(frozen=True)
class Signs:
    """One bit a number: its sign, times the mean magnitude of the group in fp16."""

    group: int = 128

    @property
    def name(self) -> str:
        return f"sign/g{self.group}"

    def __call__(self, rows: Floats) -> Quantized:
        n = rows.shape[1]
        x = _groups(rows, self.group)
        count = np.minimum(self.group or n, n - np.arange(x.shape[1]) * x.shape[2])
        scale = (np.abs(x).sum(2) / count).astype(np.float16)
        codes = _flat(x >= 0, n).astype(np.uint8)
        values = _flat(np.where(x >= 0, 1.0, -1.0) * scale[..., None], n)
        return Quantized(values, codes, 1, (scale,))


def pack(codes: Floats, bits: int) -> bytes:
    """Symbols of `bits` bits, most significant bit first, without gaps."""
    return np.packbits(np.unpackbits(codes[:, None].astype(np.uint8), axis=1)[:, 8 - bits :]).tobytes()


def zstd(data: bytes) -> bytes:
    """zstd at level 19."""
    return zstandard.ZstdCompressor(level=19).compress(data)


@dataclass
class FileWriter:
    """A file as a rival could write it: a zstd-compressed JSON header of names and shapes, then the streams.

    Kinder than safetensors, whose plain JSON header is 10-40 KB for these adapters. With `compress`, each stream is the
    smallest of packed, packed + zstd -19, and one byte a symbol + zstd -19.
    """

    header: object
    compress: bool
    codes: dict[int, list[Floats]] = field(default_factory=dict)
    side: dict[tuple[int, str], list[Floats]] = field(default_factory=dict)

    def add(self, quantized: Quantized, rows: Sequence[int] | Floats) -> None:
        """Put the given rows of a quantized matrix into the file."""
        if quantized.codes is not None:
            self.codes.setdefault(quantized.bits, []).append(quantized.codes[rows].ravel())
        for index, part in enumerate(quantized.side):
            self.side.setdefault((index, part.dtype.str), []).append(part[rows].ravel())

    def blob(self) -> bytes:
        """The file's bytes."""
        streams = [zstd(json.dumps(self.header, separators=(",", ":")).encode())]
        for bits, parts in self.codes.items():
            symbols = np.concatenate(parts)
            packed = pack(symbols, bits)
            streams.append(_smallest([packed, symbols.tobytes()], len(packed)) if self.compress else packed)
        for side in self.side.values():
            plain = np.concatenate(side)
            planes = plain.view(np.uint8).reshape(-1, plain.itemsize).T.tobytes()
            streams.append(_smallest([planes], len(planes)) if self.compress else plain.tobytes())
        lengths = np.array([len(stream) for stream in streams], "<u4").tobytes()
        return lengths + b"".join(streams)


def _smallest(forms: Sequence[bytes], raw: int) -> bytes:
    """zstd -19 of the form that does best on a sample from its middle, or the first form as it is (`raw` bytes).

    Level 19 takes seconds a megabyte; these streams are alike all along, so a sample of 64 KB decides.
    """
    cut = [form[len(form) // 2 :][: 1 << 16] for form in forms]
    gains = [len(zstd(part)) / max(len(part), 1) * len(form) for part, form in zip(cut, forms, strict=True)]
    best = int(np.argmin(gains))
    if gains[best] > 1.01 * raw:
        return forms[0]
    return min(zstd(forms[best]), forms[0], key=len)


def entropy_bits(codes: Floats, bits: int) -> float:
    """Order-0 entropy in bits a symbol, for ranking settings before anything is written."""
    share = np.bincount(codes.ravel(), minlength=2**bits) / max(codes.size, 1)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
