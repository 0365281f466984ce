"""The conformance kit is right about the package and about the reference decoder, and finds readers that are not."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conformance_kit import INVALID, KIT, MANIFEST
from costly_files import COSTLY
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nola_forge import ROOT
from reject_cases import CASES

import nola_codec
from nola_codec.errors import ChecksumMismatch

RUN = KIT / "run.py"
READER = """
import json, sys
for line in sys.stdin:
    path, *references = json.loads(line)
    entry = next(e for e in {entries!r} if path.endswith(e["file"]))
    print(json.dumps({answer}), flush=True)
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RUN, *map(str, command)], capture_output=True, text=True, check=False)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`tools/make_conformance.py` as a module."""
    for folder in (ROOT / "tools", KIT):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module("make_conformance")


def test_the_package_is_right() -> None:
    done = run("--batch", "--", sys.executable, ROOT / "tools" / "package_reader.py", "--batch")
    count = len(MANIFEST["valid"] + MANIFEST["invalid"])
    assert done.stdout == f"{count} of {count} files right\n"


def test_the_reference_decoder_is_right() -> None:
    done = run("--batch", "--skip", "limit", "--", sys.executable, KIT / "reference_reader.py", "--batch")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stdout


def test_a_reader_of_one_file_at_a_time_is_right() -> None:
    done = run("--only", "reference-", "--skip", "limit", "--", sys.executable, KIT / "reference_reader.py")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stdout


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"refused": "header"}', "refused (header), and it is valid"),
        ('{"rungs": []}', "rungs"),
        ('{"rungs": [{**r, "decoded_sha256": "00"} for r in entry["rungs"]]}', "decoded SHA-256 00"),
        ('{"rungs": [{**r, "tensors": {}} for r in entry["rungs"]]}', "is None, expected"),
        (
            '{"rungs": [{**r, "tensors": {**r["tensors"], "x": "1"}} for r in entry["rungs"]]}',
            "'x' is 1, expected None",
        ),
        ("[]", "not a JSON object"),
    ],
)
def test_a_wrong_reader_is_found(answer: str, said: str) -> None:
    entries = [entry for entry in MANIFEST["valid"] if "nmse" in entry["file"]]
    done = run(
        "--batch", "--only", "valid/nmse", "--", sys.executable, "-c", READER.format(entries=entries, answer=answer)
    )
    assert done.returncode == 1
    assert said in done.stdout
    assert done.stdout.endswith("0 of 1 files right\n")


def test_a_right_reader_may_leave_out_tensors() -> None:
    entries = [entry for entry in MANIFEST["valid"] if "nmse" in entry["file"]]
    answer = '{"rungs": [{"decoded_sha256": r["decoded_sha256"]} for r in entry["rungs"]]}'
    done = run(
        "--batch", "--only", "valid/nmse", "--", sys.executable, "-c", READER.format(entries=entries, answer=answer)
    )
    assert (done.returncode, done.stdout) == (0, "1 of 1 files right\n")


def test_a_reader_that_accepts_a_fault_or_names_another_is_found() -> None:
    entries = [INVALID["generator 0"]]
    for answer, said in (
        ('{"rungs": []}', "accepted"),
        ('{"refused": "limit"}', "refused for limit, expected generator"),
    ):
        reader = [sys.executable, "-c", READER.format(entries=entries, answer=answer)]
        done = run("--batch", "--only", "generator-0", "--", *reader)
        assert done.returncode == 1
        assert said in done.stdout
    assert run("--batch", "--any-code", "--only", "generator-0", "--", *reader).returncode == 0


def test_a_reader_that_fails_is_found() -> None:
    assert "exit status 3" in run("--only", "valid/nmse", "--", sys.executable, "-c", "raise SystemExit(3)").stdout
    done = run("--batch", "--only", "random-", "--", sys.executable, "-c", "")
    assert done.stdout.count("ended") == done.stdout.count("\n") - 1 > 1
    assert run("--", "no-such-program").returncode == 2


def test_files_are_those_of_the_list() -> None:
    entries = [*MANIFEST["valid"], *MANIFEST["invalid"]]
    for entry in entries:
        data = (KIT / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    there = {path.relative_to(KIT).as_posix() for folder in ("valid", "invalid") for path in (KIT / folder).iterdir()}
    assert sorted(entry["file"] for entry in entries) == sorted(there)
    assert INVALID.keys() == CASES.keys() | {name for name, costly in COSTLY.items() if not costly.inspect_only}
    assert all(INVALID[name]["code"] == case.code for name, case in CASES.items())
    assert sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file()) < 1_500_000


def test_one_of_the_signed_files_has_a_right_signature() -> None:
    right, wrong = ((KIT / "valid" / f"{name}.nola").read_bytes() for name in ("signed", "signed-wrongly"))
    public = Ed25519PublicKey.from_public_bytes(right[-96:-64])
    key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    nola_codec.verify(right, key=key)
    nola_codec.verify(wrong)
    with pytest.raises(ChecksumMismatch, match="signature"):
        nola_codec.verify(wrong, key=key)


def test_no_number_is_larger_than_a_double_holds() -> None:
    def numbers(value: Any) -> Any:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from numbers(item)
        elif isinstance(value, int | float):
            yield value

    for path in KIT.rglob("*.json"):
        for number in numbers(json.loads(path.read_text(encoding="utf-8"))):
            assert type(number) is int, path
            assert abs(number) <= 2**53, path


def test_the_page_names_all_answers() -> None:
    page = (KIT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+\.json)` \|", page.split("## Known answers")[1], re.M)) == {
        p.name for p in (KIT / "answers").iterdir()
    }
    specification = (ROOT / "spec" / "nola-v1.md").read_text(encoding="utf-8")
    for section in re.findall(r"\| ([A-Z][a-z ]+)(?:, codec \d)? \|$", page, re.M):
        assert f"\n## {section}\n" in specification, section


def test_a_file_of_the_kit_is_never_replaced(tools: ModuleType, tmp_path: Path) -> None:
    kit = tools.Kit(tmp_path, replace=False)
    kit.write("valid/a", b"old")
    kit.write("valid/a", b"old")
    assert kit.changed == []
    kit.write("valid/a", b"new")
    assert (kit.changed, (tmp_path / "valid" / "a").read_bytes()) == (["valid/a"], b"old")
    tools.Kit(tmp_path, replace=True).write("valid/a", b"new")
    assert (tmp_path / "valid" / "a").read_bytes() == b"new"


def test_files_of_a_released_format_are_never_replaced(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "VERSION", 1)
    monkeypatch.setattr(sys, "argv", ["make_conformance.py", "--replace"])
    with pytest.raises(SystemExit):
        tools.main()
    assert (KIT / "files.json").exists()
