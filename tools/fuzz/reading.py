"""The ways in which a `.nola` file is read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from damage import TIGHT, compare_readers
from kernel_paths import COMPILED
from nola_forge import GOLDEN, reference_answers

import nola_codec
from nola_codec.adapters import DIALECTS
from nola_codec.api.decoding import decode_contents
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import open_container
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import FormatError
from nola_codec.references.finding import open_decoder

PATHS: tuple[str, ...] = ("off", COMPILED[-1]) if COMPILED else ("off",)
"""Settings of NOLA_KERNELS: NumPy, and the best kernels that run here."""


def verify(data: bytes) -> None:
    """Check all of a file."""
    nola_codec.verify(data, limits=TIGHT, references=GOLDEN)


def read_decoded(data: bytes) -> None:
    """Decode a file to its dialect and to another one, and open it as `load` does."""
    facts = nola_codec.inspect(data)
    str(facts)
    with _without_hash():
        names = [facts.dialect, list(DIALECTS)[zlib.crc32(data) % len(DIALECTS)]]
        for name in names:
            try:
                decode_contents(data, name, limits=TIGHT, references=GOLDEN)
            except nola_codec.NolaError:
                continue
        with nola_codec.load(data, "numpy", limits=TIGHT, references=GOLDEN) as file:
            file.state_dict()
            for module in file.names()[:2]:
                file.delta_weight(module)


def read_by_both_readers(data: bytes) -> None:
    """Let the package and the reference decoder read a file: both must refuse it, or decode the same bits."""
    code = compare_readers(data, GOLDEN, reference_answers())
    if code != "decoded":
        raise FormatError("both readers refuse it", code=code)


def read_by_both_paths(data: bytes) -> None:
    """Decode a file with NumPy and with the kernels: both must refuse it, or decode the same bits.

    Raises:
        AssertionError: They do not.
        FormatError: Both refuse it.
    """
    found = [_decode(data, path) for path in PATHS]
    for other in found[1:]:
        if isinstance(found[0], FormatError) or isinstance(other, FormatError):
            codes = [each.code if isinstance(each, FormatError) else "decoded" for each in (found[0], other)]
            if "decoded" in codes and codes[0] != codes[1]:  # of two faults, either may be found first
                raise AssertionError(f"{PATHS[0]}: {codes[0]}; {PATHS[1]}: {codes[1]}")
        elif not all(_are_equal(*pair) for pair in zip(found[0], other, strict=True)):
            raise AssertionError(f"{PATHS[0]} and {PATHS[1]} decode other bits")
    if isinstance(found[0], FormatError):
        raise found[0]


def encode_by_both_paths(data: bytes, config: Any) -> None:
    """Encode an adapter with NumPy and with the kernels. Raises AssertionError for files that differ."""
    files = []
    for path in PATHS:
        with _kernels(path):
            files.append(nola_codec.encode_bytes(data, config=config, nmse=0.4)[0])
    if files[0] != files[-1]:
        raise AssertionError("NumPy and the kernels encode other bytes")


def _decode(data: bytes, path: str) -> list[DecodedRecord] | FormatError:
    try:
        with _kernels(path), _without_hash(), open_container(data, TIGHT) as container:
            records = []
            for rung in range(container.rungs):
                container.select(rung)
                records += open_decoder(container, NUMPY, GOLDEN).decode_all()
            return records
    except FormatError as error:
        return error


def _are_equal(one: DecodedRecord, other: DecodedRecord) -> bool:
    return one.exponents == other.exponents and all(map(np.array_equal, one.sides, other.sides))


@contextmanager
def _kernels(path: str) -> Iterator[None]:
    before = os.environ.get("NOLA_KERNELS")
    os.environ["NOLA_KERNELS"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["NOLA_KERNELS"]
        else:
            os.environ["NOLA_KERNELS"] = before


@contextmanager
def _without_hash() -> Iterator[None]:
    """Let the decoded SHA-256 be wrong, so that what a header says is looked at, whatever it decodes to."""
    with (
        mock.patch("nola_codec.decoder.decoder.compare_digests", _accept),
        mock.patch("nola_codec.decoder.rungs.compare_digests", _accept),
    ):
        yield


def _accept(*_: object, **__: object) -> None:
    """Stand for `compare_digests`."""
