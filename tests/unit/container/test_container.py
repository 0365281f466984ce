"""Names, canonical MessagePack, header round trips, and reading one record without the rest."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nola_forge import ROOT, golden, join, manifest, pack_integers, split, units_integers

from nola_codec.arrays import NUMPY
from nola_codec.container import canonical, reader
from nola_codec.container.header import KEYS, pack_header
from nola_codec.container.limits import DEFAULT_LIMITS
from nola_codec.container.names import join_name, natural_key, split_name
from nola_codec.container.prelude import SIZE, Prelude, check_header, unpack_prelude
from nola_codec.container.reader import header_dictionary, open_container
from nola_codec.container.units import UnitsReader, pack_units
from nola_codec.container.writer import assemble
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import FormatError

FILES = sorted(name.removesuffix(".nola") for name in manifest())
NAMES = st.text(st.sampled_from("abc.0123456789%#_é²١ "), max_size=24)  # with digits that are not ASCII


@given(name=NAMES)
def test_any_name_survives(name: str) -> None:
    template, numbers = split_name(name)
    assert join_name(template, numbers) == name
    assert template.count("#") == len(numbers)


@pytest.mark.parametrize(
    ("name", "template", "numbers"),
    [
        ("layers.11.q_proj", "layers.#.q_proj", (11,)),
        ("x007", "x007", ()),
        ("x0.10", "x#.#", (0, 10)),
        ("50%#1", "#%25%23#", (50, 1)),
        ("a%23", "a%25#", (23,)),
        ("n1234567890", "n1234567890", ()),
        ("n999999999", "n#", (999999999,)),
        ("", "", ()),
    ],
)
def test_templates(name: str, template: str, numbers: tuple[int, ...]) -> None:
    assert split_name(name) == (template, numbers)
    assert join_name(template, numbers) == name


def test_layers_are_in_natural_order() -> None:
    names = ["h.10.k", "h.9.q", "h.9.k", "h.10.q"]
    assert sorted(names, key=natural_key) == ["h.9.k", "h.9.q", "h.10.k", "h.10.q"]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON)
def test_canonical_round_trip(value: Any) -> None:
    assert canonical.unpack(canonical.pack(value)) == value


@given(value=st.dictionaries(st.text(max_size=5), st.integers(), max_size=5))
def test_canonical_form_does_not_depend_on_order(value: dict[str, int]) -> None:
    value = {key: number % 1000 for key, number in value.items()}
    assert canonical.pack(value) == canonical.pack(dict(reversed(list(value.items()))))


@given(data=st.binary(max_size=40))
def test_canonical_form_is_unique(data: bytes) -> None:
    try:
        value = canonical.unpack(data)
    except FormatError as error:
        assert error.code == "header"  # noqa: PT017
    else:
        assert canonical.pack(value) == data


@pytest.mark.parametrize("name", FILES)
def test_header_round_trip(name: str) -> None:
    data = golden(name)
    with open_container(data) as container:
        header = container.read_units()
        sections = [(s.codec, container.section(i)) for i, s in enumerate(header.sections)]
        ladder = []
        for rung in range(container.rungs):
            container.select(rung)
            ladder.append(container.read_units().coded)
        allocations, exponents = [r.allocation for r in header.rungs], [r.exponents for r in header.rungs]
        packed = pack_units(ladder, allocations, header.amplitude_slope, exponents)
        assert packed == [sections[header.units_section(rung)][1] for rung in range(container.rungs)]
        container.select(container.rungs - 1)
        units = UnitsReader(container.header)
        for part, records in zip(packed, ladder, strict=True):
            units.read_rung(part)
            for made, wanted in zip(units.records, records, strict=True):
                assert made.kind == wanted.kind
                assert made.precision.tolist() == wanted.precision.tolist()
                assert made.amplitude.tolist() == wanted.amplitude.tolist()
                assert made.entry.tolist() == wanted.entry.tolist()
                assert made.exponents == wanted.exponents
        assert tuple(units.rungs) == header.rungs
    again = assemble(header, sections)
    assert join(split(again)) == join(split(data))
    more = {"reference": header.reference, "base": header.base}
    keys = (*KEYS, *(key for key, value in more.items() if value is not None))
    assert set(canonical.unpack(pack_header(header))) == set(keys)


def test_prelude_round_trip() -> None:
    prelude = Prelude(0, 5, bytes(range(16)))
    packed = prelude.pack(b"stored")
    assert len(packed) == SIZE
    assert unpack_prelude(packed, DEFAULT_LIMITS) == prelude
    check_header(packed, b"stored")
    with pytest.raises(FormatError, match="CRC-32"):
        check_header(packed, b"store!")


def test_a_file_of_an_earlier_draft_is_refused_with_advice() -> None:
    for revision, version in ((1, "0.1.0 before its commit 4c4bb00"), (2, "0.1.0")):
        wanted = f"expected 3, found {revision}; nola-codec {version} reads it: decode it with that"
        with pytest.raises(FormatError, match=re.escape(wanted)) as caught:
            open_container(join(split(golden("nmse")), revision=revision))
        assert caught.value.code == "version"
    with pytest.raises(FormatError, match="a newer version of nola-codec reads it: install that"):
        open_container(join(split(golden("nmse")), revision=4))


class Recorded(io.BytesIO):
    """A stream that remembers which bytes were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read_bytes: set[int] = set()
        self.reads = 0

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        self.reads += 1
        data = super().read(size)
        self.read_bytes.update(range(at, at + len(data)))
        return data


def many_blocks() -> bytes:
    """Make a file of several records, each in a block of its own."""
    parts = split(golden("bits-16"))
    top = parts.top
    copies = 6
    size = len(parts.sections[1][1]) // 2
    blocks = [parts.sections[1][1][:size], parts.sections[1][1][size:]]
    assert len(top["kinds"]) == 2
    top["records"] = [0, 1] * (copies // 2)
    top["numbers"] = [0, 0] + [1] * (copies - 2)
    top["blocks"] = [1] * copies
    (integers,) = units_integers(golden("bits-16"))
    before = [pair for pair in integers if pair[0] < 4 or pair[0] in (12, 13, 14)]  # of kinds and tables
    counts = [(4, 2), (4, 2), *[(6, 0)] * (copies - 2)]
    exponents = [pair for pair in integers if pair[0] == 7] + [(7, 0)] * (2 * (copies - 2))
    units = [(8, 0), (9, 0)] * copies + [(16, 0)] * (2 * copies)  # all units have quantizer 0
    packed = pack_integers([*before, *counts, *exponents, *units])
    parts.sections = [(3, packed), *((0, blocks[i % 2]) for i in range(copies))]
    return join(parts)


@pytest.mark.parametrize("wanted", [0, 3, 5])
def test_one_record_is_read_from_its_block_alone(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "AHEAD", 0)
    stream = Recorded(many_blocks())
    container = open_container(stream)
    header = container.header
    assert header.blocks == (1,) * 6
    decoder = Decoder(container, NUMPY)
    ((index, factors),) = list(decoder.decode_pairs([wanted]))
    assert index == wanted
    assert factors.sides[0].shape == (12, 2)
    base = container.header_length
    for number, section in enumerate(header.sections):
        place = set(range(base + section.offset, base + section.offset + section.length))
        assert place <= stream.read_bytes if number in (0, 1 + wanted) else not place & stream.read_bytes


def test_opening_reads_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "AHEAD", 0)
    stream = Recorded(many_blocks())
    container = open_container(stream)
    sections = [s.length for s in container.header.sections]
    assert len(stream.read_bytes) <= container.file_length - sum(sections)


@pytest.mark.parametrize(("ahead", "reads"), [(16 << 10, 1), (60, 2)])
def test_opening_takes_one_read_or_two(ahead: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is for a header that is longer than the first."""
    monkeypatch.setattr(reader, "AHEAD", ahead)
    stream = Recorded(many_blocks())
    with open_container(stream) as container:
        container.read_units()
        assert stream.reads == reads


def test_sources(tmp_path: Any) -> None:
    data = golden("nmse")
    (tmp_path / "a.nola").write_bytes(data)
    embedded = io.BytesIO(b"before" + data)
    embedded.seek(6)
    for source in (data, tmp_path / "a.nola", str(tmp_path / "a.nola"), io.BytesIO(data), embedded):
        with open_container(source) as container:
            Decoder(container, NUMPY).decode_all()
            container.check_content()
    assert not embedded.closed
    (tmp_path / "broken.nola").write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"broken\.nola"):
        open_container(tmp_path / "broken.nola")


def test_two_hundred_names_cost_little() -> None:
    """The names and shapes of 210 modules take under 400 bytes of a file in which everything else is empty."""
    parts = split(golden("empty"))
    shapes = {
        "q": (576, 576),
        "k": (192, 576),
        "v": (192, 576),
        "o": (576, 576),
        "up": (1536, 576),
        "gate": (1536, 576),
    }
    shapes["down"] = (576, 1536)
    for name, (out, columns) in shapes.items():
        template = f"base_model.model.model.layers.#.self_attn.{name}_proj"
        parts.top["kinds"].append([0, template, 0, 2.0, 0, 0, 1, 0, None, [out, 8], [8, columns]])
    parts.top["records"] = [*range(7)] * 30
    parts.top["numbers"] = [0] * 7 + [1] * 203
    parts.top["blocks"] = [210]
    parts.sections = [(3, pack_integers([(0, 0)] * 635)), (0, b"")]
    data = join(parts)
    with open_container(data) as container:
        assert container.header.pairs[-1].name == "base_model.model.model.layers.29.self_attn.down_proj"
    assert len(data) < 400


def test_the_specifications_dictionary_is_the_packages() -> None:
    assert (ROOT / "spec" / "header-dictionary.bin").read_bytes() == header_dictionary()
