"""The table of docs/checksums.md: which call compares which checksum."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nola_codec
from nola_codec.container.reader import open_container
from nola_codec.container.writer import assemble

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]  # PEFT of Transformers


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case()


def inexact(data: bytes) -> bytes:
    """The file with another decoded SHA-256, all other checksums being right."""
    with open_container(data) as container:
        header = container.header
        sections = [(section.codec, container.section(i)) for i, section in enumerate(header.sections)]
    rungs = tuple(replace(rung, decoded_sha256=bytes(32)) for rung in header.rungs)
    return assemble(replace(header, rungs=rungs), sections)


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(nola_codec.NolaError) as caught:
        call()
    return caught.value.code


def test_load_compares_the_content(case: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nola"
    for position in (-1, -12, -len(case.encoded) // 4):
        bad = bytearray(case.encoded)
        bad[position] ^= 1
        path.write_bytes(bad)
        assert code_of(lambda bad=bad: nola_codec.load(bytes(bad))) == "content-checksum"
        with pytest.raises(nola_codec.ChecksumMismatch, match=re.escape(str(path))):
            nola_codec.load(path)


def test_without_verify_only_what_is_read_is_checked(case: Any) -> None:
    bad = bytearray(case.encoded)
    bad[-12] ^= 4
    with nola_codec.load(bytes(bad), verify=False) as opened:
        assert code_of(opened.state_dict) == "section-checksum"
        assert code_of(opened.verify) == "content-checksum"


@pytest.mark.parametrize("options", [{}, {"targets": ("embed_tokens",)}])
def test_what_is_decoded_whole_is_proven(options: dict[str, Any], make_case: Callable[..., Any]) -> None:
    case = make_case(**options)
    data = inexact(case.encoded)
    model = case.fresh()
    with nola_codec.load(data) as opened:
        name = opened.names()[0]
        opened.factors(name)  # one tensor cannot be proven
        opened.delta_weight(name)
        for call in (opened.state_dict, lambda: opened.merge_into(model), opened.verify):
            assert code_of(call) == "factors-checksum"
    with nola_codec.load(data, verify=False) as opened, nola_codec.load(case.encoded) as good:
        wanted = good.state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in opened.state_dict().items())
        assert code_of(lambda: opened.merge_into(model)) == "factors-checksum"
    for key, tensor in case.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_other_dialects_are_proven_too(case: Any, tmp_path: Path) -> None:
    nola_codec.decode(case.encoded, tmp_path / "k", format="mlx")
    data, _ = nola_codec.encode_bytes(tmp_path / "k", nmse=0.05)
    with nola_codec.load(inexact(data)) as opened:
        assert opened.header.dialect == "mlx"
        assert code_of(opened.state_dict) == "factors-checksum"
    with nola_codec.load(inexact(data), verify=False) as opened, nola_codec.load(data) as good:
        assert opened.state_dict().keys() == good.state_dict().keys()


def test_calls_that_write_prove_and_write_nothing(case: Any, tmp_path: Path) -> None:
    data = inexact(case.encoded)
    (tmp_path / "a.nola").write_bytes(data)
    for call in (
        lambda: nola_codec.decode(data, tmp_path / "out"),
        lambda: nola_codec.merge([data], case.base, tmp_path / "out"),
        lambda: nola_codec.verify(data),
        lambda: nola_codec.read_adapter(tmp_path / "a.nola"),
        lambda: nola_codec.compare(tmp_path / "a.nola", case.adapter),
    ):
        assert code_of(call) == "factors-checksum"
    assert not (tmp_path / "out").exists()


def test_reading_an_adapter_compares_the_content(case: Any, tmp_path: Path) -> None:
    bad = bytearray(case.encoded)
    bad[40] ^= 1
    (tmp_path / "a.nola").write_bytes(bad)
    assert code_of(lambda: nola_codec.read_adapter(tmp_path / "a.nola")) in ("content-checksum", "header-checksum")


def test_an_adapter_in_place_of_a_file_says_what_to_do(case: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path in (case.adapter, case.adapter / "adapter_model.safetensors"):
        for call in (
            lambda path=path: nola_codec.load(path),
            lambda path=path: nola_codec.decode(path, out),
            lambda path=path: nola_codec.merge([path], case.base, out),
            lambda path=path: nola_codec.verify(path),
            lambda path=path: nola_codec.inspect(path),
            lambda path=path: nola_codec.truncate(path, out),
        ):
            with pytest.raises(
                nola_codec.AdapterError, match=r"is an adapter, not a .nola file; use `nola-codec encode`"
            ) as e:
                call()
            assert e.value.code == "not-nola"
    with pytest.raises(nola_codec.AdapterError, match="is a directory, not a"):
        nola_codec.load(tmp_path)
    (tmp_path / "named.bin").write_bytes(case.encoded)  # the content counts, not the name
    nola_codec.load(tmp_path / "named.bin").close()
    for kind in (FileNotFoundError, nola_codec.NolaError):
        with pytest.raises(kind, match=r"none\.safetensors: no such file or directory") as caught:
            nola_codec.load(tmp_path / "none.safetensors")
        assert isinstance(caught.value, nola_codec.AdapterError)
        assert caught.value.code == "not-found"


def test_options_that_make_no_sense(case: Any, tmp_path: Path) -> None:
    with nola_codec.load(case.encoded) as opened, pytest.raises(nola_codec.NolaError, match="f32, f16, bf16") as caught:
        opened.state_dict("fp16")
    assert caught.value.code == "option"
    with nola_codec.load(case.encoded) as opened:
        name = opened.names()[0]
        shape = tuple(opened.delta_weight(name).shape)
        assert opened.delta_weight(name, shape).shape == shape
        assert code_of(lambda: opened.delta_weight(name, (1, 2))) == "bad-shape"
    assert code_of(lambda: nola_codec.decode(case.encoded, tmp_path / "out", dtype="fp16")) == "option"
    assert code_of(lambda: nola_codec.decode(case.encoded, tmp_path / "out", base=case.base, dtype="f16")) == "option"
    assert not (tmp_path / "out").exists()


def test_the_table_names_what_there_is() -> None:
    text = (Path(__file__).parents[3] / "docs" / "checksums.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("|")]
    names = [name for row in rows for name in re.findall(r"`\.?(\w+)(?:\(|`)", row.split("|")[1])]
    assert set(names) >= {
        "load",
        "factors",
        "state_dict",
        "merge_into",
        "verify",
        "decode",
        "merge",
        "inspect",
        "truncate",
    }
    for name in names:
        assert hasattr(nola_codec, name) or hasattr(nola_codec.NolaFile, name)
