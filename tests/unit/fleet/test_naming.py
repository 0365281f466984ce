"""Every source gets an output of its own, whose name is safe."""

from __future__ import annotations

import unicodedata

import pytest

from nola_codec.errors import NolaError
from nola_codec.fleet.items import Source
from nola_codec.fleet.naming import make_safe, name_outputs, require_safe


def names(*sources: tuple[str, str], owners: dict[str, str | None] | None = None, ending: str = ".nola") -> list[str]:
    return name_outputs([Source(path, name) for path, name in sources], ending, owners or {})


def test_a_free_name_stays() -> None:
    assert names(("/x/a", "a"), ("/x/b", "b")) == ["a.nola", "b.nola"]


def test_equal_names_get_hashes_of_the_paths_whatever_the_order() -> None:
    one, two = names(("/x/a", "a"), ("/y/a", "a"))
    assert one != two
    assert {one[:2], two[:2]} == {"a-"}
    assert names(("/y/a", "a"), ("/x/a", "a")) == [two, one]


def test_upper_and_lower_case_are_the_same_name() -> None:
    assert len({name.casefold() for name in names(("/x/A", "A"), ("/x/a", "a"))}) == 2


def test_two_ways_to_write_one_letter_are_the_same_name() -> None:
    made = names(("/x/1", "caf\u00e9"), ("/x/2", "cafe\u0301"), ("/x/3", "CAFE\u0301"))
    assert len({unicodedata.normalize("NFC", name).casefold() for name in made}) == 3


@pytest.mark.parametrize("name", ["con", "a/NUL", "aux.v2", "Com1"])
def test_devices_of_windows_are_no_names(name: str) -> None:
    folder, _, leaf = name.rpartition("/")
    assert make_safe(name) == (f"{folder}/_{leaf}" if folder else f"_{leaf}")
    assert make_safe("console/comet") == "console/comet"


def test_a_name_of_an_earlier_run_stays_with_its_source() -> None:
    owners: dict[str, str | None] = {"a.nola": "/x/a"}
    first, second = names(("/x/a", "a"), ("/y/a", "a"), owners=owners)
    assert first == "a.nola"
    owners[second] = "/y/a"
    assert names(("/y/a", "a"), owners=owners) == [second]
    assert names(("/y/a", "a"), owners={second: "/y/a"}) == [second], "the plain name is free now, and is not taken"


def test_the_name_of_a_source_that_is_gone_is_free() -> None:
    assert names(("/y/a", "a"), owners={"a.nola": None}) == ["a.nola"]


def test_no_output_is_the_directory_of_another() -> None:
    outer, inner = names(("/x/a", "a"), ("/x/a/b", "a/b"), ending="")
    assert inner == "a/b"
    assert outer.startswith("a-")


def test_the_manifest_keeps_its_name() -> None:
    assert names(("/x/m", "manifest.jsonl"), ending="")[0].startswith("manifest.jsonl-")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b", "a/b"),
        ("../../etc/passwd", "_/_/etc/passwd"),
        ("/etc", "etc"),
        ("a\x00b\n", "a_b_"),
        ("c:\\x", "c__x"),
        ("", "_"),
        ("a. ", "a"),
        (".fleet/lock", "_fleet/lock"),
        ("\udcff", "_"),
    ],
)
def test_unsafe_names_are_changed(name: str, safe: str) -> None:
    assert make_safe(name) == safe


def test_a_long_name_is_cut_and_stays_different() -> None:
    one, two = make_safe("é" * 300 + "1"), make_safe("é" * 300 + "2")
    assert one != two
    assert len(one.encode()) <= 180


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a\\b", "manifest.jsonl", ".fleet/lock"])
def test_a_name_that_the_user_gave_is_refused_and_not_changed(name: str) -> None:
    with pytest.raises(NolaError, match="row 1") as error:
        require_safe(name, "row 1")
    assert error.value.code == "output-name"


def test_two_sources_with_one_given_name_are_refused() -> None:
    sources = [Source("/x/a", "c", is_named=True), Source("/x/b", "C.nola", is_named=True)]
    with pytest.raises(NolaError, match=r"c\.nola") as error:
        name_outputs(sources, ".nola", {})
    assert error.value.code == "output-name"
