"""What users do wrong, and the one sentence that they read."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nola_codec.cli import COMMANDS
from nola_codec.cli.messages import describe_error, describe_system_error, one_line, shorten_list
from nola_codec.errors import AdapterError, EncodeError, FormatError, OutputExists
from nola_codec.stores.files import atomic_directory, atomic_file

Run = Callable[..., Any]


def test_a_long_list_is_cut() -> None:
    items = [f"layer {i}" for i in range(24)]
    message = "24 parts do not fit:\n  " + "\n  ".join(items)
    assert shorten_list(message) == "24 parts do not fit: layer 0; layer 1; layer 2; and 21 more"
    assert shorten_list("1 part does not fit:\n  layer 0") == "1 part does not fit: layer 0"
    assert shorten_list("no list: here") == "no list: here"


def test_a_message_says_what_to_do_next() -> None:
    cut = FormatError("file length: expected 9, found 5", code="truncated", where="a.nola")
    assert describe_error(cut) == (
        "a.nola: file length: expected 9, found 5; the file was cut short; copy or download it again [truncated]"
    )
    assert describe_error(AdapterError("no LoRA in it", code="empty-adapter")) == "no LoRA in it [empty-adapter]"
    assert describe_error(EncodeError("nmse: expected 1, found 2", code="option")) == "nmse: expected 1, found 2"
    assert describe_error(OutputExists("already exists", where="a")) == "a: already exists; -f overwrites it"
    assert describe_error(OutputExists("a pipe", code="special-file", where="a")) == "a: a pipe"


def test_temporary_names_are_not_shown() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/usr/.task.nola.0123456789ab.tmp")
    assert describe_system_error(error) == "/usr/task.nola: Permission denied"
    missing = FileNotFoundError(errno.ENOENT, "No such file", "x/.task.nola.0123456789ab.tmp")
    assert describe_system_error(missing) == "x/task.nola: no such file or directory"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert describe_system_error(full) == "No space left on device; free some space, or write to another disk"


def test_standard_input_is_refused_by_its_name(run: Run) -> None:
    for command in ("verify", "inspect"):
        result = run(command, "-")
        assert result.status == 3
        assert "-: no such file or directory. Standard input is not read" in result.err


def test_several_files_get_the_command_that_takes_them(run: Run) -> None:
    result = run("verify", "a.nola", "b.nola")
    assert result.status == 2
    assert "`nola-codec verify-many` takes many" in result.err
    assert "unexpected extra argument" in run("inspect", "a.nola", "b.nola").err  # there is no inspect-many


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system does not say which one is full."""
    with (
        pytest.raises(OSError, match="No space") as caught,
        atomic_file(tmp_path / "a"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x")
    assert describe_system_error(caught.value).startswith(f"{tmp_path / 'a'}: No space left on device; free some")
    with pytest.raises(OSError, match="No space") as caught, atomic_directory(tmp_path / "b", replace=False):
        raise OSError(errno.EDQUOT, "No space in the quota")
    assert caught.value.filename == str(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_name_that_looks_like_a_repository_gets_the_url_to_type(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    hint = "; a repository of the Hugging Face Hub is hf://me/my-lora"
    for arguments in (["inspect", "me/my-lora"], ["encode", "me/my-lora", "-o", "x.nola"]):
        done = run(*arguments)
        assert done.status == 3
        assert done.err.startswith("nola-codec: me/my-lora: no such file")
        assert hint in done.err
    model = AdapterError("no such file", code="not-found", where="Qwen/Qwen2.5-0.5B/config.json")
    assert "is hf://Qwen/Qwen2.5-0.5B [not-found]" in describe_error(model)
    for path in ("my-lora", "models/my-lora", "files/task.nola", "/me/my-lora", "a/b/c"):  # these are paths
        assert "hf://" not in run("inspect", path).err


def test_a_question_is_not_asked_twice() -> None:
    asked = AdapterError("it lacks 3 tensors. Is it the adapter of another model?", code="base-mismatch")
    assert describe_error(asked) == f"{asked} [base-mismatch]"
    plain = AdapterError("it lacks 3 tensors", code="base-mismatch")
    assert describe_error(plain) == "it lacks 3 tensors; is this the right base model? [base-mismatch]"


def test_a_message_is_one_printable_line() -> None:
    assert one_line("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert len(one_line("x" * 1_000_000)) < 1000


@pytest.mark.parametrize("force", [[], ["-f"]], ids=["", "-f"])
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "full"])
def test_a_file_is_not_written_over_a_directory(
    empty: bool, force: list[str], run: Run, adapter: Path, encoded: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    if not empty:
        (tmp_path / "there" / "mine").write_text("mine")
    for arguments in (["encode", adapter], ["truncate", encoded]):
        done = run(*arguments, "-o", tmp_path / "there", *force)
        assert (done.status, done.out) == (2, "")
        assert done.err == (
            f"nola-codec: {tmp_path / 'there'}: expected the name of a file to write, found a directory; "
            "add a file name to it\n"
        )
    assert (tmp_path / "there" / "mine").exists() != empty


def test_a_misspelt_command_is_recognized(run: Run) -> None:
    done = run("encod", "x")
    assert (done.status, done.out) == (2, "")
    assert "No such command 'encod'. Did you mean 'encode'?" in done.err
    unlike = run("zzz")
    assert unlike.status == 2
    assert all(name in unlike.err for name in COMMANDS)
    assert "No such option '--bogus'" in run("--bogus").err


def test_a_damaged_file_is_named(run: Run, encoded: Path, tmp_path: Path) -> None:
    data = bytearray(encoded.read_bytes())
    data[-1] ^= 1
    encoded.write_bytes(data)
    words = f"{encoded}: file: SHA-256 of the content does not match; the file is damaged; copy or download it again"
    assert run("verify", encoded).out == f"bad   {words} [content-checksum]\n"
    for arguments in (["decode", encoded, "-o", tmp_path / "x"], ["compare", encoded, encoded]):
        assert run(*arguments).err == f"nola-codec: {words} [content-checksum]\n"


def test_a_weight_that_is_no_number(run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("merge", f"{encoded}:half", "--base", tmp_path, "-o", tmp_path / "x")
    assert done.status == 2
    assert "expected a number after the colon, found 'half'" in done.err
    missing = run("merge", f"{tmp_path / 'none'}:half", "--base", tmp_path, "-o", tmp_path / "x")
    assert (missing.status, "after the colon" in missing.err) == (3, False)


def test_decode_writes_no_nola_file(run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("decode", encoded, "-o", tmp_path / "x.nola")
    assert done.status == 2
    assert "what is decoded is no .nola file" in done.err
    assert not (tmp_path / "x.nola").exists()


@pytest.mark.parametrize("out", ["x", "x.safetensors"])
def test_a_nola_file_is_no_base_model(out: str, run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("decode", encoded, "--base", encoded, "-o", tmp_path / out)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"nola-codec: {encoded}: expected a model, found a .nola file")


def test_a_lone_base_is_named_as_the_user_did(run: Run, encoded: Path, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_text("surely not\n" * 9)
    done = run("decode", encoded, "--base", tmp_path / "base.safetensors", "-o", tmp_path / "x.safetensors")
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"nola-codec: {tmp_path / 'base.safetensors'}: not a safetensors file")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_dry_run_says_that_force_is_needed(run: Run, adapter: Path, encoded: Path) -> None:
    before = encoded.read_bytes()
    words = f"would write  {encoded} (it exists already, so -f is needed)"
    assert run("encode", adapter, "-n", "-o", encoded, "--nmse", 0.1).out.splitlines()[1] == words
    assert run("encode", adapter, "-n", "-f", "-o", encoded, "--nmse", 0.1).out.splitlines()[1] == words.split(" (")[0]
    assert encoded.read_bytes() == before


def test_rungs_that_were_left_out_are_told(run: Run, adapter: Path) -> None:
    said = run("encode", adapter, "-n", "--size", "1500B", "--rungs", "5KB")
    assert (said.status, "note: the file has no coarser rungs: " in said.err) == (0, True)
    kept = run("encode", adapter, "-n", "--nmse", "0.001", "--rungs", "1000B")
    assert (kept.status, "the file has" in kept.err) == (0, False)


@pytest.mark.parametrize("asked", [800, 1200])
def test_rungs_that_are_larger_than_asked_for_are_told(asked: int, run: Run, adapter: Path) -> None:
    done = run("encode", adapter, "-n", "--nmse", "0.001", "--rungs", asked, "--json")
    rung = done.json["rungs"][0]["bytes"]
    notes = [note for note in done.json["notes"] if note.startswith("coarser rungs are larger than asked for")]
    assert [f": {rung:,} bytes for {asked:,}; " in note for note in notes] == ([True] if rung > asked else [])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_closed_pipe_is_no_answer(encoded: Path) -> None:
    """Exit status 1 would mean that the file is damaged."""
    code = "from nola_codec.cli import main; main()"
    line = f'"$0" -c "{code}" verify "$1" | true; exit "${{PIPESTATUS[0]}}"'
    made = subprocess.run(
        ["bash", "-c", line, sys.executable, str(encoded)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (made.returncode, made.stdout, made.stderr) == (141, "", "")
