"""Further ways to round the columns of an SVD: NF4, rotation + Lloyd-Max, signs.

fp16, group scales and the file itself are those of `svd_codecs`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from common import Floats
from svd_codecs.file import FileWriter

from nola_codec.reporting.rounding import Half, Integers, Quantized, Quantizer, groups_of, ungrouped

__all__ = ["Eden", "FileWriter", "Half", "Integers", "Nf4", "Quantized", "Quantizer", "Signs", "lloyd_max", "rotate"]

NF4 = np.array(  # bitsandbytes' NormalFloat table
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


@dataclass(frozen=True)
class Nf4:
    """bitsandbytes' 4-bit NormalFloat: group absmax in fp32, or in 8 bits over one fp32 a row ("double quant")."""

    double: bool = True
    group: int = 64

    @property
    def name(self) -> str:
        return f"nf4/g{self.group}" + ("dq" if self.double else "")

    def __call__(self, rows: Floats) -> Quantized:
        x = groups_of(rows, self.group)
        absmax = np.abs(x).max(2).astype(np.float32)
        side: tuple[Floats, ...] = (absmax,)
        if self.double:
            largest = absmax.max(1, keepdims=True)
            short = np.rint(absmax / np.where(largest == 0, 1, largest) * 255).astype(np.uint8)
            absmax, side = short * largest / 255, (short, largest)
        unit = x / np.where(absmax == 0, 1, absmax)[..., None]
        codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, unit).astype(np.uint8)
        n = rows.shape[1]
        return Quantized(ungrouped(NF4[codes] * absmax[..., None], n), ungrouped(codes, n), 4, side)


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
        unrotated: Floats = _hadamard(rows[:, np.argsort(order)], block) * signs[0]
        return unrotated
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
        x = groups_of(rows, self.group)
        count = np.minimum(self.group or n, n - np.arange(x.shape[1]) * x.shape[2])
        scale = (np.abs(x).sum(2) / count).astype(np.float16)
        codes = ungrouped(x >= 0, n).astype(np.uint8)
        values = ungrouped(np.where(x >= 0, 1.0, -1.0) * scale[..., None], n)
        return Quantized(values, codes, 1, (scale,))
