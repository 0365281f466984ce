"""Random legal files decode to the same bits on every path, with any number of threads, and in the reference."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from damage import compare_readers, damage
from file_features import features, wanted_features
from kernel_paths import PATHS
from nola_forge import verify
from random_files import RandomFile, random_file

from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.container.reader import open_container
from nola_codec.decoder import decoder as decoder_module
from nola_codec.references.finding import open_decoder

FILES = 48
"""Files that every run of the tests makes; those after them are made with --slow."""


@cache
def made(number: int) -> RandomFile:
    return random_file(number)


@pytest.mark.parametrize(
    "numbers",
    [
        *(pytest.param(range(n, n + 6), id=f"from {n}") for n in range(0, FILES, 6)),
        *(
            pytest.param(range(max(n, FILES), n + 100), id=f"from {max(n, FILES)}", marks=pytest.mark.slow)
            for n in range(0, 1000, 100)
        ),
    ],
)
def test_every_path_gives_the_same_bits(numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file holds the SHA-256 of what the reference decoder decodes at each rung."""
    for number in numbers:
        file = made(number)
        for threads, path in enumerate(PATHS, start=1):
            monkeypatch.setenv("NOLA_KERNELS", path)
            monkeypatch.setenv("NOLA_THREADS", str(threads))
            verify(file.data, references=list(file.references))
        verify(file.data, xp=TorchArrays(), references=list(file.references))


@pytest.mark.parametrize("number", range(0, FILES, 3))
def test_each_tensor_is_that_of_the_reference_decoder(number: int) -> None:
    file = made(number)
    with open_container(file.data) as container:
        for rung in range(container.rungs):
            container.select(rung)
            decoder = open_decoder(container, NUMPY, list(file.references))
            _, tensors = file.known[decoder.header.decoded_sha256]
            for record, decoded in zip(decoder.header.coded, decoder.decode_all(), strict=True):
                assert tensors[f"{record.name}.exponents"].tolist() == list(decoded.exponents)
                parts = ("lora_B", "lora_A") if len(decoded.sides) == 2 else ("vector",)
                for part, side in zip(parts, decoded.sides, strict=True):
                    assert np.array_equal(tensors[f"{record.name}.{part}"], side)
            for key, tensor in decoder.carried_tensors():
                assert tensors[key].tobytes() == tensor.data


@pytest.mark.parametrize("number", range(FILES))
def test_units_are_read_as_they_were_meant(number: int) -> None:
    """The predictions are computed when the file is made, by other code than the readers'."""
    file = made(number)
    with open_container(file.data) as container:
        for read, meant in zip(container.read_units().coded, file.records, strict=True):
            assert read.precision.tolist() == meant.precisions
            assert read.amplitude.tolist() == meant.amplitudes
            assert read.entry.tolist() == meant.starts
            assert list(read.exponents) == meant.exponents


@pytest.mark.parametrize("number", range(FILES))
def test_readers_agree_on_damaged_files(number: int) -> None:
    """They refuse the same files, and decode the same bits of the others."""
    file, rng = made(number), random.Random(number)
    for _ in range(3):
        compare_readers(damage(file.data, file.known, rng), list(file.references), file.known)


def test_damage_reaches_the_decoder() -> None:
    """The damaged files above are not all stopped at the door: some decode, and some are refused deep inside."""
    outcomes = set()
    for number in range(24):
        file, rng = made(number), random.Random(number)
        for _ in range(14):
            data = damage(file.data, file.known, rng)
            outcomes.add(compare_readers(data, list(file.references), file.known, again=False))
    assert outcomes >= {"decoded", "factors-checksum", "header", "symbols", "units", "zstd", "codec"}, outcomes


def test_the_files_hold_what_decoders_must_know() -> None:
    seen = set().union(*(features(made(number)) for number in range(FILES)))
    assert wanted_features() <= seen, wanted_features() - seen


@pytest.mark.parametrize("path", PATHS)
def test_single_records_are_those_of_the_whole_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where NumPy decodes a block or a record at a time."""
    monkeypatch.setenv("NOLA_KERNELS", path)
    monkeypatch.setattr(decoder_module, "_BATCH_SYMBOLS", 1)
    monkeypatch.setattr(decoder_module, "_PORTION_SYMBOLS", 1)
    for number in range(20):
        file = made(number)
        with open_container(file.data) as container:
            together = open_decoder(container, NUMPY, list(file.references)).decode_all()
            alone = open_decoder(container, NUMPY, list(file.references))
            for index, wanted in enumerate(together):
                ((found, record),) = alone.decode([index], floats=True)
                assert (found, record.exponents) == (index, wanted.exponents)
                assert record.floats is not None
                for side, other, made_floats, exponent in zip(
                    record.sides, wanted.sides, record.floats, record.exponents, strict=True
                ):
                    assert np.array_equal(side, other)
                    assert made_floats.dtype == np.float32
                    assert np.array_equal(made_floats, side.astype(np.float64) * 2.0**exponent)
