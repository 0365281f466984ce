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
from nola_codec.cli.encode import _describe_saved
from nola_codec.cli.messages import describe_error, describe_system_error, one_line, shorten_list
from nola_codec.errors import AdapterError, EncodeError, FormatError, OutputExists
from nola_codec.integrations.text_rows import read_rows
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
    assert describe_system_error(missing) == "x/task.nola: no such file or directory [not-found]"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert describe_system_error(full) == "No space left on device; free some space, or write to another disk"


def test_standard_input_is_refused_by_its_name(run: Run) -> None:
    for arguments in (("verify", "-"), ("inspect", "-"), ("encode", "-", "-n")):
        result = run(*arguments)
        assert result.status == 3
        assert "-: no such file or directory; standard input is not read" in result.err


def test_a_missing_file_is_said_in_one_way(run: Run, encoded: Path) -> None:
    for arguments in (("inspect", "nope"), ("encode", "nope", "-n"), ("report", encoded, "--json", "--eval", "nope"),
                      ("encode-many", "--manifest", "nope", "-o", "x")):  # fmt: skip
        assert run(*arguments).err == "nola-codec: nope: no such file or directory [not-found]\n"
    with pytest.raises(EncodeError, match=r"^nope: no such file or directory$") as caught:
        read_rows("nope", 1)
    assert caught.value.code == "not-found"


def test_an_output_below_a_file(run: Run, adapter: Path, encoded: Path) -> None:
    result = run("encode", adapter, "-o", encoded / "x" / "y.nola")
    assert (result.status, result.err) == (2, f"nola-codec: {encoded}: expected a directory, found a file\n")


def test_a_damaged_file_is_named_once(run: Run, encoded: Path, tmp_path: Path) -> None:
    data = bytearray(encoded.read_bytes())
    data[-50] ^= 1
    encoded.write_bytes(data)
    result = run("report", encoded, "-o", tmp_path / "page.html")
    assert (result.status, result.err.count(str(encoded))) == (3, 1)
    many = run("verify-many", encoded, "--workers", 1, "-q")
    assert (many.status, many.out.count(str(encoded))) == (1, 1)


def test_one_of_base_and_unmerge(run: Run, encoded: Path) -> None:
    result = run("decode", encoded, "--unmerge", "merged", "--base", "model", "-o", "x")
    assert result.err.endswith("Error: give either --base or --unmerge, not both\n")


def test_a_merged_model_has_the_name_of_a_directory(run: Run, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    result = run("merge", encoded, "--base", tmp_path, "-o", out)
    assert result.status == 2
    assert "a model is written as a directory; give a name that does not end in .safetensors" in result.err
    assert not out.exists()


def test_a_missing_configuration_is_to_be_put_back(run: Run, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    refused = run("encode", adapter, "-n")
    assert "put it back, or give the scaling (alpha / r) with --scale [missing-config]" in refused.err
    report = run("encode", adapter, "-n", "--scale", 2, "--json").json
    assert (report["scalings"], report["scale_origin"]) == ([2.0], "option")


def test_a_file_without_rungs_cannot_be_cut(run: Run, encoded: Path, tmp_path: Path) -> None:
    result = run("truncate", encoded, "-o", tmp_path / "x.nola", "--size", "100B")
    assert result.status == 3
    assert "the file is not progressive" in result.err
    assert result.err.endswith("`encode --progressive` makes files that can be cut [not-progressive]\n")


def test_what_is_whole_of_a_cut_file_can_be_kept(run: Run, adapter: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "p.nola", tmp_path / "cut.nola"
    run("encode", adapter, "-o", whole, "--size", "1500B", "--rungs", "600B")
    cut.write_bytes(whole.read_bytes()[:-100])
    result = run("decode", cut, "-o", tmp_path / "out")
    assert "; `nola-codec truncate` keeps the coarsest rung, which is whole; the file was cut short" in result.err
    assert run("truncate", cut, "-o", tmp_path / "rung.nola").status == 0
    cut.write_bytes(whole.read_bytes()[:250])
    assert "`nola-codec truncate`" not in run("decode", cut, "-o", tmp_path / "out").err


def test_rounding_is_told(run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("decode", encoded, "-o", tmp_path / "out", "--dtype", "bf16", "--trim")
    assert "note: the factors are rounded to bf16; f32, the default, has them exactly" in done.err


def test_what_an_interrupted_training_saved(tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.nola.training"
    assert _describe_saved(checkpoint) == _describe_saved(None) == "nothing was saved yet: the same command begins anew"
    Path(f"{checkpoint}-samples").touch()
    assert "nothing was trained yet" in _describe_saved(checkpoint)
    checkpoint.touch()
    assert _describe_saved(checkpoint).endswith("the same command goes on from there")


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
