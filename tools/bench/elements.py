"""Peers that work on single numbers of the factors: DARE, magnitude pruning, random projection, lossless coding.

Each lossy one has one continuous setting, which bisection finds for a target, and a list of widths for kept numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from common import Floats, Pair, nmse
from quantizers import rotate
from svd_codecs.columns import Component, Point
from svd_codecs.file import FileWriter, entropy_bits, zstd

from nola_codec.reporting.rounding import Half, Integers, Quantized, Quantizer

STEPS = 10  # steps of bisection, which find the setting to within a thousandth


@dataclass(frozen=True)
class Vectors:
    """The factors of an adapter as one long vector, and the way back.

    Attributes:
        pairs: The pairs of factors that errors are measured against.
        shapes: For each module, the shapes of B^T and of A; the rows of `canonical` vectors are components.
        flat: All numbers, module after module, B^T then A.
        weight: For each number, the squared error of delta_W over its own: the energy of the other side's row.
    """

    pairs: Sequence[Pair]
    shapes: Sequence[tuple[tuple[int, int], tuple[int, int]]]
    flat: Floats
    weight: Floats

    @staticmethod
    def raw(pairs: Sequence[Pair]) -> Vectors:
        """Return the adapter's own factors, with the scaling on the B side."""
        sides = [(pair.scaling * pair.B.T.astype(np.float64), pair.A.astype(np.float64)) for pair in pairs]
        return Vectors._make(pairs, sides)

    @staticmethod
    def canonical(pairs: Sequence[Pair], components: Sequence[Component]) -> Vectors:
        """Return SVD components, with the root of the singular value on each side."""
        sides = [((c.u * np.sqrt(c.s)).T, (c.v * np.sqrt(c.s)).T) for c in components]
        return Vectors._make(pairs, sides)

    @staticmethod
    def _make(pairs: Sequence[Pair], sides: Sequence[tuple[Floats, Floats]]) -> Vectors:
        weights = []
        for left, right in sides:
            weights.append(np.repeat((right**2).sum(1), left.shape[1]))
            weights.append(np.repeat((left**2).sum(1), right.shape[1]))
        flat = np.concatenate([part.ravel() for side in sides for part in side])
        return Vectors(pairs, [(left.shape, right.shape) for left, right in sides], flat, np.concatenate(weights))

    @functools.cached_property
    def rotated(self) -> Floats:
        """The numbers of `flat` with each row in the seeded Hadamard basis."""
        return self.map_rows(self.flat, rotate)

    def split(self, flat: Floats) -> list[tuple[Floats, Floats]]:
        """Return a flat vector as matrices (r, out) and (r, in) of each module."""
        out, at = [], 0
        for left, right in self.shapes:
            middle, end = at + left[0] * left[1], at + left[0] * left[1] + right[0] * right[1]
            out.append((flat[at:middle].reshape(left), flat[middle:end].reshape(right)))
            at = end
        return out

    def map_rows(self, flat: Floats, function: Callable[[Floats], Floats]) -> Floats:
        """Apply a function to every matrix of rows, and return the flattened results."""
        return np.concatenate([function(part).ravel() for side in self.split(flat) for part in side])

    def error(self, flat: Floats) -> float:
        """Return the NMSE of delta_W if the numbers are these instead of `flat`."""
        return nmse(self.pairs, [(left.T, right) for left, right in self.split(flat)])

    def header(self) -> list[object]:
        """Return names and shapes for the header of a file."""
        return [[pair.name, *shapes] for pair, shapes in zip(self.pairs, self.shapes, strict=True)]


class Method(Protocol):
    """A codec of single numbers with one setting in [0, 1]; a larger setting loses less."""

    def __call__(self, vectors: Vectors, setting: float, keep: Quantizer) -> tuple[Floats, Quantized, list[bytes]]:
        """Return (decoded numbers, the stored form of the kept numbers, further streams)."""
        ...


def dare(vectors: Vectors, setting: float, keep: Quantizer) -> tuple[Floats, Quantized, list[bytes]]:
    """Drop a random share 1 - setting of the numbers, multiply the rest by 1 / setting, and round.

    The mask comes from a seed, so it takes no bytes.
    """
    kept = np.random.default_rng(11).random(len(vectors.flat)) < setting
    coded = keep(vectors.flat[kept][None] / setting)
    out = np.zeros_like(vectors.flat)
    out[kept] = coded.values[0]
    return out, coded, []


def prune(vectors: Vectors, setting: float, keep: Quantizer) -> tuple[Floats, Quantized, list[bytes]]:
    """Keep the share `setting` of numbers whose loss costs most; positions take the shortest of three forms."""
    cost = vectors.flat**2 * vectors.weight
    kept = cost >= np.quantile(cost, 1 - setting)
    coded = keep(vectors.flat[kept][None])
    out = np.zeros_like(vectors.flat)
    out[kept] = coded.values[0]
    return out, coded, [_mask(kept)]


def nola(vectors: Vectors, setting: float, keep: Quantizer) -> tuple[Floats, Quantized, list[bytes]]:
    """Project each factor on k = setting * N random rows of an orthogonal basis, as plain NOLA does."""
    kept = np.random.default_rng(13).random(len(vectors.flat)) < setting
    coded = keep(vectors.rotated[kept][None])
    out = np.zeros_like(vectors.flat)
    out[kept] = coded.values[0]
    return vectors.map_rows(out, functools.partial(rotate, inverse=True)), coded, []


def _mask(kept: Floats) -> bytes:
    bits = np.packbits(kept).tobytes()
    gaps = np.diff(np.flatnonzero(kept), prepend=-1)
    forms = [bits, zstd(bits)]
    if len(gaps) and gaps.max() < 256:
        forms.append(zstd(gaps.astype(np.uint8).tobytes()))
    return min(forms, key=len)


class Elements:
    """A peer that is made of a method and of the widths for the numbers that it keeps."""

    def __init__(self, name: str, vectors: Vectors, method: Method, widths: Sequence[Quantizer]) -> None:
        self.name = name
        self.vectors = vectors
        self.method = method
        self.widths = widths
        self._errors: dict[tuple[str, float], float] = {}  # the first steps of a bisection are the same for all targets

    def best_at(self, target: float) -> Point | None:
        """Return the smallest file with an error of at most `target`, or None if no setting reaches it."""
        found = [candidate for keep in self.widths if (candidate := self._search(target, keep))]
        found.sort(key=lambda candidate: candidate[0])
        return min(
            (self._write(setting, keep) for _, setting, keep in found[:2]), key=lambda point: point.bytes, default=None
        )

    def _search(self, target: float, keep: Quantizer) -> tuple[float, float, Quantizer] | None:
        """Return (estimated bytes, setting, keep) at the lowest setting that meets the error."""

        def error(setting: float) -> float:
            key = keep.name, setting
            if key not in self._errors:
                self._errors[key] = self.vectors.error(self.method(self.vectors, setting, keep)[0])
            return self._errors[key]

        low, high = 0.0, 1.0
        if error(high) > target:
            return None
        for _ in range(STEPS):
            middle = (low + high) / 2
            if error(middle) <= target:
                high = middle
            else:
                low = middle
        _, coded, streams = self.method(self.vectors, high, keep)
        codes = 0.0 if coded.codes is None else entropy_bits(coded.codes, coded.bits) * coded.codes.size / 8
        return codes + sum(part.nbytes for part in coded.side) + sum(map(len, streams)), high, keep

    def _write(self, setting: float, keep: Quantizer) -> Point:
        out, coded, streams = self.method(self.vectors, setting, keep)
        writer = FileWriter(self.vectors.header(), compress=True)
        writer.add(coded, np.array([0]))
        total = len(writer.blob()) + sum(map(len, streams))
        return Point(f"keep {setting:.3f} in {keep.name}", total, self.vectors.error(out))


def dare_peer(pairs: Sequence[Pair]) -> Elements:
    """Return DARE on the factors as trained, in fp16 or rounded to few bits."""
    return Elements("DARE + rounding", Vectors.raw(pairs), dare, [Half(), Integers(8), Integers(4), Integers(3)])


def prune_peer(pairs: Sequence[Pair], components: Sequence[Component]) -> Elements:
    """Return magnitude pruning of SVD components."""
    widths: list[Quantizer] = [Half(), Integers(8), Integers(4), Integers(3)]
    return Elements("magnitude pruning", Vectors.canonical(pairs, components), prune, widths)


def nola_peer(pairs: Sequence[Pair], components: Sequence[Component]) -> Elements:
    """Return the plain NOLA projection with rounded coefficients."""
    widths: list[Quantizer] = [Half(), Integers(8), Integers(4), Integers(3), Integers(2)]
    return Elements("NOLA projection", Vectors.canonical(pairs, components), nola, widths)


Coder = Callable[[bytes, str], bytes]
"""A function from the bytes of numbers in fp32, fp16 or bf16, and that name, to compressed bytes."""


class Lossless:
    """A peer that stores the factors in a float format by a lossless coder."""

    def __init__(self, name: str, pairs: Sequence[Pair], form: str, coder: Coder) -> None:
        self.name = name
        numbers = np.concatenate([part.ravel() for pair in pairs for part in (pair.B, pair.A)])
        if form == "bf16":
            data = ((numbers.view(np.uint32).astype(np.uint64) + 0x8000) >> 16).astype(np.uint16)
            values = (data.astype(np.uint32) << 16).view(np.float32)
        else:
            data = numbers.astype(np.float16 if form == "fp16" else np.float32)
            values = data.astype(np.float32)
        vectors = [(pair.name, pair.B.shape, pair.A.shape) for pair in pairs]
        header = FileWriter(vectors, compress=True).blob()
        decoded, at = [], 0
        for pair in pairs:
            b = values[at : at + pair.B.size].reshape(pair.B.shape)
            a = values[at + pair.B.size : at + pair.B.size + pair.A.size].reshape(pair.A.shape)
            decoded.append((pair.scaling * b.astype(np.float64), a))
            at += pair.B.size + pair.A.size
        self.point = Point(form, len(header) + len(coder(data.tobytes(), form)), nmse(pairs, decoded))

    def best_at(self, target: float) -> Point | None:
        """Return the one file that there is, or None if its error is over `target`."""
        return self.point if self.point.nmse <= target else None


def plain_zstd(data: bytes, form: str) -> bytes:
    """Compress the numbers as they are by zstd -19."""
    return zstd(data)


def plane_zstd(data: bytes, form: str) -> bytes:
    """Compress each byte plane by zstd -19; ZipNN groups bytes in the same way."""
    planes = np.frombuffer(data, np.uint8).reshape(-1, 4 if form == "fp32" else 2).T
    return b"".join(min(plane.tobytes(), zstd(plane.tobytes()), key=len) for plane in planes)


def zipnn_coder() -> Coder | None:
    """Return the coder of the ZipNN package, which checks its results, or None if it is not installed."""
    try:
        from zipnn import ZipNN
    except ImportError:
        return None
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

    def coder(data: bytes, form: str) -> bytes:
        options = {"bytearray_dtype": names[form], "input_format": "byte"}
        coded = bytes(ZipNN(**options).compress(bytearray(data)))  # a copy: zipnn 0.5 writes into what it is given
        if bytes(ZipNN(**options).decompress(coded)) != data:
            raise RuntimeError(f"ZipNN did not give back its {form} input")
        return coded

    return coder
