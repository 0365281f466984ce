"""The compiled reader and writer of adaptive integers do what Python's do, and the reader refuses what it refuses."""

from __future__ import annotations

import random

import pytest
from kernel_paths import COMPILED, PATHS

from nola_codec.entropy.adaptive import MAX_BITS, IntegerReader, IntegerWriter
from nola_codec.errors import FormatError
from nola_codec.kernels.integers import write_integers
from nola_codec.kernels.loading import load

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")


def outcome(data: bytes, roles: list[int], pieces: list[int]) -> object:
    """Return the integers that a section holds, read in pieces of these lengths, or the error."""
    found: list[int] = []
    try:
        reader = IntegerReader(data, "section 1")
        start = 0
        for length in pieces:
            found += reader.read_many(roles[start : start + length]).tolist()
            start += length
        reader.finish()
    except FormatError as error:
        return error.code, str(error)
    return found


@pytest.mark.parametrize("number", range(40))
def test_integers(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(number)
    roles, values = [], []
    for _ in range(rng.choice((0, 1, 30, 700, 1500))):
        bits = rng.choice((0, 1, 2, 5, MAX_BITS))
        roles.append(rng.randrange(17))
        values.append(rng.choice((-1, 1)) * rng.randrange(1 << bits))
    written = set()
    for path in PATHS:
        monkeypatch.setenv("NOLA_KERNELS", path)
        writer = IntegerWriter()
        for role, value in zip(roles, values, strict=True):
            writer.write(role, value)
        written.add(writer.finish())
    (data,) = written
    first = rng.randrange(len(roles) + 1)
    cuts = [(data, values)]
    for _ in range(6):
        damaged = bytearray(data)
        if damaged and rng.random() < 0.7:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            damaged += rng.randbytes(rng.choice((1, 3)))
        cuts.append((bytes(damaged), None))
    for stored, wanted in cuts:
        found = []
        for path in PATHS:
            monkeypatch.setenv("NOLA_KERNELS", path)
            found.append(outcome(stored, roles, [first, len(roles) - first]))
        assert all(each == found[0] for each in found), found
        if wanted is not None:
            assert found[0] == wanted


def test_a_section_that_never_ends_an_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in PATHS:
        monkeypatch.setenv("NOLA_KERNELS", path)
        found = outcome(b"\xff\xff\xff\xfe" + b"\xff" * 40, [0, 1, 2], [3])
        assert found == ("symbols", "section 1: an integer of more than 20 bits")


def totals(data: bytes, groups: list[int]) -> object:
    """Return the totals that a section holds, or the error."""
    try:
        return IntegerReader(data, "section 1").read_totals(4, groups)
    except FormatError as error:
        return error.code, str(error)


@pytest.mark.parametrize("number", range(20))
def test_totals(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some end below 0, and some in an integer that is too long."""
    rng = random.Random(number)
    groups = [rng.randrange(4) for _ in range(rng.choice((0, 1, 30, 512, 1100)))]
    latest = [0] * 4
    writer, wanted = IntegerWriter(), []
    for place, group in enumerate(groups):
        total = rng.choice((0, 1, 2, 3, 40))
        if number % 5 == 1 and place in (len(groups) - 1, 511):
            total = -1
        writer.write(4 + min(latest[group], 2), total - latest[group])
        latest[group] = total
        wanted.append(total)
        if total < 0:
            break
    data = writer.finish()
    damaged = bytearray(data) + rng.randbytes(2)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    for stored in (data, bytes(damaged), b"\xff\xff\xff\xfe" + b"\xff" * 40):
        found = []
        for path in PATHS:
            monkeypatch.setenv("NOLA_KERNELS", path)
            found.append(totals(stored, groups))
        assert all(each == found[0] for each in found), found
        if stored is data:
            assert found[0] == wanted


@pytest.mark.parametrize("role", [-1, 272])
def test_a_role_that_does_not_exist(role: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_KERNELS", COMPILED[-1])
    with pytest.raises(ValueError, match="roles"):
        IntegerReader(b"", "section 1").read(role)


def test_the_writer_refuses_what_does_not_fit() -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    for roles, values in (([272], [1]), ([-1], [1]), ([0], [1 << MAX_BITS]), ([0, 1], [1])):
        with pytest.raises(ValueError, match="a kernel was given"):
            write_integers(lib, roles, values)
    with pytest.raises(ValueError, match="does not fit into a units section"):
        IntegerWriter().write(0, 1 << MAX_BITS)


def test_carries_run_through_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row of equal integers makes the range creep along the top, and a carry then goes far back."""
    rng = random.Random(1)
    for _ in range(30):
        values = [1] * rng.randrange(1, 3000) + [rng.randrange(-9, 9) for _ in range(20)]
        found = set()
        for path in PATHS:
            monkeypatch.setenv("NOLA_KERNELS", path)
            writer = IntegerWriter()
            for value in values:
                writer.write(3, value)
            found.add(writer.finish())
        assert len(found) == 1
