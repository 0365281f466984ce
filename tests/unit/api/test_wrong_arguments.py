"""Arguments of a wrong kind: each is refused with a code before any work, and bytes are as good as a path."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nola_codec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT of Transformers


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case()


class Model:
    def save_pretrained(self, directory: str) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("sources", "code", "words"),
    [
        ("a.nola", "source-type", "found 'a.nola'; put it into a list"),
        (b"data", "source-type", "found bytes"),
        (Path("a.nola"), "source-type", "put it into a list"),
        (3, "source-type", "found int"),
        ([3], "source-type", "expected a path, bytes or a binary stream"),
        ([("a.nola", "half")], "merge-weight", "expected a pair"),
        ([("a.nola",)], "merge-weight", "expected a pair"),
    ],
    ids=str,
)
def test_what_cannot_be_merged(sources: Any, code: str, words: str, tmp_path: Path) -> None:
    for call in (nola_codec.merge, nola_codec.unmerge):
        with pytest.raises(nola_codec.AdapterError, match=words) as caught:
            call(sources, tmp_path, tmp_path / "out")
        assert caught.value.code == code


def test_models_that_are_no_path(case: Any, tmp_path: Path) -> None:
    with pytest.raises(nola_codec.AdapterError, match=r"expected the path of a model.*merge_into") as caught:
        nola_codec.merge([case.encoded], Model(), tmp_path / "out")  # type: ignore[arg-type]
    assert caught.value.code == "source-type"
    with pytest.raises(nola_codec.AdapterError, match="expected a path to write to") as caught:
        nola_codec.merge([case.encoded], tmp_path, io.BytesIO())  # type: ignore[arg-type]
    assert caught.value.code == "target-type"
    (tmp_path / "a.nola").write_bytes(case.encoded)
    with pytest.raises(nola_codec.AdapterError, match=r"expected a model, found a \.nola file") as caught:
        nola_codec.decode(case.encoded, tmp_path / "x.safetensors", base=tmp_path / "a.nola")
    assert caught.value.code == "nola-file"


def test_a_directory_is_no_target_of_a_file(case: Any, tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(nola_codec.EncodeError, match="found a directory") as caught:
            nola_codec.encode(case.adapter, tmp_path, nmse=0.1, overwrite=overwrite)
        assert caught.value.code == "target-type"


@pytest.mark.parametrize("targets", [{"sizes": "5KB"}, {"sizes": 5000}, {"nmse": 0.1}, {"errors": 0.1}], ids=str)
def test_targets_of_a_sweep_are_lists(targets: Any, case: Any) -> None:
    with pytest.raises(nola_codec.EncodeError, match="expected a list, found") as caught:
        nola_codec.sweep(case.adapter, **targets)
    assert caught.value.code == "option"


def test_files_are_compared_as_bytes_and_streams(case: Any) -> None:
    stream = io.BytesIO(case.encoded)
    for encoded in (case.encoded, bytearray(case.encoded), memoryview(case.encoded), stream):
        assert nola_codec.compare(case.encoded, encoded).nmse == 0
    with pytest.raises(nola_codec.FormatError, match=r"^bytes: "):
        nola_codec.compare(case.encoded, case.encoded[:-1] + b"?")


def test_merging_into_a_live_model_needs_torch(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec import errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with (
        nola_codec.load(case.encoded, device="numpy") as task,
        pytest.raises(nola_codec.MissingPackage, match=r"merge_into\(\) needs torch") as caught,
    ):
        task.merge_into(Model())  # type: ignore[arg-type]
    assert caught.value.code == "needs-torch"
