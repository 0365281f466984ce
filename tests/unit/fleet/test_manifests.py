"""The manifest of results survives kills, and manifests of sources are read strictly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nola_codec.errors import AdapterError, NolaError, OutputExists
from nola_codec.fleet.keywords import MANY_ENCODE_NAMES
from nola_codec.fleet.manifest import FORMATS, Manifest, read_manifest
from nola_codec.fleet.rows import Row
from nola_codec.fleet.source_manifest import read_source_manifest

ROW = Row(
    "a.nola", "/x/a", "done", bytes=10, nmse=float("nan"), notes=("one", "two"), stages={"read": 0.5}, reason="é\udcff"
)


@pytest.mark.parametrize("file_format", FORMATS)
def test_rows_come_back(file_format: str, tmp_path: Path) -> None:
    with Manifest(tmp_path, file_format=file_format) as manifest:
        manifest.record(Row("b.nola", "/x/b", "failed", code="zip"))
        manifest.record(Row("a.nola", "/x/a", "done", notes=("one",), stages={"read": 0.5}, bytes=3))
    assert manifest.path.name == f"manifest.{file_format}"
    rows = read_manifest(tmp_path)
    assert list(rows) == ["a.nola", "b.nola"]
    assert rows == manifest.rows


def test_changing_the_format_leaves_one_manifest(tmp_path: Path) -> None:
    for file_format in FORMATS:
        with Manifest(tmp_path, file_format=file_format) as manifest:
            manifest.record(Row(f"{file_format}.nola", "/x", "done"))
    assert [path.name for path in tmp_path.glob("manifest.*")] == ["manifest.jsonl"]
    assert len(read_manifest(tmp_path)) == 2


def test_numbers_that_are_none_and_text_that_is_no_unicode_are_kept_in_lines(tmp_path: Path) -> None:
    with Manifest(tmp_path, file_format="jsonl") as manifest:
        manifest.record(ROW)
    row = read_manifest(tmp_path)["a.nola"]
    assert (row.nmse, row.notes, row.reason) == (None, ROW.notes, ROW.reason)


def test_a_killed_run_loses_only_the_line_that_was_cut(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from nola_codec.fleet.manifest import Manifest\n"
        "from nola_codec.fleet.rows import Row\n"
        "with Manifest(Path(sys.argv[1]), file_format='jsonl') as manifest:\n"
        "    manifest.record(Row('a.nola', '/x/a', 'started'))\n"
        "    manifest.record(Row('a.nola', '/x/a', 'done', bytes=5))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    journal = tmp_path / ".fleet" / "journal.jsonl"
    assert not (tmp_path / "manifest.jsonl").exists()
    with journal.open("ab") as stream:
        stream.write(b'{"output":"b.nola","source":"/x/b","sta')
    with Manifest(tmp_path) as manifest:
        assert manifest.is_interrupted
        assert {name: (row.status, row.bytes) for name, row in manifest.rows.items()} == {"a.nola": ("done", 5)}
        manifest.record(Row("c.nola", "/x/c", "done"))
        assert sorted(read_manifest(tmp_path)) == ["a.nola", "c.nola"], "the new line is not glued to the one cut short"
    assert journal.read_bytes() == b""


def test_two_runs_do_not_write_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom nola_codec.fleet.manifest import Manifest\n"
        "with Manifest(Path(sys.argv[1])):\n    print('in', flush=True)\n    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OutputExists, match="another run") as error, Manifest(tmp_path):
            pass
        other.communicate("\n")
    assert error.value.code == "in-use"
    with Manifest(tmp_path):
        pass


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.parquet"])
def test_a_file_that_is_no_manifest_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 this is nothing\n")
    with pytest.raises(AdapterError) as error:
        read_manifest(tmp_path)
    assert error.value.code == "bad-manifest"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NolaError, match="parquet, jsonl"):
        Manifest(tmp_path, file_format="xlsx")


def sources_of(path: Path) -> list[tuple[str, str, bool, dict[str, object]]]:
    return [(s.path, s.name, s.is_named, dict(s.options)) for s in read_source_manifest(path, MANY_ENCODE_NAMES)]


def test_all_types_of_manifests_of_sources_say_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"source": "x/a.safetensors", "output": "deep/one", "size": "50KB", "scale": None, "thorough": True},
        {"source": "/y/b", "output": None, "size": None, "scale": 0.5, "thorough": None},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text(
        "source,output,size,scale,thorough,_mine\nx/a.safetensors,deep/one,50KB,,true,7\n/y/b,,,0.5,,\n"
    )
    wanted = [
        (str(tmp_path / "x" / "a.safetensors"), "deep/one", True, {"size": "50KB", "thorough": True}),
        ("/y/b", "b", False, {"scale": 0.5}),
    ]
    for name in ("list.jsonl", "list.parquet", "list.csv"):
        assert sources_of(tmp_path / name) == wanted, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", '{"source": "a", "szie": 3}', "did you mean 'size'"),
        ("l.jsonl", '{"output": "a"}', "column `source`"),
        ("l.jsonl", '{"source": "a"', "line 1: not valid JSON"),
        ("l.jsonl", "[1]", "not a JSON object"),
        ("l.jsonl", "", "no rows"),
        ("l.jsonl", '{"source": "a", "output": "../b"}', "row 1"),
        ("l.csv", "source\na,b\n", "more cells than columns"),
        ("l.parquet", "PAR1", "Parquet"),
        ("l.txt", "a\n", ".jsonl, .csv or .parquet"),
    ],
)
def test_a_bad_manifest_of_sources_says_what_is_wrong(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NolaError, match=message):
        read_source_manifest(tmp_path / name, MANY_ENCODE_NAMES)
