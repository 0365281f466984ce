"""Write the file of a peer, and estimate its size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from nola_codec.quant.packing import pack
from nola_codec.reporting.rounding import Codes, Quantized

_SAMPLE = 1 << 16


def zstd(data: bytes) -> bytes:
    """zstd at level 19."""
    return zstandard.ZstdCompressor(level=19).compress(data)


def entropy_bits(codes: Codes, bits: int) -> float:
    """Order-0 entropy in bits a symbol, for ranking settings before anything is written."""
    share = np.bincount(codes.ravel(), minlength=2**bits) / max(codes.size, 1)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


@dataclass
class FileWriter:
    """A file as a peer could write it: a zstd-compressed JSON header of names and shapes, then the streams.

    It is smaller than safetensors, whose plain JSON header is 10-40 KB for common adapters. With `compress`,
    each stream is the smallest of packed, packed + zstd -19, and one byte a symbol + zstd -19.
    """

    header: object
    compress: bool
    codes: dict[int, list[Codes]] = field(default_factory=dict)
    side: dict[tuple[int, str], list[npt.NDArray[Any]]] = field(default_factory=dict)

    def add(self, quantized: Quantized, rows: Sequence[int] | npt.NDArray[np.int64]) -> None:
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
            streams.append(_smallest([packed, symbols.tobytes()]) if self.compress else packed)
        for side in self.side.values():
            plain = np.concatenate(side)
            planes = plain.view(np.uint8).reshape(-1, plain.itemsize).T.tobytes()
            streams.append(_smallest([planes]) if self.compress else plain.tobytes())
        lengths = np.array([len(stream) for stream in streams], "<u4").tobytes()
        return lengths + b"".join(streams)


def _smallest(forms: Sequence[bytes]) -> bytes:
    """zstd -19 of the form that does best on a sample from its middle, or the first form as it is.

    Level 19 takes seconds a megabyte; these streams are alike all along, so a sample decides.
    """
    cut = [form[len(form) // 2 :][:_SAMPLE] for form in forms]
    gains = [len(zstd(part)) / max(len(part), 1) * len(form) for part, form in zip(cut, forms, strict=True)]
    best = int(np.argmin(gains))
    if gains[best] > 1.01 * len(forms[0]):
        return forms[0]
    return min(zstd(forms[best]), forms[0], key=len)
