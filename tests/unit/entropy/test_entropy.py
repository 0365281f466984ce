"""Entropy codecs: round trips of anything, and rANS close to the ideal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from nola_forge import frame, reference

from nola_codec.entropy import CODECS, decode_many, mixed, rans, raw, smallest
from nola_codec.entropy.frames import compress, decompress
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Runs, SymbolModel


@st.composite
def streams(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint16], Runs, list[SymbolModel]]:
    """Draw symbols of a few runs with a few models."""
    sizes = draw(st.lists(st.integers(1, 256), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    plain = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    tables = [rans.normalize(rng.exponential(1.0, n) ** 3) for n in sizes]
    models = [SymbolModel(n, None if p else t) for n, t, p in zip(sizes, tables, plain, strict=True)]
    picks = draw(st.lists(st.tuples(st.integers(0, len(sizes) - 1), st.integers(0, 60)), max_size=6))
    runs = Runs(np.array([m for m, _ in picks], np.int64), np.array([n for _, n in picks], np.int64))
    parts = [rng.integers(0, sizes[m], n) for m, n in picks]
    return np.concatenate([np.zeros(0), *parts]).astype(np.uint16), runs, models


def one_run(symbols: npt.NDArray[np.uint16]) -> Runs:
    """Return the run of all symbols with model 0."""
    return Runs(np.array([0]), np.array([len(symbols)]))


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda c: c.name)
@given(stream=streams())
def test_round_trip(codec: object, stream: tuple[npt.NDArray[np.uint16], Runs, list[SymbolModel]]) -> None:
    symbols, runs, models = stream
    stored = codec.encode(symbols, runs, models)  # type: ignore[attr-defined]
    assert codec.decode(stored, runs, models).tolist() == symbols.tolist()  # type: ignore[attr-defined]
    pairs = list(zip(runs.models.tolist(), runs.lengths.tolist(), strict=True))
    tables = [(m.size, None if m.frequencies is None else list(m.frequencies)) for m in models]
    number = codec.id  # type: ignore[attr-defined]
    assert reference().decode_symbols(number, stored, pairs, tables).tolist() == symbols.tolist()


@given(many=st.lists(streams(), min_size=1, max_size=5), data=st.data())
def test_sections_side_by_side_are_as_alone(
    many: Sequence[tuple[npt.NDArray[np.uint16], Runs, list[SymbolModel]]], data: st.DataObject
) -> None:
    models = [model for _, _, own in many for model in own]
    shifts = np.cumsum([0, *(len(own) for _, _, own in many)])
    all_runs = [Runs(runs.models + int(s), runs.lengths) for (_, runs, _), s in zip(many, shifts, strict=False)]
    coded = []
    for (symbols, _, _), runs in zip(many, all_runs, strict=True):
        number = data.draw(st.sampled_from(sorted(CODECS)))
        coded.append((number, CODECS[number].encode(symbols, runs, models)))
    decoded = decode_many(coded, all_runs, models)
    assert [d.tolist() for d in decoded] == [symbols.tolist() for symbols, _, _ in many]
    together = mixed.encode_many([s for s, _, _ in many], all_runs, models)
    decoded = mixed.decode_many(together, all_runs, models)
    assert [d.tolist() for d in decoded] == [symbols.tolist() for symbols, _, _ in many]


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda c: c.name)
@pytest.mark.parametrize("symbols", [[], [0], [0] * 1000, [4095 % 256]])
def test_edges(codec: object, symbols: list[int]) -> None:
    array = np.array(symbols, np.uint16)
    size = max(symbols, default=0) + 1
    models = [SymbolModel(size, rans.normalize(np.ones(size)))]
    stored = codec.encode(array, one_run(array), models)  # type: ignore[attr-defined]
    assert codec.decode(stored, one_run(array), models).tolist() == symbols  # type: ignore[attr-defined]


def test_a_certain_symbol_costs_nothing() -> None:
    symbols = np.zeros(100_000, np.uint16)
    assert len(rans.encode(symbols, one_run(symbols), [SymbolModel(1, (4096,))])) <= 1 + 4 * 16


@pytest.mark.parametrize("spread", [0.35, 0.8, 2.0, 9.0])
def test_rans_is_close_to_ideal(spread: float) -> None:
    """In sections of 20 KB or more, rANS is near the ideal: each lane costs three bytes."""
    rng = np.random.default_rng(1)
    per_symbol = max(0.15, np.log2(spread * 4.13))
    count = int(8 * 30_000 / per_symbol)
    top = int(np.ceil(3 * spread))
    symbols = (np.clip(np.rint(rng.standard_normal(count) * spread), -top, top) + top).astype(np.uint16)
    counts = np.bincount(symbols, minlength=2 * top + 1)
    model = SymbolModel(2 * top + 1, rans.normalize(counts))
    stored = rans.encode(symbols, one_run(symbols), [model])
    ideal = rans.coded_bits(counts, model.frequencies or ()) / 8
    assert ideal > 20_000
    assert len(stored) <= ideal + 3.6 * (1 << stored[0]) + 8
    assert len(stored) <= 1.006 * ideal + 8
    shares = counts[counts > 0] / count
    entropy = -(counts[counts > 0] * np.log2(shares)).sum() / 8
    assert len(stored) <= 1.01 * entropy + 8


@given(counts=st.lists(st.floats(0, 1e9), min_size=1, max_size=256))
def test_normalized_frequencies_are_positive_and_add_up(counts: list[float]) -> None:
    made = rans.normalize(np.array(counts))
    assert sum(made) == 4096
    assert min(made) >= 1


def test_smallest_takes_the_shortest_and_breaks_ties_by_id() -> None:
    rng = np.random.default_rng(0)
    skewed = (rng.random(20_000) < 0.02).astype(np.uint16)
    even = rng.integers(0, 2, 20_000).astype(np.uint16)
    models = [SymbolModel(2, rans.normalize(np.array([98, 2]))), SymbolModel(2, None)]
    runs = [Runs(np.array([0]), np.array([20_000])), Runs(np.array([1]), np.array([20_000]))]
    (first, stored), (second, plain) = smallest([skewed, even], runs, models)
    assert (first, second) == (mixed.id, raw.id)
    assert len(stored) < 400
    assert len(plain) == 2500
    assert smallest([skewed], runs[:1], models, allowed=(raw.id,))[0][0] == raw.id


def test_what_has_no_frequencies_is_packed_in_front_of_rans() -> None:
    runs = Runs(np.array([1, 0, 1]), np.array([5, 3, 4]))
    models = [SymbolModel(2, None), SymbolModel(3, (2000, 96, 2000))]
    symbols = np.array([0, 2, 2, 0, 1, 1, 0, 1, 2, 2, 0, 0], np.uint16)
    stored = mixed.encode(symbols, runs, models)
    assert stored[:1] == b"\x05"
    assert stored[1:] == rans.encode(np.delete(symbols, [5, 6, 7]), Runs(np.array([1]), np.array([9])), models)
    assert decode_many([(2, stored)], [runs], models)[0].tolist() == symbols.tolist()
    with pytest.raises(FormatError) as caught:
        decode_many([(2, b"")], [runs], models)
    assert caught.value.code == "symbols"


@given(data=st.binary(max_size=300), dictionary=st.one_of(st.none(), st.binary(min_size=8, max_size=64)))
def test_frames_round_trip(data: bytes, dictionary: bytes | None) -> None:
    stored = compress(data, dictionary)
    assert decompress(stored, len(data), "x", dictionary) == data
    with pytest.raises(FormatError):
        decompress(stored, len(data) + 1, "x", dictionary)
    with pytest.raises(FormatError):
        decompress(stored + b"\0", len(data), "x", dictionary)
    with pytest.raises(FormatError):
        decompress(stored[:-1], len(data), "x", dictionary)


def test_frames_carry_no_magic_number_and_no_checksum() -> None:
    stored = compress(b"abc" * 50)
    parameters = zstandard.get_frame_parameters(b"\x28\xb5\x2f\xfd" + stored)
    assert (parameters.content_size, parameters.has_checksum, parameters.dict_id) == (150, False, 0)
    checked = frame(b"abc" * 50, write_checksum=True)
    assert decompress(checked, 150, "x") == b"abc" * 50
    with pytest.raises(FormatError):
        decompress(checked[:-1] + bytes([checked[-1] ^ 1]), 150, "x")


@pytest.mark.parametrize("declared", [1 << 20, 20 << 20])
def test_a_frame_cannot_make_more_than_it_declares(declared: int) -> None:
    """A frame with more blocks than it declares, of 128 KiB in four bytes each, takes no memory for them."""
    blocks = 4096
    rle = b"".join((131072 << 3 | 2 | (i == blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(blocks))
    stored = bytes([0b10000000, 0x38]) + declared.to_bytes(4, "little") + rle
    with pytest.raises(FormatError) as caught:
        decompress(stored, declared, "x")
    assert caught.value.code == "zstd"


def test_a_frame_cannot_declare_more_than_its_length_allows() -> None:
    stored = compress(bytes(100))
    parameters = bytes([0b11100000]) + (1 << 40).to_bytes(8, "little")
    with pytest.raises(FormatError) as caught:
        decompress(parameters + stored[-4:], 1 << 40, "x")
    assert caught.value.code == "zstd"
