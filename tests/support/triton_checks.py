"""Checks of the Triton kernels, run by Triton's interpreter in a process of its own (TRITON_INTERPRET=1).

    python tests/support/triton_checks.py CHECK...

The interpreter is chosen when Triton is imported, and then every path on the CPU takes the kernels. So these checks
cannot share the process of other tests.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nola_forge import golden, verify

from nola_codec.api.encoding import encode_bytes
from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.basis import BASES, BasisKey
from nola_codec.container.limits import Limits
from nola_codec.decoder.device import decoding
from nola_codec.decoder.device.decoding import tensor_of
from nola_codec.decoder.device.packed import PADDING, pack_section
from nola_codec.decoder.device.plan import SymbolPlan
from nola_codec.decoder.device.symbols import decode_symbols
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.entropy import CODECS
from nola_codec.entropy.rans import TOTAL, lookup_table, normalize
from nola_codec.errors import FormatError
from nola_codec.kernels.triton import hadamard, merge, philox, rademacher
from nola_codec.kernels.triton.availability import is_interpreted, uses_triton
from nola_codec.merger.arithmetic.sum import delta_weight, merge_factors, merge_tensor
from nola_codec.model.quantizers import Book, Codebook, Dependent, Runs, SymbolModel, Trellis
from nola_codec.model.records import CodedKind, coded_sides
from nola_codec.prng import PHILOX, SIGNS, words
from nola_codec.quant.points import book_points
from nola_codec.quant.trellis import TRELLISES, dependent_table, window_table

SEED = 0xFEDCBA9876543210
BOOKS: list[Book] = [
    *TRELLISES, Dependent(0xB1, (3, 9, 40), (5, 11, 41)), Dependent(3, (7, 9), (8, 30)),
    Codebook((-300, 0, 7)),
]  # fmt: skip


def check_philox() -> None:
    made = torch.zeros((3, 1040), dtype=torch.int32)
    streams = [5, 0x80000001, (1 << 32) - 1]
    philox.sign_words(made, torch.tensor(streams), SIGNS, SEED)
    for row, stream in zip(made.numpy().view(np.uint32), streams, strict=True):
        known = words(PHILOX, seed=SEED, stream=stream, purpose=SIGNS, start=0, count=1040, xp=NUMPY)
        assert np.array_equal(row, known)


def check_rademacher() -> None:
    """Rows that begin with a counter of their own, and rows that do not; more than one program for the rows."""
    rng = np.random.default_rng(0)
    for n, k in ((1152, 18), (100, 35), (31, 3)):
        q = rng.integers(-99, 100, (2, k)).astype(np.int32)
        sums = torch.zeros((2, n), dtype=torch.int32)
        rademacher.add_rows(torch.from_numpy(q), sums, torch.tensor([3, 9]), SEED)
        basis = BASES[2]
        for row, own, stream in zip(sums.numpy(), q, (3, 9), strict=True):
            known = basis.synthesize(own[None, None], n, (BasisKey(PHILOX, SEED, stream),), 99, NUMPY)[0, 0]
            assert np.array_equal(row, known)
        through = basis.synthesize(torch.from_numpy(q[None]), n, (BasisKey(PHILOX, SEED, 3),), 99, TorchArrays())
        assert np.array_equal(through[0, 0].numpy(), sums[0].numpy())


def layer_row(book: Book, start: int, table: int, weight: int, steps: int) -> list[int]:
    """A layer as the fused kernel takes it."""
    if isinstance(book, Codebook):
        return [start, hadamard.CODEBOOK, table, weight, book.size, 0, 0, 0]
    if isinstance(book, Trellis):
        return [start, hadamard.TRELLIS, table, weight, book.stride, book.bits, steps, 0]
    return [start, hadamard.DEPENDENT, table, weight, book.size, book.mask, len(book.even) & 1, 0]


def check_hadamard() -> None:
    """Every quantizer, two weighted layers a vector, blocks of several sizes, columns and rows, saturation."""
    rng = np.random.default_rng(1)
    tables, starts = [], []
    for book in BOOKS:
        starts.append(sum(map(len, tables)))
        if isinstance(book, Codebook):
            tables.append(np.array(book.points))
        else:
            tables.append(window_table(book).reshape(-1) if isinstance(book, Trellis) else dependent_table(book))
    table = torch.from_numpy(np.concatenate(tables).astype(np.int32))
    for n, block in ((64, 64), (2, 2), (576, 64), (11 * 256, 256), (8192, 4096)):
        symbols: list[Any] = []
        layers, vectors, wanted = [], [], []
        blocks, count = n // block, 4 * -(-n // 128)
        sign_words = torch.zeros((1, count), dtype=torch.int32)
        philox.sign_words(sign_words, torch.tensor([6]), SIGNS, SEED)
        for number in range(len(BOOKS)):
            q = np.zeros(n, np.int64)
            first = len(layers)
            for index, weight in ((number, 1), ((number + 3) % len(BOOKS), 37)):
                book = BOOKS[index]
                drawn = rng.integers(0, book.size, (1, book.run(n))).astype(np.uint8)
                layers.append(layer_row(book, sum(map(len, symbols)), starts[index], weight, drawn.shape[1]))
                symbols.append(drawn[0])
                q += weight * book_points(book, drawn, n)[0].astype(np.int64)
            mantissa, shift = int(rng.integers(32768, 65536)), int(rng.integers(14, 20))
            vectors.append([first, len(layers), mantissa, shift, number, len(BOOKS), 0])
            y = BASES[1].synthesize(q[None, None], n, (BasisKey(PHILOX, SEED, 6),), int(np.abs(q).max()), NUMPY)
            y = y[0, 0].astype(np.int64)
            wanted.append(np.clip((y * mantissa + (1 << (shift - 1))) >> shift, -32768, 32767))
        out = torch.zeros((n, len(BOOKS)), dtype=torch.int16)  # the vectors are columns
        hadamard.synthesize(
            torch.from_numpy(np.concatenate(symbols)), torch.tensor(vectors), torch.tensor(layers), table,
            sign_words, out, block, blocks,
        )  # fmt: skip
        assert np.array_equal(out.numpy().T, np.stack(wanted)), (n, block)


def check_rans() -> None:
    """Sections of few and of many lanes, several models and fillers, and one that is damaged."""
    rng = np.random.default_rng(2)
    models = [SymbolModel(size, normalize(rng.integers(0, 50, size) ** 2)) for size in (3, 200, 256)]
    parts, streams, position = [], [], 0
    plan = SymbolPlan(models)
    for lengths in ((5, 0, 40), (100,), (300, 700, 211)):
        runs = Runs(rng.integers(0, 3, len(lengths)), np.array(lengths))
        symbols = np.concatenate([
            rng.choice(models[m].size, n, p=np.array(models[m].frequencies) / TOTAL).astype(np.uint8)
            for m, n in zip(runs.models.tolist(), lengths, strict=True)
        ])  # fmt: skip
        section, data = pack_section(2, CODECS[2].encode(symbols, runs, models), runs, models, position)
        plan.add_section(section, runs.models, runs.lengths)
        streams.append(symbols)
        parts.append(data)
        position += len(data)
    data = tensor_of(b"".join([*parts, bytes(PADDING)]), "cpu")
    lookup = torch.from_numpy(lookup_table(models).astype(np.int64))
    decoded, faults = decode_symbols(data, plan.finish(), lookup, wide=False)
    assert int(faults) == 0
    assert np.array_equal(decoded.numpy(), np.concatenate(streams))
    data[plan.finish().groups[0].states[0]] ^= 1
    assert int(decode_symbols(data, plan.finish(), lookup, wide=False)[1]) > 0


def check_merge() -> None:
    """All dtypes, ranks beyond a tile, extreme elements, transposed weights; overflow leaves the weight alone."""
    rng = np.random.default_rng(3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for (rows, columns, rank), exponents, scaling in (
            ((70, 65, 5), (-11, -10), 1.7), ((33, 100, 40), (-13, -10), -0.3333), ((64, 64, 1), (-14, -13), 2.0),
        ):  # fmt: skip
            sides = [rng.integers(-32768, 32768, shape).astype(np.int16) for shape in ((rows, rank), (rank, columns))]
            sides[0][:2], sides[1][:, :2] = [[32767], [-32768]], [32767, -32768]
            kind = CodedKind("w", "F32", 1, coded_sides([(rows, rank), (rank, columns)]), scaling=scaling)
            factors = DecodedRecord(tuple(map(torch.from_numpy, sides)), exponents)
            for transposed in (False, True):
                weight = torch.randn((columns, rows) if transposed else (rows, columns)).to(dtype)
                known = weight.clone()
                delta = torch.as_tensor(delta_weight(DecodedRecord(tuple(sides), exponents), kind, NUMPY))
                merge_tensor(known, delta.T if transposed else delta)
                merge_factors(weight, factors, kind, TorchArrays(), transposed=transposed)
                assert torch.equal(weight.view(torch.uint8), known.view(torch.uint8)), (dtype, rows, transposed)
    faults = torch.zeros(1, dtype=torch.int32)
    one = torch.ones(1, dtype=torch.float64)
    big = torch.full((1, 1), 32767, dtype=torch.int16)
    weight = torch.zeros((1, 1), dtype=torch.float16)
    merge.merge(weight, weight.clone(), big, big, faults, one, one, merge.FLOAT16)
    assert int(faults) == 1


FILES = ("codec-raw", "paper-rademacher", "vectors-paper")


def check_files() -> None:
    """Files through the device path, which takes the kernels here; the decoded SHA-256 is compared."""
    rng = np.random.default_rng(4)
    lora = {}
    for name, out, columns in (("a", 64, 128), ("b", 60, 32)):
        for part, shape in (("lora_A", (2, columns)), ("lora_B", (out, 2))):
            values = rng.standard_normal(shape).astype(np.float32) * np.float32(2.0 ** -rng.integers(0, 5))
            lora[f"base_model.model.{name}_proj.{part}.weight"] = values
    made, _ = encode_bytes(lora, config={"peft_type": "LORA", "r": 2, "lora_alpha": 4}, nmse=0.1)
    fused = []
    chosen = decoding.can_fuse

    def note(*arguments: Any) -> bool:
        fused.append(chosen(*arguments))
        return fused[-1]

    with patch.object(decoding, "can_fuse", note):
        verify(made, xp=TorchArrays())
        assert fused == [True, False]  # 60 elements take two passes
        for name in FILES:
            verify(golden(name), xp=TorchArrays())
    try:
        verify(golden("nmse"), Limits(lane_steps=1), TorchArrays())
    except FormatError as error:
        assert error.code == "limit"  # noqa: PT017
    else:
        raise AssertionError("the limit of the steps of lanes does not hold")


CHECKS = {
    "philox": check_philox, "rademacher": check_rademacher, "hadamard": check_hadamard, "rans": check_rans,
    "merge": check_merge, "files": check_files,
}  # fmt: skip

if __name__ == "__main__":
    assert is_interpreted()
    assert uses_triton("cpu")
    # Where Triton casts a number that is too large, NumPy warns.
    warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
    for each in sys.argv[1:]:
        CHECKS[each]()
        print(each, flush=True)
