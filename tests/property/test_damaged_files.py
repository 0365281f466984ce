"""Whatever happens to a file, reading it ends in an error of the package or in the encoder's own tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nola_forge import canonical, golden, join, manifest, reference, reference_answers, split, verify

from nola_codec.container.limits import Limits
from nola_codec.container.prelude import SIZE as PRELUDE_SIZE
from nola_codec.errors import ChecksumMismatch, FormatError

NAMES = sorted(name.removesuffix(".nola") for name in manifest())
HEADER_AT = 18
"""Where the prelude says nothing any more of what a reader must know, or how much it must read, before the checksum."""
SMALL = ["codec-zstd", "drawn", "nmse", "paper-uniform-philox", "raw-tensors", "vectors-paper"]
# What a test may take: a header that declares more is refused, as any reader with little memory would.
TIGHT = Limits(total_elements=1 << 18, coefficients=1 << 16, units=1 << 12, words=1 << 16)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_refused(name: str) -> None:
    data = golden(name)
    for length in range(len(data)):
        with pytest.raises(FormatError) as caught:
            verify(data[:length])
        assert caught.value.code == "truncated", length


@pytest.mark.parametrize("name", SMALL)
def test_every_flipped_bit_is_refused(name: str) -> None:
    """One bit of each byte, another one in each, and every bit of the prelude."""
    data = bytearray(golden(name))
    for offset in range(len(data)):
        for bit in range(8) if offset < PRELUDE_SIZE else (offset % 8,):
            data[offset] ^= 1 << bit
            with pytest.raises(FormatError) as caught:
                verify(bytes(data))
            data[offset] ^= 1 << bit
            if offset >= HEADER_AT:
                assert isinstance(caught.value, ChecksumMismatch), (offset, bit)


def test_the_reference_decoder_refuses_flips_and_truncations() -> None:
    data = golden("codec-zstd")
    for offset in range(0, len(data), 3):
        with pytest.raises(reference().Refused):
            reference().decode(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        with pytest.raises(reference().Refused):
            reference().decode(data[:offset])


def scramble(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, dropped, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0 if at < len(out):
                out[at] = rng.randrange(256)
            case 1:
                del out[at : at + rng.choice((1, 1, 2, 9))]
            case 2:
                out[at:at] = out[at : at + rng.choice((1, 4))]
            case _:
                out[at:at] = rng.randbytes(1)
    return bytes(out)


def alter(value: Any, rng: random.Random) -> Any:
    """One value somewhere in a tree replaced by another that is likely to be a boundary of something."""
    if isinstance(value, dict) and value and rng.random() < 0.97:
        key = rng.choice(sorted(value))
        return {**value, key: alter(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.93:
        at = rng.randrange(len(value))
        return [*value[:at], alter(value[at], rng), *value[at + 1 :]]
    if isinstance(value, bytes) and rng.random() < 0.9:
        return scramble(value, rng)
    if type(value) is int and rng.random() < 0.7:
        return min(value + rng.choice((-1, 1, 2, -8, 64, 255)), (1 << 64) - 1)
    edges = [0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]
    others = [None, True, 0.0, -0.0, 1e308, float("nan"), "", "a#b", b"", b"\x80", [], [0], [1, 2], {}]
    return rng.choice([*edges, *others])


def header_bytes(name: str, rng: random.Random) -> bytes:
    """The header's bytes scrambled, checksums made to fit."""
    return join(split(golden(name)), plain=lambda top: scramble(canonical(top), rng))


def header_values(name: str, rng: random.Random) -> bytes:
    """A value of the header altered, the section table mostly right."""
    parts = split(golden(name))
    for _ in range(rng.choice((1, 1, 2))):
        parts.top = alter({k: v for k, v in parts.top.items() if k != "sections"}, rng)
        if not isinstance(parts.top, dict):
            parts.top = {}
    return join(parts, sections=lambda rows: alter(rows, rng) if rng.random() < 0.1 else rows)


def section_bytes(name: str, rng: random.Random) -> bytes:
    """A section's stored bytes scrambled or its codec changed."""
    parts = split(golden(name))
    at = rng.randrange(len(parts.sections))
    codec, data = parts.sections[at]
    parts.sections[at] = (rng.choice((codec, codec, 0, 1, 2, 3)), scramble(data, rng) if rng.random() < 0.8 else data)
    return join(parts)


@pytest.mark.parametrize("mutate", [header_bytes, header_values, section_bytes])
@settings(max_examples=150)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1 << 32))
def test_altered_files_with_right_checksums(
    mutate: Callable[[str, random.Random], bytes], name: str, seed: int
) -> None:
    """The reference decoder agrees on whether a file is refused, limits apart."""
    data = mutate(name, random.Random(seed))
    try:
        verify(data, TIGHT)
    except FormatError as error:
        if error.code != "limit":
            with pytest.raises(reference().Refused):
                reference().decode(data, dict(reference_answers()))
    else:
        reference().decode(data, dict(reference_answers()))


def test_mutations_reach_the_decoder() -> None:
    """The altered files above are not all stopped at the door: some decode, and some are refused deep inside."""
    outcomes: set[str] = set()
    for seed in range(360):
        rng = random.Random(seed)
        for mutate in (header_bytes, header_values, section_bytes):
            try:
                verify(mutate(rng.choice(NAMES), rng), TIGHT)
            except FormatError as error:
                outcomes.add(error.code)
            else:
                outcomes.add("decoded")
    assert outcomes >= {"decoded", "factors-checksum", "header", "symbols", "units", "zstd", "codec"}, outcomes
