"""References that are strange: sides of zeros, names that a header cannot have, files in the way, streams."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.container.limits import Limits
from nola_codec.errors import AdapterError, EncodeError, FormatError
from tests.support.nola_forge import GOLDEN, golden, join, reference, reference_answers, split
from tests.unit.references.test_versions import NAMES, factors, grown, nmse, write


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Path, Path]:
    first = factors()
    return write(tmp_path / "one", first), write(tmp_path / "two", grown(first))


@pytest.fixture
def chain(adapters: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Three files, each of which needs the one before it."""
    files = [tmp_path / f"{number}.nola" for number in range(3)]
    for number, file in enumerate(files):
        nola_codec.encode(adapters[number % 2], file, nmse=0.05, reference=files[number - 1] if number else None)
    return files


def untrained(tensors: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """The same factors with a lora_B of zeros for some modules, as before a training."""
    empty = {f"{name}.lora_B.weight" for name in names}
    return {key: np.zeros_like(value) if key in empty else value for key, value in tensors.items()}


@pytest.mark.parametrize("modules", [1, len(NAMES)])
@pytest.mark.parametrize("coded", [False, True], ids=["adapter", "file"])
def test_the_reference_has_modules_that_were_not_trained_yet(
    modules: int, coded: bool, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    old = write(tmp_path / "zero", untrained(factors(), NAMES[:modules]))
    if coded:
        nola_codec.encode(old, tmp_path / "zero.nola", nmse=0.05)
        old = tmp_path / "zero.nola"
    file = tmp_path / "new.nola"
    nola_codec.encode(adapters[1], file, nmse=0.05, reference=old)
    nola_codec.verify(file, references=old)
    assert nmse(nola_codec.read_adapter(file, references=old), adapters[1]) < 0.055


@pytest.mark.parametrize("modules", [1, len(NAMES)])
def test_modules_that_are_zero_in_both_versions_or_in_the_new_one(
    modules: int, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    new = write(tmp_path / "new", untrained(grown(factors()), NAMES[:modules]))
    zero = write(tmp_path / "zero", untrained(factors(), NAMES[:modules]))
    for number, old in enumerate((zero, adapters[0])):
        file = tmp_path / f"{number}.nola"
        nola_codec.encode(new, file, nmse=0.05, reference=old)
        made = nola_codec.read_adapter(file, references=old)
        assert all(not (m.lora_B @ m.lora_A).any() for m in made.modules if m.name in NAMES[:modules])
        assert modules == len(NAMES) or nmse(made, new) < 0.055


def test_the_specification_adds_nothing_where_the_reference_is_far_below(
    adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    small = write(tmp_path / "small", {key: value * 1e-12 for key, value in factors().items()})
    old, new = tmp_path / "old.nola", tmp_path / "new.nola"
    nola_codec.encode(small, old, nmse=0.05)
    nola_codec.encode(adapters[1], new, nmse=0.05, reference=old)
    known: dict[bytes, object] = {}
    reference().decode(old.read_bytes(), known)
    _, _, digest = reference().decode(new.read_bytes(), known)
    assert digest == nola_codec.verify(new)["decoded_sha256"]


def test_files_that_cannot_be_read_are_passed_over(chain: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(chain[1], folder / "1.nola")
    shutil.copy(chain[0], folder / "z.nola")
    (folder / "a.nola").mkdir()
    (folder / "b.nola").symlink_to("b.nola")
    if os.path.exists("/proc/self/mem"):
        (folder / "c.nola").symlink_to("/proc/self/mem")  # reading it is an error even for the superuser
        os.mkfifo(folder / "d.nola")
    assert nola_codec.verify(folder / "1.nola")


def test_a_header_may_name_a_reference_as_no_file_can_be_named(tmp_path: Path) -> None:
    parts = split(golden("reference"))
    parts.top["reference"][3] = "n" * 1000
    file = tmp_path / "long.nola"
    file.write_bytes(join(parts))
    with pytest.raises(FormatError, match="nothing is there that could be it"):
        nola_codec.verify(file, references=tmp_path / "empty")
    needed = nola_codec.inspect(file).reference
    assert needed is not None
    shutil.copytree(GOLDEN, tmp_path / "golden")
    assert nola_codec.verify(file, references=tmp_path / "golden")


@pytest.mark.parametrize("name", ["we\\ird.nola", os.fsdecode(b"\xff.nola"), "two\nlines.nola"], ids=ascii)
def test_a_reference_with_a_name_that_a_header_cannot_have(
    name: str, adapters: tuple[Path, Path], chain: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        shutil.copy(chain[0], folder / name)
    except OSError:
        pytest.skip("the file system has no such names")
    nola_codec.encode(adapters[1], folder / "new.nola", nmse=0.05, reference=folder / name)
    assert nola_codec.verify(folder / "new.nola")


def test_the_name_of_a_link_is_kept(adapters: tuple[Path, Path], chain: list[Path], tmp_path: Path) -> None:
    (tmp_path / "release.nola").symlink_to(chain[0])  # as in the cache of the Hub, where files lie under their hashes
    nola_codec.encode(adapters[1], tmp_path / "new.nola", nmse=0.05, reference=tmp_path / "release.nola")
    needed = nola_codec.inspect(tmp_path / "new.nola").reference
    assert needed is not None
    assert needed["name"] == "release.nola"


def test_streams_serve_for_every_file_of_a_chain(chain: list[Path]) -> None:
    below = [io.BytesIO(file.read_bytes()) for file in chain[:2]]
    for streams in (below, below[::-1]):
        assert nola_codec.verify(chain[2].read_bytes(), references=streams)
    assert [stream.tell() for stream in below] == [0, 0]


def test_an_open_file_verifies_itself_with_the_references_it_was_given(chain: list[Path], tmp_path: Path) -> None:
    with nola_codec.load(chain[1].read_bytes(), "numpy", references=chain[0]) as file:
        file.verify()
    with nola_codec.load(chain[1].read_bytes(), "numpy") as file, pytest.raises(FormatError, match="needs it"):
        file.verify()


def test_a_file_does_not_replace_what_it_needs(adapters: tuple[Path, Path], chain: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link.nola").symlink_to(chain[0])
    before = [file.read_bytes() for file in chain]
    for out in (chain[0], chain[1], tmp_path / "link.nola"):
        with pytest.raises(EncodeError, match="cannot take its place"):
            nola_codec.encode(adapters[0], out, nmse=0.05, reference=chain[1], overwrite=True)
    assert [file.read_bytes() for file in chain] == before
    nola_codec.encode(adapters[0], chain[2], nmse=0.05, reference=chain[1], overwrite=True)
    assert nola_codec.verify(chain[2])


def test_units_are_counted_over_all_rungs() -> None:
    data = golden("rungs")
    with nola_codec.load(data, "numpy") as file:
        rungs = file.open_decoder().header.rungs
    last, all_rungs = sum(rungs[-1].units), sum(sum(rung.units) for rung in rungs)
    assert last < all_rungs
    with nola_codec.load(data, "numpy", limits=Limits(units=all_rungs)) as file:
        assert file.state_dict()
    with nola_codec.load(data, "numpy", limits=Limits(units=last)) as file, pytest.raises(FormatError, match="units"):
        file.state_dict()


def test_an_adapter_behind_a_url_is_a_reference(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "new.nola"
    nola_codec.encode(adapters[1], file, nmse=0.05, reference=adapters[0])
    place = adapters[0] / "adapter_model.safetensors"
    assert nola_codec.verify(file, references=place.as_uri())
    with pytest.raises(FormatError, match="needs it"):
        nola_codec.verify(file, references=(adapters[1] / place.name).as_uri())


@pytest.mark.parametrize("wrong", [5, {"a": 1}, [None], io.StringIO(), lambda entry: 5], ids=lambda w: type(w).__name__)
def test_references_of_a_wrong_type(wrong: Any, chain: list[Path]) -> None:
    with pytest.raises(AdapterError, match="expected paths, bytes, binary streams or a function") as caught:
        nola_codec.verify(chain[1], references=wrong)
    assert caught.value.code == "source-type"


def test_damage_of_a_reference_is_told_with_its_name(chain: list[Path], tmp_path: Path) -> None:
    data = bytearray(chain[0].read_bytes())
    data[-3] ^= 1
    damaged = tmp_path / "damaged.nola"
    damaged.write_bytes(data)
    with pytest.raises(FormatError, match=r"damaged\.nola.*content does not match"):
        nola_codec.verify(chain[1], references=damaged)
    with pytest.raises(FormatError, match=r"damaged\.nola.*CRC-32"):
        nola_codec.verify(chain[1], references=damaged.as_uri())  # of a URL, only what is needed is read
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(damaged, folder / chain[0].name)
    shutil.copy(chain[1], folder / "new.nola")
    with pytest.raises(FormatError, match=r"0\.nola is it, and is damaged"):
        nola_codec.verify(folder / "new.nola")
    shutil.copy(chain[0], folder / "z.nola")
    assert nola_codec.verify(folder / "new.nola")


def test_a_file_is_not_counted_among_what_could_be_its_reference(chain: list[Path], tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(chain[1], tmp_path / "alone")
    with pytest.raises(FormatError, match="beside the file, nothing is there that could be it"):
        nola_codec.verify(tmp_path / "alone" / chain[1].name)


def test_a_file_that_only_claims_to_be_the_reference(
    adapters: tuple[Path, Path], chain: list[Path], tmp_path: Path
) -> None:
    """Its header has the hash, and its checksums are right; what it decodes to is another adapter."""
    other = tmp_path / "other.nola"
    nola_codec.encode(adapters[1], other, nmse=0.05)
    parts = split(other.read_bytes())
    parts.top["rungs"][0][0] = split(chain[0].read_bytes()).top["rungs"][0][0]
    other.write_bytes(join(parts))
    with pytest.raises(FormatError, match="the reference is not what it says"):
        nola_codec.verify(chain[1], references=other)


def test_rungs_of_a_file_with_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder writes such files yet. The reference decoder says what each rung decodes to."""
    parts, decoder, known = split(golden("vectors-rungs")), reference(), dict(reference_answers())
    alone = [rung[0] for rung in parts.top["rungs"]]
    parts.top["reference"] = [split(golden("vectors")).top["rungs"][-1][0], 1, [1000, 900], "vectors.nola"]
    decoded: list[bytes] = []
    require = decoder.require

    def note_hash(condition: Any, code: str, reason: str) -> None:
        if code == "factors-checksum":
            decoded.append(bytes.fromhex(reason))
        else:
            require(condition, code, reason)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "require", note_hash)
        decoder.decode(join(parts, required=1), known)
    assert len(decoded) == len(alone)
    assert not set(decoded) & set(alone)
    for rung, sha256 in zip(parts.top["rungs"], decoded, strict=True):
        rung[0] = sha256
    whole, short = tmp_path / "whole.nola", tmp_path / "short.nola"
    whole.write_bytes(join(parts, required=1))
    assert nola_codec.verify(whole, references=GOLDEN)["decoded_sha256"] == decoded[-1].hex()
    nola_codec.truncate(whole, short, rung=0)
    assert nola_codec.verify(short, references=GOLDEN)["decoded_sha256"] == decoded[0].hex()
