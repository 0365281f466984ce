"""Symbols and coefficients from packed bytes in PyTorch are those of NumPy, for random sections of every codec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nola_codec.decoder.device.decoding import tensor_of
from nola_codec.decoder.device.packed import PADDING, pack_section
from nola_codec.decoder.device.plan import SymbolPlan
from nola_codec.decoder.device.points import book_points
from nola_codec.decoder.device.symbols import decode_symbols
from nola_codec.entropy import CODECS
from nola_codec.entropy.rans import TOTAL, lookup_table, normalize
from nola_codec.model.quantizers import Book, Codebook, Dependent, Runs, SymbolModel
from nola_codec.quant import points
from nola_codec.quant.trellis import TRELLISES


def random_model(rng: np.random.Generator, *, counted: bool) -> SymbolModel:
    size = int(rng.integers(1, 257)) if counted else int(rng.choice([2, 3, 4, 200, 256, 300, 65536]))
    return SymbolModel(size, normalize(rng.integers(0, 50, size) ** 2) if counted else None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_sections(seed: int) -> None:
    """Sections of several codecs, lanes and models in one array of bytes, decoded together."""
    rng = np.random.default_rng(seed)
    models = [random_model(rng, counted=bool(i % 2)) for i in range(int(rng.integers(2, 6)))]
    plan, streams, parts, position = SymbolPlan(models), [], [], 0
    for codec in (2 * rng.integers(0, 2, int(rng.integers(1, 6)))).tolist():
        chosen = rng.integers(0, len(models), int(rng.integers(1, 5)))
        if codec == 2:
            chosen[0] = 1  # a run with frequencies, which codec 2 needs
        runs = Runs(chosen, rng.integers(0, 3000, len(chosen)))
        symbols = np.concatenate([
            rng.choice(models[m].size, n, p=None if models[m].frequencies is None
                       else np.array(models[m].frequencies) / TOTAL).astype(np.uint16)
            for m, n in zip(runs.models.tolist(), runs.lengths.tolist(), strict=True)
        ])  # fmt: skip
        stored = CODECS[codec].encode(symbols, runs, models)
        section, data = pack_section(codec, stored, runs, models, position)
        plan.add_section(section, runs.models, runs.lengths)
        streams.append(symbols)
        parts.append(data)
        position += len(data)
    data = tensor_of(b"".join([*parts, bytes(PADDING)]), "cpu")
    lookup = torch.from_numpy(lookup_table(models).astype(np.int64))
    wide = any(model.size > 256 for model in models)
    decoded, faults = decode_symbols(data, plan.finish(), lookup, wide=wide)
    assert int(faults) == 0
    assert decoded.tolist() == np.concatenate(streams).tolist()


def test_faults_are_counted_apart() -> None:
    """A symbol outside its alphabet and used padding bits are two faults."""
    models, runs = [SymbolModel(3)], Runs(np.array([0]), np.array([3]))
    for byte, wanted in ((0b00_01_10_00, 0), (0b00_01_11_00, 1), (0b01_01_11_11, 3)):
        section, data = pack_section(0, bytes([byte]), runs, models, 0)
        plan = SymbolPlan(models)
        plan.add_section(section, runs.models, runs.lengths)
        lookup = torch.from_numpy(lookup_table(models).astype(np.int64))
        _, faults = decode_symbols(tensor_of(data + bytes(PADDING), "cpu"), plan.finish(), lookup, wide=False)
        assert int(faults) == wanted


BOOKS: list[Book] = [
    *TRELLISES,
    Dependent(0, (3, 9), (5, 11)),
    Dependent(0b1011_0001, (3, 9, 40), (5, 11, 41)),
    Dependent(0xFF, (32768,), (1,)),
    Codebook((-32768, 0, 7)),
]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: f"{type(book).__name__}-{book.peak}-{book.size}")
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 577])
def test_points(book: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    symbols = rng.integers(0, book.size, (5, book.run(count))).astype(np.uint8)
    made = book_points(book, torch.from_numpy(symbols), count)
    assert made.dtype == torch.int32
    assert made.tolist() == points.book_points(book, symbols, count).tolist()
