"""Runs over small adapters, with real worker processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_adapters import break_all, make_tensors, write_adapter
from safetensors.numpy import load_file

import nola_codec
from nola_codec import FleetReport, NolaError
from nola_codec.fleet.items import Job
from nola_codec.fleet.jobs import run_job
from nola_codec.fleet.manifest import read_manifest
from nola_codec.fleet.planning import join_options

RATE: Mapping[str, Any] = {"ratio": 2.0}


def encode(sources: object, out: Path, **options: Any) -> FleetReport:
    options = {"encoding": RATE, "workers": 1, "manifest_format": "jsonl"} | options
    return nola_codec.encode_many(sources, out, **options)  # type: ignore[arg-type]


def counts(report: FleetReport) -> tuple[int, int, int]:
    return report.done, report.unchanged, len(report.failed)


class Watcher:
    """Writes down what it is told."""

    total = 0

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def start(self, name: str) -> None:
        self.told.append(("start", name))

    def finish(self, name: str, *, failed: bool = False) -> None:
        self.told.append(("failed" if failed else "finished", name))

    def skip(self, name: str) -> None:
        self.told.append(("skip", name))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FleetReport, list[tuple[str, str]]]:
    """Three adapters and a broken one, encoded: their folder, the report, and what a watcher was told."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed, name in enumerate(("a", "b", "deep/a")):
        write_adapter(folder / "loras" / name, make_tensors(seed))
    (folder / "loras" / "page.safetensors").write_text("<html>404</html>")
    watcher = Watcher()
    report = encode(folder / "loras", folder / "files", watch=watcher)
    assert watcher.total == 4
    return folder, report, watcher.told


@pytest.fixture
def place(first_run: tuple[Path, FleetReport, list[tuple[str, str]]], tmp_path: Path) -> Path:
    """A copy of that folder after the run, at the same time stamps, without the broken adapter."""
    shutil.copytree(first_run[0], tmp_path / "place")  # copy2: times stay
    (tmp_path / "place" / "loras" / "page.safetensors").unlink()
    manifest = tmp_path / "place" / "files" / "manifest.jsonl"
    text = manifest.read_text().replace(str(first_run[0]), str(tmp_path / "place"))
    manifest.write_text("".join(line for line in text.splitlines(True) if "page.nola" not in line))
    return tmp_path / "place"


def test_a_run_encodes_what_encode_encodes(first_run: tuple[Path, FleetReport, list[tuple[str, str]]]) -> None:
    folder, report, told = first_run
    assert counts(report) == (3, 0, 1)
    for name in ("a", "b", "deep/a"):
        wanted, _ = nola_codec.encode_bytes(folder / "loras" / name, **RATE)
        assert (folder / "files" / f"{name}.nola").read_bytes() == wanted
    assert sorted(told) == sorted(
        [("start", f"{n}.nola") for n in ("a", "b", "deep/a", "page")]
        + [("finished", f"{n}.nola") for n in ("a", "b", "deep/a")]
        + [("failed", "page.nola")]
    )
    assert report.manifest == folder / "files" / "manifest.jsonl"


def test_the_manifest_says_what_the_report_of_encode_says(
    first_run: tuple[Path, FleetReport, list[tuple[str, str]]],
) -> None:
    folder, report, _ = first_run
    rows = read_manifest(folder / "files")
    row, wanted = rows["a.nola"], nola_codec.encode(folder / "loras" / "a", **RATE)
    assert (row.bytes, row.ratio, row.nmse, row.effective_error, row.notes, row.dialect) == (
        wanted.bytes, wanted.ratio, wanted.nmse, wanted.effective_error, wanted.notes, "peft",
    )  # fmt: skip
    assert (row.scale_low, row.scale_high, row.scale_origin) == (2.0, 2.0, "config")
    facts = nola_codec.verify(folder / "files" / "a.nola")
    assert (row.output_digest, row.decoded_sha256) == (facts["file_sha256"], facts["decoded_sha256"])
    assert {"hash", "read", "rate control", "write"} <= row.stages.keys()
    assert json.loads(row.options) == RATE
    failed = rows["page.nola"]
    assert report.failed == (failed,)
    assert (failed.status, failed.code, failed.bytes) == ("failed", "html-page", None)


def test_a_second_run_does_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.nola")}
    manifest = (place / "files" / "manifest.jsonl").read_bytes()
    monkeypatch.chdir(place)
    report = encode("loras", Path("files"))
    assert counts(report) == (0, 3, 0)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.nola")} == before
    assert (place / "files" / "manifest.jsonl").read_bytes() == manifest


def test_only_what_changed_is_done_again(place: Path) -> None:
    os.utime(place / "loras" / "a" / "adapter_model.safetensors")  # the same content: hashed, not encoded
    shutil.rmtree(place / "loras" / "b")
    write_adapter(place / "loras" / "b", make_tensors(7))
    write_adapter(place / "loras" / "new", make_tensors(8))
    (place / "files" / "deep" / "a.nola").unlink()
    times = (place / "files" / "a.nola").stat().st_mtime_ns
    report = encode(place / "loras", place / "files")
    assert counts(report) == (3, 1, 0)
    assert (place / "files" / "a.nola").stat().st_mtime_ns == times
    for name in ("b", "new", "deep/a"):
        wanted, _ = nola_codec.encode_bytes(place / "loras" / name, **RATE)
        assert (place / "files" / f"{name}.nola").read_bytes() == wanted
    assert counts(encode(place / "loras", place / "files")) == (0, 4, 0)


def test_other_options_are_another_file(place: Path) -> None:
    report = encode(place / "loras" / "a", place / "files", encoding={"ratio": 3.0})
    assert counts(report) == (1, 0, 0)
    wanted, _ = nola_codec.encode_bytes(place / "loras" / "a", ratio=3.0)
    assert (place / "files" / "a.nola").read_bytes() == wanted
    assert sorted(read_manifest(place / "files")) == ["a.nola", "b.nola", "deep/a.nola"], "other rows stay"


def test_check_finds_and_mends_a_damaged_output(place: Path) -> None:
    file = place / "files" / "b.nola"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert counts(encode(place / "loras", place / "files")) == (0, 3, 0), "sizes and times do not tell"
    checked = nola_codec.verify_many(place / "files", workers=1)
    assert [row.output for row in checked.failed] == [str(file)]
    assert counts(encode(place / "loras", place / "files", check=True)) == (1, 2, 0)
    assert file.read_bytes() == data


def test_a_moved_folder_is_not_encoded_again(place: Path) -> None:
    (place / "loras").rename(place / "moved")
    report = encode(place / "moved", place / "files")
    assert counts(report) == (0, 3, 0)
    assert read_manifest(place / "files")["a.nola"].source == str(place / "moved" / "a")


def test_files_of_others_are_not_replaced(loras: Path) -> None:
    out = loras.parent / "files"
    out.mkdir()
    (out / "a.nola").write_text("mine")
    for _ in range(2):  # the row of the first run does not make the file its own
        report = encode(loras / "a", out)
        assert [row.code for row in report.failed] == ["output-exists"]
        assert (out / "a.nola").read_text() == "mine"
    assert counts(encode(loras / "a", out, overwrite=True)) == (1, 0, 0)


def test_the_row_of_an_output_stays_if_another_source_wants_its_name(place: Path) -> None:
    (place / "list.jsonl").write_text('{"source": "loras/b", "output": "a"}\n')
    manifest = (place / "files" / "manifest.jsonl").read_bytes()
    report = encode([], place / "files", manifest=place / "list.jsonl")
    assert [row.code for row in report.failed] == ["output-exists"]
    assert (place / "files" / "manifest.jsonl").read_bytes() == manifest
    assert counts(encode(place / "loras", place / "files")) == (0, 3, 0)


def test_rows_of_a_manifest_have_their_own_options(loras: Path) -> None:
    rows = [
        {"source": "a", "ratio": 4},
        {"source": "a", "output": "small", "size": "600B"},
        {"source": "b", "size": "many"},
        {"source": "nothing"},
    ]
    (loras / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = encode([], loras.parent / "files", manifest=loras / "list.jsonl")
    assert {row.output: row.code for row in report.failed} == {"b.nola": "option", "nothing.nola": "not-found"}
    assert (loras.parent / "files" / "small.nola").stat().st_size <= 600
    wanted, _ = nola_codec.encode_bytes(loras / "a", ratio=4)
    assert (loras.parent / "files" / "a.nola").read_bytes() == wanted


def test_decoding_gives_the_adapters_back(place: Path) -> None:
    report = nola_codec.decode_many(place / "files", place / "again", workers=1, ending=".safetensors")
    assert counts(report) == (3, 0, 0)
    nola_codec.decode(place / "files" / "deep" / "a.nola", place / "one.safetensors")
    found, wanted = load_file(place / "again" / "deep" / "a.safetensors"), load_file(place / "one.safetensors")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    assert counts(nola_codec.decode_many(place / "files", place / "again", ending=".safetensors")) == (0, 3, 0)


def test_verifying_says_what_is_missing_and_what_is_another_file(place: Path) -> None:
    files = place / "files"
    (files / "a.nola").unlink()
    shutil.copy(files / "deep" / "a.nola", files / "b.nola")
    report = nola_codec.verify_many(files, place / "results", workers=1)
    assert {Path(row.output).relative_to(files).as_posix(): row.code for row in report.failed} == {
        "a.nola": "not-found",
        "b.nola": "manifest-mismatch",
    }
    report = nola_codec.verify_many(files, place / "results", workers=1)
    assert (report.unchanged, len(report.failed)) == (1, 2)


def test_each_kind_of_broken_adapter_has_its_reason(tmp_path: Path) -> None:
    broken = break_all(tmp_path / "broken")
    outcomes = {
        name: run_job(Job("encode", str(path), str(tmp_path / "out.nola"), {})) for name, path in broken.items()
    }
    assert [name for name, outcome in outcomes.items() if outcome.status != "failed"] == []
    assert len({outcome.code for outcome in outcomes.values()}) == len(broken) == 20
    assert [name for name, outcome in outcomes.items() if outcome.code in ("bug", "system")] == []
    assert not (tmp_path / "out.nola").exists()


def test_a_source_that_is_no_adapter_at_all_is_no_bug(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, code in (("pipe.safetensors", "unreadable"), ("nothing", "not-found")):
        outcome = run_job(Job("encode", str(tmp_path / name), str(tmp_path / "out.nola"), {}))
        assert (outcome.status, outcome.code) == ("failed", code)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": {"szie": "5KB"}}, "did you mean 'size'"),
        ({"encoding": {"ratio": -1}}, "ratio"),
        ({"encoding": {"fit": "task"}}, "fit"),
        ({"workers": 0}, "workers"),
        ({"retries": -1}, "retries"),
        ({"memory": "lots"}, "lots"),
        ({"engine": "spark"}, "local, ray"),
        ({"ray_address": "auto"}, "engine ray"),
        ({"wrokers": 2}, "did you mean 'workers'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options: dict[str, Any], message: str, loras: Path) -> None:
    with pytest.raises(NolaError, match=message) as error:
        encode(loras, loras.parent / "files", **options)
    assert error.value.code == "option"
    assert not (loras.parent / "files").exists()


@pytest.mark.parametrize(
    ("common", "own", "joined"),
    [
        ({"ratio": 4, "seed": 0, "thorough": False, "basis": "hadamard"}, {}, {"ratio": 4.0}),
        ({"size": "50KB", "seed": 1}, {}, {"size": 50_000, "seed": 1}),
        ({"size": "50KB", "seed": 1}, {"nmse": 0.1}, {"nmse": 0.1, "seed": 1}),
        ({"thorough": True}, {"thorough": False, "size": "many"}, {"size": "many"}),
    ],
)
def test_equal_options_are_the_same_however_they_are_given(
    common: dict[str, Any], own: dict[str, Any], joined: dict[str, Any]
) -> None:
    assert join_options(common, own) == joined
