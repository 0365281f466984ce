"""The compiled coders make the bytes and symbols of NumPy, and refuse damaged data with the same words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_paths import COMPILED, PATHS

from nola_codec.entropy import mixed, rans, raw
from nola_codec.errors import FormatError
from nola_codec.kernels.entropy import count_symbols, decode_rans, encode_rans, unpack_runs
from nola_codec.kernels.loading import load
from nola_codec.model.quantizers import Runs, SymbolModel
from nola_codec.quant.packing import pack, packed_size, unpack

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")

Section = tuple[npt.NDArray[Any], Runs, list[SymbolModel]]


def random_section(number: int) -> Section:
    """Return symbols, their runs and models; from no symbols to enough for hundreds of lanes."""
    rng = np.random.default_rng(number)
    sizes = rng.choice([1, 2, 3, 16, 17, 255, 256], int(rng.integers(1, 4)))
    models = [SymbolModel(int(n), rans.normalize(rng.random(n) ** 6)) for n in sizes]
    longest = int(rng.choice([3, 40, 1000, 60_000]))
    chosen = rng.integers(0, len(models), int(rng.integers(0, 12)))
    lengths = rng.integers(0, longest, len(chosen)) // rng.choice([1, 8, 64], len(chosen))
    parts = []
    for model, length in zip(chosen.tolist(), lengths.tolist(), strict=True):
        share = np.array(models[model].frequencies) / rans.TOTAL
        parts.append(rng.choice(len(share), length, p=share))
    symbols = np.concatenate([np.empty(0, np.int64), *parts])
    return symbols.astype([np.uint8, np.uint16][number % 2]), Runs(chosen, lengths), models


def on_each_path(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], Any]) -> dict[str, Any]:
    """Return what a function computes on each path."""
    made = {}
    for path in PATHS:
        monkeypatch.setenv("NOLA_KERNELS", path)
        made[path] = compute()
    return made


def outcome(data: bytes, runs: Runs, models: list[SymbolModel]) -> object:
    """Return the symbols of a section, or its error."""
    try:
        return rans.decode(data, runs, models).tolist()
    except FormatError as error:
        return error.code, str(error)


@pytest.mark.parametrize("number", range(60))
def test_rans(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols, runs, models = random_section(number)
    coded = on_each_path(monkeypatch, lambda: rans.encode(symbols, runs, models))
    assert len(set(coded.values())) == 1
    for found in on_each_path(monkeypatch, lambda: outcome(coded["off"], runs, models)).values():
        assert found == symbols.tolist()


@pytest.mark.parametrize("number", range(60))
def test_damaged_sections_of_rans(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols, runs, models = random_section(number)
    coded, rng = rans.encode(symbols, runs, models), random.Random(number)
    for _ in range(8):
        data = bytearray(coded)
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[-2 * rng.randrange(1, 20) :]
            case _:
                data += rng.randbytes(rng.choice((1, 2, 8)))
        found = list(on_each_path(monkeypatch, lambda data=bytes(data): outcome(data, runs, models)).values())
        assert all(each == found[0] for each in found), found


def test_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    models = [SymbolModel(3, (1000, 96, 3000)), SymbolModel(2, (1, 4095))]
    for bits in range(rans.MAX_LANE_BITS + 1):
        monkeypatch.setattr(rans, "lane_bits", lambda size, symbols, bits=bits: bits)
        count = 3 * (1 << bits) + 5
        symbols = np.concatenate([rng.choice(3, count), np.zeros(7, np.int64)]).astype(np.uint8)
        runs = Runs(np.array([0, 1, 0]), np.array([count, 7, 0]))
        coded = on_each_path(monkeypatch, lambda symbols=symbols, runs=runs: rans.encode(symbols, runs, models))
        assert len(set(coded.values())) == 1
        assert coded["off"][0] == bits
        data = coded["off"]
        for found in on_each_path(monkeypatch, lambda data=data, runs=runs: outcome(data, runs, models)).values():
            assert found == symbols.tolist()


@pytest.mark.parametrize("width", range(1, 17))
def test_packing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(width)
    for count in (0, 1, 2, 3, 7, 8, 9, 31, 100, 1001):
        symbols = rng.integers(0, 1 << width, count).astype(np.uint16)
        packed = on_each_path(monkeypatch, lambda symbols=symbols: pack(symbols, width))
        assert len(set(packed.values())) == 1
        assert len(packed["off"]) == packed_size(count, width)
        data = packed["off"]
        for found in on_each_path(monkeypatch, lambda data=data, count=count: unpack(data, width, count)).values():
            assert found.tolist() == symbols.tolist()


@pytest.mark.parametrize("number", range(40))
def test_sections_of_packed_and_coded_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with and without frequencies in any order; damage is found with the same words on each path."""
    rng = np.random.default_rng(number)
    sizes = rng.choice([1, 2, 3, 4, 16, 255, 256] if number % 3 else [2, 300, 65536], int(rng.integers(1, 6)))
    models = [
        SymbolModel(int(n), rans.normalize(rng.random(n)) if n <= 256 and rng.random() < 0.5 else None) for n in sizes
    ]
    chosen = rng.integers(0, len(models), int(rng.integers(0, 9)))
    lengths = rng.integers(0, 200, len(chosen)) // rng.choice([1, 16], len(chosen))
    parts = [rng.integers(0, models[m].size, n) for m, n in zip(chosen.tolist(), lengths.tolist(), strict=True)]
    symbols = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.uint16)
    runs = Runs(chosen, lengths)

    def decode(codec: Any, data: bytes) -> object:
        try:
            return codec.decode(data, runs, models).tolist()
        except FormatError as error:
            return error.code, str(error)

    for codec in (raw, mixed):
        data = codec.encode(symbols, runs, models)
        found = on_each_path(monkeypatch, lambda codec=codec, data=data: decode(codec, data))
        assert all(each == symbols.tolist() for each in found.values())
        for _ in range(8 if data else 0):
            place = int(rng.integers(len(data)))
            bad = data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]
            bad = bad if rng.random() < 0.7 else bad[: int(rng.integers(len(bad)))]
            found = on_each_path(monkeypatch, lambda codec=codec, bad=bad: decode(codec, bad))
            assert all(each == found["off"] for each in found.values())


@pytest.mark.parametrize("variant", COMPILED)
def test_counts_of_runs(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(5)
    lengths = np.array([0, 1, 3, 4, 1000, 0, 77], np.int64)
    symbols = rng.integers(0, 256, int(lengths.sum()))
    expected = [np.bincount(run, minlength=256).tolist() for run in np.split(symbols, np.cumsum(lengths)[:-1])]
    for dtype in (np.uint8, np.uint16):
        counts = count_symbols(lib, symbols.astype(dtype), np.arange(len(lengths)), lengths, len(lengths))
        assert counts.tolist() == expected


@pytest.mark.parametrize("variant", COMPILED)
def test_wrong_arguments_are_refused(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    table = np.ones(4096, np.uint32)
    good = rans.encode(np.zeros(5, np.uint8), Runs(np.array([0]), np.array([5])), [SymbolModel(1, (4096,))])
    for models, lengths in (([1], [5]), ([-1], [5]), ([0, 0], [9, -4])):
        with pytest.raises(ValueError, match="run"):
            decode_rans(lib, good, np.array(models), np.array(lengths), table)
    for data in (b"", good[:2], good[:-1], bytes([13]) + good[1:]):
        with pytest.raises(ValueError, match="section"):
            decode_rans(lib, data, np.array([0]), np.array([5]), table)
    frequencies = np.array([4096 << 16, *[0] * 255], np.uint32)
    one = np.array([0], np.uint8)
    for symbols, models, lengths in (([0], [1], [1]), ([0], [0], [2]), ([1], [0], [1])):
        with pytest.raises(ValueError, match="run"):
            encode_rans(lib, np.array(symbols, np.uint8), np.array(models), np.array(lengths), frequencies, 0)
    with pytest.raises(ValueError, match="lanes"):
        encode_rans(lib, one, np.array([0]), np.array([1]), frequencies, 13)
    with pytest.raises(ValueError, match="255"):
        count_symbols(lib, np.array([256], np.uint16), np.array([0]), np.array([1]), 1)
    for size, lengths in ((5, [4]), (3, [4, -1])):
        with pytest.raises(ValueError, match="the runs do not fit the symbols"):
            count_symbols(lib, np.zeros(size, np.uint8), np.arange(len(lengths)), np.array(lengths), len(lengths))
    with pytest.raises(ValueError, match="expected uint32"):
        encode_rans(lib, one, np.array([0]), np.array([1]), frequencies.astype(np.int64), 0)
    none = np.empty(0, np.uint8)
    for models, lengths, others in (([1], [5], none), ([0], [-1], none), ([0], [3], one), ([0, 0], [1, 1], one)):
        widths, sizes = np.array([0]), np.array([2])
        with pytest.raises(ValueError, match=r"runs of|other symbols"):
            unpack_runs(lib, b"", np.array(models), np.array(lengths), widths, sizes, others)
