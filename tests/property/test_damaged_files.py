"""Whatever happens to a file, reading it ends in an error of the package or in the encoder's own tensors."""

from __future__ import annotations

import random

import pytest
from damage import compare_readers, damage, package_code
from hypothesis import given, settings
from hypothesis import strategies as st
from nola_forge import GOLDEN, golden, manifest, reference, reference_answers, verify

from nola_codec.container.prelude import SIZE as PRELUDE_SIZE
from nola_codec.errors import ChecksumMismatch, FormatError

NAMES = sorted(name.removesuffix(".nola") for name in manifest())
HEADER_AT = 18
"""Where the prelude says nothing any more of what a reader must know, or how much it must read, before the checksum."""
SMALL = ["codec-rans", "drawn", "nmse", "paper-uniform", "raw-tensors", "vectors-paper"]


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
    data = golden("codec-rans")
    for offset in range(0, len(data), 3):
        with pytest.raises(reference().Refused):
            reference().decode(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        with pytest.raises(reference().Refused):
            reference().decode(data[:offset])


@settings(max_examples=250)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1 << 32))
def test_altered_files_with_right_checksums(name: str, seed: int) -> None:
    """The reference decoder agrees on whether a file is refused and on what is decoded, limits apart."""
    known = reference_answers()
    data = damage(golden(name), known, random.Random(seed))
    compare_readers(data, GOLDEN, known)


def test_altered_files_reach_the_decoder() -> None:
    """The altered files above are not all stopped at the door: some decode, and some are refused deep inside."""
    outcomes: set[str] = set()
    for seed in range(400):
        rng = random.Random(seed)
        outcomes.add(package_code(damage(golden(rng.choice(NAMES)), reference_answers(), rng), GOLDEN))
    assert outcomes >= {"decoded", "factors-checksum", "header", "symbols", "units", "zstd", "codec"}, outcomes
