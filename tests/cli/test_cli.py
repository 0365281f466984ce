"""Every command as a user meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from kernel_paths import COMPILED
from safetensors.numpy import load_file, save_file

from nola_codec import inspect
from nola_codec.cli import COMMANDS, group, main
from nola_codec.version import __version__

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Any]


def test_encode_writes_and_reports(run: Run, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.nola"
    done = run("encode", adapter, "-o", out, "--nmse", 0.1)
    assert (done.status, done.err) == (0, "")
    assert f"\nwrote        {out}\n" in done.out
    assert f"({out.stat().st_size:,} bytes)" in done.out
    assert re.search(r"NMSE +0\.0\d+", done.out)


def test_encode_json(run: Run, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.nola"
    done = run("encode", adapter, "-o", out, "--size", "1500B", "--json")
    assert (done.status, done.err) == (0, "")
    facts = done.json
    assert facts["bytes"] == out.stat().st_size <= 1500
    assert facts["source_bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
    assert facts["ratio"] == pytest.approx(2 * facts["parameters"] / facts["bytes"])
    assert facts["parameters"] == 2 * (4 * (64 + 48) + 4 * (33 + 48))
    assert facts["nmse"] > 0
    assert len(facts["tensors"]) == 4
    assert facts["seconds"]
    assert facts["output"] == str(out)


def test_a_ladder_from_encode_to_decode(run: Run, adapter: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "ladder.nola", tmp_path / "cut.nola"
    done = run("encode", adapter, "-o", whole, "--nmse", 0.001, "--rungs", "1000B")
    assert done.status == 0
    assert re.search(r"^rung 0 .*NMSE 0\.\d+$", done.out, re.MULTILINE)
    shown = run("inspect", whole).out
    assert re.search(r"^rung 1 +\d", shown, re.MULTILINE)
    facts = run("truncate", whole, "-o", cut, "--size", "1300B", "--json").json
    assert facts["bytes"] == cut.stat().st_size <= 1300
    assert (facts["rung"], facts["rungs"], facts["output"]) == (0, 2, str(cut))
    assert run("truncate", whole, "-o", cut, "--rung", 0).status == 2  # it is there
    printed = run("truncate", whole, "-o", cut, "--rung", 0, "-f").out
    assert f"({cut.stat().st_size:,} bytes)" in printed
    assert run("truncate", whole, "-o", cut, "--rung", 2, "-f").err.endswith("[unknown-rung]\n")
    assert run("verify", cut).status == 0
    run("decode", cut, "-o", tmp_path / "a.safetensors")
    run("decode", whole, "--rung", 0, "-o", tmp_path / "b.safetensors")
    run("decode", whole, "-o", tmp_path / "c.safetensors")
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all((a[key] == b[key]).all() for key in a)
    assert any((a[key] != c[key]).any() for key in a)


def test_encode_dry_run_writes_nothing(run: Run, adapter: Path, tmp_path: Path) -> None:
    done = run("encode", adapter, "-o", tmp_path / "x.nola", "--nmse", 0.1, "-n")
    assert done.status == 0
    assert f"\nwould write  {tmp_path / 'x.nola'}\n" in done.out
    assert (
        run("encode", adapter, "-o", tmp_path / "x.nola", "--nmse", 0.1, "--dry-run", "--json").json["output"] is None
    )
    without = run("encode", adapter, "--nmse", 0.1, "-n")
    assert without.status == 0
    assert without.out.splitlines()[1] == "dry run      nothing is written"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def pipe(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, so that stdout takes bytes."""
    command = [sys.executable, "-m", "nola_codec", *(str(a) for a in arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)


def test_a_dash_is_standard_output(run: Run, adapter: Path, tmp_path: Path) -> None:
    whole = tmp_path / "a.nola"
    assert run("encode", adapter, "-o", whole, "--nmse", 0.01, "--rungs", "1000B").status == 0
    made = pipe("encode", adapter, "-o", "-", "--nmse", 0.01, "--rungs", "1000B")
    assert (made.returncode, made.stdout) == (0, whole.read_bytes())
    assert b"\nwrote        standard output\n" in made.stderr
    assert run("truncate", whole, "-o", tmp_path / "cut.nola", "--rung", 0).status == 0
    cut = pipe("truncate", whole, "-o", "-", "--rung", 0, "--json")
    assert (cut.returncode, cut.stdout) == (0, (tmp_path / "cut.nola").read_bytes())
    assert json.loads(cut.stderr)["rung"] == 0
    assert run("decode", whole, "-o", tmp_path / "a.safetensors").status == 0
    decoded = pipe("decode", whole, "-o", "-")
    assert (decoded.returncode, decoded.stdout) == (0, (tmp_path / "a.safetensors").read_bytes())
    assert decoded.stderr.startswith(b"note: a lone file does not hold adapter_config.json")
    assert run("decode", whole, "--base", adapter, "-o", "-").status == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nola", "a.safetensors", "adapter", "cut.nola"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_binary_data_is_not_written_to_a_terminal(run: Run, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(SystemExit, match="2"):
        main(["encode", str(adapter), "-o", "-", "--nmse", "0.1"])


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--num-basis", "50", "--bits", "2", "--rank", "2"], {"form": ["factor"], "coefficients": 400}),
        (["--num-basis", "20", "--basis", "rademacher"], {"bases": ["rademacher"]}),
        (["--seed", "77"], {"seed": 77}),
        (["--ratio", "5", "--objective", "nmse", "--shared-basis"], {"form": ["component"]}),
        (["--error", "0.2"], {"bases": ["hadamard"]}),
        ([], {"draft": True, "base_model": "nobody/model"}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_options_reach_the_file(
    options: list[str], facts: dict[str, Any], run: Run, adapter: Path, tmp_path: Path
) -> None:
    assert run("encode", adapter, "-o", tmp_path / "x.nola", *options).status == 0
    found = run("inspect", tmp_path / "x.nola", "--json").json
    assert {key: found[key] for key in facts} == facts
    assert run("verify", tmp_path / "x.nola").status == 0


def test_unknown_tensors_are_carried(run: Run, adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file({**load_file(weights), "surprise": np.arange(3)}, weights)
    refused = run("encode", adapter, "-o", tmp_path / "x.nola")
    assert refused.status == 3
    assert "surprise" in refused.err
    assert run("encode", adapter, "-o", tmp_path / "x.nola", "--carry-unknown").status == 0
    assert "1 carried as they came" in run("inspect", tmp_path / "x.nola").out
    other = run("compare", adapter, tmp_path / "x.nola")
    assert other.status == 3  # compare has no --carry-unknown: it refuses what encode would refuse


def test_decode(run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("decode", encoded, "-o", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"wrote  {tmp_path / 'out'} (")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    facts = run("decode", encoded, "-o", tmp_path / "out16", "--dtype", "f16", "--json").json
    assert facts["output"] == str(tmp_path / "out16")
    assert facts["merged"] is False
    assert facts["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out16").iterdir())
    assert facts["seconds"] > 0
    assert run("decode", encoded, "-o", tmp_path / "out.safetensors").status == 0
    assert (
        load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "out/adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize("device", ["numpy", "meta"])
def test_a_device_changes_no_bit_or_is_refused(
    device: str, run: Run, encoded: Path, base: Path, tmp_path: Path
) -> None:
    run("decode", encoded, "-o", tmp_path / "out")
    run("merge", encoded, "--base", base, "-o", tmp_path / "merged", "--keep-undo")
    for name, weights, command in (
        ("out", "adapter_model.safetensors", ["decode", encoded]),
        ("merged", "model.safetensors", ["merge", encoded, "--base", base]),
    ):
        done = run(*command, "-o", tmp_path / f"{name}2", "--device", device)
        if device == "numpy":
            assert done.status == 0
            assert (tmp_path / f"{name}2" / weights).read_bytes() == (tmp_path / name / weights).read_bytes()
        else:
            assert done.status == 2
    back = run("merge", encoded, "--unmerge", tmp_path / "merged", "-o", tmp_path / "back", "--device", device)
    assert back.status == (0 if device == "numpy" else 2)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory with the weights that the adapter needs and one more, in float16."""
    directory = tmp_path / "base"
    directory.mkdir()
    shapes = {
        f"model.layers.{n}.self_attn.{p}.weight": (o, 48) for n in (0, 1) for p, o in (("q_proj", 64), ("v_proj", 33))
    }
    weights = {name: np.ones(shape, np.float16) for name, shape in shapes.items()} | {"other": np.ones(3, np.float32)}
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def test_decode_into_a_base(run: Run, encoded: Path, base: Path, tmp_path: Path) -> None:
    facts = run("decode", encoded, "-o", tmp_path / "merged", "--base", base, "--json").json
    assert facts["merged"] is True
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in merged.items()} == {
        name: tensor.dtype for name, tensor in load_file(base / "model.safetensors").items()
    }
    assert (merged["other"] == 1).all()
    assert not (merged["model.layers.0.self_attn.q_proj.weight"] == 1).all()


def test_merge_and_unmerge(run: Run, encoded: Path, base: Path, tmp_path: Path) -> None:
    run("decode", encoded, "-o", tmp_path / "one", "--base", base)
    facts = run("merge", encoded, "--base", base, "-o", tmp_path / "merged", "--keep-undo", "--json").json
    assert (facts["merged"], facts["resumed"], facts["shards"], facts["weights"]) == (True, 0, 1, 4)
    weights = "model.safetensors"
    assert (tmp_path / "merged" / weights).read_bytes() == (tmp_path / "one" / weights).read_bytes()
    run("decode", encoded, "--unmerge", tmp_path / "merged", "-o", tmp_path / "back")
    assert (tmp_path / "back" / weights).read_bytes() == (base / weights).read_bytes()
    assert run("merge", f"{encoded}:0.5", encoded, "--base", base, "-o", tmp_path / "two").status == 0
    assert (tmp_path / "two" / weights).read_bytes() != (tmp_path / "one" / weights).read_bytes()
    done = run("merge", encoded, "--unmerge", tmp_path / "one", "-o", tmp_path / "none")
    assert done.status == 3
    assert done.err.rstrip().endswith("[no-undo]")
    for wrong in (["--base", base, "--unmerge", base], ["--keep-undo"], ["--device", "numpy"],
                  ["--unmerge", base, "--keep-undo"]):  # fmt: skip
        assert run("merge", encoded, "-o", tmp_path / "none", *wrong).status == 2
    assert run("decode", encoded, "-o", tmp_path / "none", "--keep-undo").status == 2


def test_a_base_that_does_not_fit(run: Run, encoded: Path, base: Path, tmp_path: Path) -> None:
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((64, 48), np.float16)}, base / "model.safetensors")
    done = run("decode", encoded, "-o", tmp_path / "merged", "--base", base)
    assert (done.status, done.out) == (3, "")
    for name in ("0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"):
        assert f"model.layers.{name}" in done.err
    assert done.err.startswith("nola-codec: 3 parts of the adapter do not fit")
    assert done.err.rstrip().endswith("[base-mismatch]")
    assert not (tmp_path / "merged").exists()


def test_inspect(run: Run, encoded: Path) -> None:
    done = run("inspect", encoded)
    assert (done.status, done.err) == (0, "")
    for words in ("nobody/model", "a draft", "4 deltas", "philox4x32-10, seed 0", "NMSE"):
        assert words in done.out
    assert "q_proj" not in done.out
    listed = run("inspect", encoded, "--tensors").out
    assert done.out.startswith(f"{inspect(encoded).verdict}\n")
    assert "\nall names begin with base_model.model.model.layers.\n" in listed
    assert len(re.findall(r"\d+x48 +4 +\d +[\d,]+  \d\.self_attn\.[qv]_proj\n", listed)) == 4
    assert run("inspect", encoded, "--json").json["tensors"] == 4
    facts = run("inspect", encoded, "--tensors", "--json").json
    assert {t["name"].rpartition(".")[2] for t in facts["tensors"]} == {"q_proj", "v_proj"}
    assert facts["bytes"] == encoded.stat().st_size


def test_a_file_of_the_default_objective_explains_its_nmse(run: Run, adapter: Path, tmp_path: Path) -> None:
    done = run("encode", adapter, "-o", tmp_path / "x.nola", "--error", 0.3)
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert re.match(r"[\d.]+ (KB|B), [\d.]+x smaller than fp16; expect .* of the adapter's gain\n", done.out)
    assert lines["expectation"].endswith(" as 2 text tasks had with files of this error")
    assert lines["NMSE"].endswith("(of the weights: noise, mostly, which models hardly see)")
    assert float(lines["NMSE"].split()[0]) > 0.9
    shown = run("compare", adapter, tmp_path / "x.nola").out.splitlines()
    assert shown[0].endswith("over 4 deltas: noise, mostly, which models hardly see")
    assert 0.6 < float(shown[1].split()[1]) < 1.2
    run("decode", tmp_path / "x.nola", "-o", tmp_path / "again")
    plain = run("compare", adapter, tmp_path / "again").out.splitlines()
    assert plain[0].endswith("over 4 deltas")  # nobody knows what another adapter differs by
    assert plain[1] == shown[1]


def test_without_a_target_the_report_says_which_one_was_taken(run: Run, adapter: Path) -> None:
    assert "\ntarget       none was given: keep 98% of the signal (--error 0.02)\n" in run("encode", adapter, "-n").out
    given = run("encode", adapter, "-n", "--error", 0.005)
    assert "target  " not in given.out
    assert "\nexpectation  no visible loss, as 2 text tasks had with files of this error\n" in given.out
    facts = run("encode", adapter, "-n", "--json").json
    assert facts["is_default_target"] is True
    assert len(facts["expectation"]["kept"]) == 2


def test_the_screen_is_80_columns_wide(run: Run, adapter: Path, tmp_path: Path) -> None:
    run("encode", adapter, "-o", tmp_path / "x.nola", "--size", "1500B", "--rungs", "1KB")
    outputs = [
        run("encode", adapter, "-n").out, run("encode", adapter, "-n", "--error", 0.9).out,
        run("inspect", tmp_path / "x.nola", "--tensors").out, run("compare", adapter, tmp_path / "x.nola").out,
        run("compare", adapter, tmp_path / "x.nola", "--per-tensor").out, run("sweep", adapter, "--sizes", "1KB").out,
    ]  # fmt: skip
    lines = [line for out in outputs for line in out.splitlines() if str(tmp_path) not in line]
    assert [line for line in lines if len(line) > 80] == []
    assert max(map(len, lines)) == 80  # the line of the SHA-256
    assert len(lines) > 40


def test_verify(run: Run, encoded: Path, tmp_path: Path) -> None:
    done = run("verify", encoded)
    assert (done.status, done.err) == (0, "")
    facts = run("verify", encoded, "--json").json
    assert facts["ok"] is True
    names = ("file", "content", "decoded")
    assert [done.out.splitlines()[1 + i].split() for i in range(3)] == [
        [name, "SHA-256", facts[f"{name}_sha256"]] for name in names
    ]
    assert facts["file_sha256"] == hashlib.sha256(encoded.read_bytes()).hexdigest()
    assert facts["decoded_sha256"] == run("inspect", encoded, "--json").json["decoded_sha256"]
    data = bytearray(encoded.read_bytes())
    data[-12] ^= 1
    bad = tmp_path / "bad.nola"
    bad.write_bytes(data)
    refused = run("verify", bad)
    assert refused.status == 1
    assert refused.out.startswith("bad   ")
    found = run("verify", bad, "--json")
    assert (found.status, found.json["ok"]) == (1, False)
    assert found.json["code"]
    bad.write_bytes(data[:100])
    assert run("verify", bad, "--json").json["code"] == "truncated"
    assert run("inspect", bad).status == 3
    assert run("decode", bad, "-o", tmp_path / "out").status == 3
    assert not (tmp_path / "out").exists()


def test_compare(run: Run, adapter: Path, encoded: Path) -> None:
    done = run("compare", adapter, encoded)
    assert (done.status, done.err) == (0, "")
    facts = run("compare", adapter, encoded, "--json").json
    assert facts["ok"] is True
    assert 0.09 < facts["nmse"] <= 0.1
    assert facts["nmse"] == pytest.approx(run("inspect", encoded, "--json").json["measured"]["nmse"], rel=1e-6)
    assert sorted(map(tuple, (t["shape"] for t in facts["tensors"]))) == [(33, 48), (33, 48), (64, 48), (64, 48)]
    assert all(0 < t["nmse"] < 1 for t in facts["tensors"])
    listed = run("compare", adapter, encoded, "--per-tensor").out.splitlines()
    rows = [float(line.split()[0]) for line in listed if re.match(r"\d.*x48 ", line)]
    assert len(rows) == 4
    assert rows == sorted(rows, reverse=True)
    assert run("compare", adapter, encoded, "--max-nmse", 0.05).status == 1
    assert run("compare", adapter, encoded, "--max-nmse", 0.2).status == 0


def test_compare_says_no_to_other_weights(run: Run, adapter: Path, encoded: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "layers.1" not in k}, weights)
    done = run("compare", adapter, encoded)
    assert done.status == 1
    assert done.out.count("only in B: ") == 2
    assert run("compare", adapter, encoded, "--json").json["ok"] is False


def test_selftest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("selftest")
    assert (done.status, done.err) == (0, "")
    assert done.out.count(", PyTorch  ") == done.out.count(", NumPy  ") == 5
    assert done.out.count("ok  ") == 10 + done.out.count(" kernels  ")
    assert done.out.count(" kernels  ") == (5 if COMPILED else 0)
    assert done.out.startswith(f"kernels: {COMPILED[-1]}\n" if COMPILED else "kernels: none, NumPy computes: ")
    facts = run("selftest", "--device", "numpy", "--json").json
    assert facts["ok"] is True
    assert [c["passed"] for c in facts["checks"]] == [True] * 5
    monkeypatch.setenv("NOLA_KERNELS", "off")
    assert run("selftest", "--json").json["kernels"] == {"variant": None, "reason": "NOLA_KERNELS=off"}
    monkeypatch.setenv("NOLA_KERNELS", "bogus")
    refused = run("selftest")
    assert (refused.status, refused.out) == (3, "")
    assert "NOLA_KERNELS" in refused.err
    monkeypatch.delenv("NOLA_KERNELS")
    from nola_codec.api import selftest as module

    monkeypatch.setitem(module._EXPECTED, "hadamard basis", "0" * 64)
    wrong = run("selftest", "--device", "numpy")
    assert wrong.status == 1
    assert wrong.out.count("FAIL") == 1


@pytest.mark.parametrize("json_", [False, True])
def test_nothing_is_overwritten_unasked(json_: bool, run: Run, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    extra = ["--json"] if json_ else []
    for arguments in (["encode", adapter], ["decode", encoded]):
        refused = run(*arguments, "-o", tmp_path / "mine", *extra)
        assert (refused.status, refused.out) == (2, "")
        assert refused.err == f"nola-codec: {tmp_path / 'mine'}: already exists; -f overwrites it\n"
        assert (tmp_path / "mine").read_text() == "mine"
    assert run("encode", adapter, "-o", tmp_path / "mine", "-f").status == 0
    assert run("verify", tmp_path / "mine").status == 0
    assert run("decode", encoded, "-o", tmp_path / "mine", "--force").status == 0
    assert (tmp_path / "mine" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["bogus"], ["encode"], ["encode", "ADAPTER"], ["encode", "ADAPTER", "-o", "x", "--bogus"],
        ["encode", "ADAPTER", "-o", "x", "--nmse", "0.1", "--size", "5KB"],
        ["encode", "ADAPTER", "-o", "x", "--nmse", "2"],
        ["encode", "ADAPTER", "-o", "x", "--nmse", "much"], ["encode", "ADAPTER", "-o", "x", "--size", "5XB"],
        ["encode", "ADAPTER", "-o", "x", "--basis", "fourier"], ["encode", "ADAPTER", "-o", "x", "--basis", "uniform"],
        ["encode", "ADAPTER", "-o", "x", "--bits", "9"], ["encode", "ADAPTER", "-o", "x", "--seed", "-1"],
        ["decode", "FILE"], ["decode", "FILE", "-o", "x", "--dtype", "f64"],
        ["decode", "FILE", "-o", "x", "--base", "b", "--dtype", "f16"],
        ["decode", "FILE", "-o", "x", "--device", "abacus"],
        ["inspect"], ["inspect", "FILE", "FILE"], ["verify"], ["compare", "FILE"], ["selftest", "--device", "abacus"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(arguments: list[str], run: Run, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    names = {"ADAPTER": adapter, "FILE": encoded, "x": tmp_path / "x"}
    done = run(*(names.get(a, a) for a in arguments))
    assert (done.status, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_may_not_be_read_is_no_wrong_usage(name: str) -> None:
    """Click checks that unless it is told not to, and ends with the status of wrong usage."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    paths = [parameter.type for parameter in command.params if isinstance(parameter.type, click.Path)]
    assert not any(path.readable or path.exists for path in paths)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "NOWHERE", "-o", "x"], "no such file"),
        (["encode", "pickle.bin", "-o", "x"], "pickle"),
        (["encode", "text.safetensors", "-o", "x"], "text.safetensors"),
        (["encode", "EMPTY", "-o", "x"], "adapter_model.safetensors"),
        (["encode", "ADAPTER", "-o", "x", "--size", "20B"], "cannot be reached"),
        (["encode", "ADAPTER", "-o", "no/such/x"], "no such"),
        (["decode", "NOWHERE", "-o", "x"], "no such file"),
        (["decode", "text.safetensors", "-o", "x"], "not a .nola file"),
        (["decode", "FILE", "-o", "x", "--base", "NOWHERE"], "NOWHERE"),
        (["decode", "FILE", "-o", "x", "--base", "ADAPTER"], "this is an adapter"),
        (["inspect", "NOWHERE"], "no such file"),
        (["inspect", "text.safetensors"], "not a .nola file"),
        (["inspect", "EMPTY"], "EMPTY"),
        (["verify", "NOWHERE"], "no such file"),
        (["compare", "ADAPTER", "NOWHERE"], "no such file"),
        (["compare", "text.safetensors", "FILE"], "text.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_input_refused(
    arguments: list[str], words: str, run: Run, adapter: Path, encoded: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Path("pickle.bin").write_bytes(b"\x80\x02}q\x00.")
    Path("text.safetensors").write_text("surely not\n" * 9)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    names = {"ADAPTER": adapter, "FILE": encoded}
    done = run(*(names.get(a, a) for a in arguments))
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("nola-codec: ")
    assert words in done.err
    assert "Traceback" not in done.err
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [["decode", "-o", "x"], ["inspect"], ["verify"], ["truncate", "-o", "x"]], ids=" ".join
)
def test_an_adapter_is_not_a_nola_file(command: list[str], run: Run, adapter: Path, tmp_path: Path) -> None:
    name, *options = (str(tmp_path / "x") if word == "x" else word for word in command)
    for given in (adapter, adapter / "adapter_model.safetensors"):
        done = run(name, given, *options)
        assert (done.status, done.out) == (3, "")
        assert "is an adapter, not a .nola file; use `nola-codec encode` [not-nola]" in done.err
    assert not (tmp_path / "x").exists()


def test_our_own_bugs_are_told_apart(run: Run, encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec.api import inspecting

    def broken(source: object) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(inspecting, "inspect", broken)
    done = run("inspect", encoded)
    assert (done.status, done.out) == (70, "")
    assert "KeyError: 'oops'" in done.err
    assert done.err.endswith("this is a bug in nola-codec; please report it with the lines above\n")


@pytest.mark.parametrize("command", ["inspect", "verify", "encode"])
def test_torch_is_not_loaded(command: str, adapter: Path, encoded: Path, tmp_path: Path) -> None:
    arguments = (
        [str(adapter), "-o", str(tmp_path / "y.nola"), "--nmse", "0.1"] if command == "encode" else [str(encoded)]
    )
    code = (
        "import sys\n"
        "from nola_codec.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "print('loaded:', sorted({'torch', 'transformers', 'peft', 'hypothesis'} & set(sys.modules)))\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "loaded: []"
    assert made.stderr == ""


def test_the_module_runs() -> None:
    for module in ("nola_codec", "nola_codec.cli"):
        made = subprocess.run([sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True)
        assert (made.returncode, made.stdout) == (0, f"nola-codec, version {__version__}\n")


def test_help(run: Run) -> None:
    for flag in ("-h", "--help"):
        done = run(flag)
        assert done.status == 0
        assert all(f"  {name} " in done.out for name in COMMANDS)
    assert run("--version").out == f"nola-codec, version {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str, run: Run) -> None:
    done = run(name, "-h")
    assert done.status == 0
    for heading in ("\nOutput options:\n", "\nExamples:\n", "\nExit status:\n  0    done\n"):
        if name not in ("selftest", "view") or "Output" not in heading:  # they write nothing
            assert heading in done.out
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:  # hidden ones only say what took their place
            assert all(flag in done.out for flag in option.opts), option.opts
            assert getattr(option, "help", None), f"{option.name} has no help"
            assert getattr(option, "group", None), f"{option.name} has no group"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    """Every example of `--help` is a call that the command accepts."""
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    examples = getattr(command, "examples")  # noqa: B009
    assert examples
    for _, line in examples:
        words = ["cpu" if word == "cuda" else word for word in shlex.split(re.split(r" [|>] ", line)[0])]
        assert words[:2] == ["nola-codec", name] or name != words[1] in COMMANDS
        other = group.get_command(None, words[1])  # type: ignore[arg-type]
        assert other is not None
        values = other.make_context(words[1], words[2:], resilient_parsing=False).params
        assert values


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no")])
def test_shell_completion(shell: str, words: str) -> None:
    made = subprocess.run(
        [sys.executable, "-c", "from nola_codec.cli import main; main()"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "_NOLA_CODEC_COMPLETE": f"{shell}_source"}, timeout=60,
    )  # fmt: skip
    assert words in made.stdout
    assert made.stderr == ""


def test_a_line_whose_options_exclude_one_another_is_completed() -> None:
    words = {"COMP_WORDS": "nola-codec encode my_lora --size 3KB --ratio 3 --object", "COMP_CWORD": "7"}
    made = subprocess.run(
        [sys.executable, "-c", "from nola_codec.cli import main; main()"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "_NOLA_CODEC_COMPLETE": "bash_complete", **words}, timeout=60, check=False,
    )  # fmt: skip
    assert (made.stdout, made.stderr) == ("plain,--objective\n", "")


def test_another_version_is_not_called_noise(run: Run, adapter: Path, tmp_path: Path) -> None:
    """The error of a file of A is mostly noise, but a file of another training differs in what it learned."""
    stronger = tmp_path / "stronger"
    stronger.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {key: value * (1.4 if "lora_B" in key else 1) for key, value in tensors.items()}
    save_file(changed, stronger / "adapter_model.safetensors", metadata={"format": "pt"})
    (stronger / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    assert run("encode", stronger, "-o", tmp_path / "s.nola", "--size", "500B", "-q").status == 0
    compared = run("compare", adapter, tmp_path / "s.nola")
    facts = run("compare", adapter, tmp_path / "s.nola", "--json").json
    assert facts["signal"] > 1.25
    assert facts["nmse"] > max(0.3, 3 * (1 - facts["signal"]) ** 2)
    assert "noise" not in compared.out


def test_sentences_of_examples_are_comments_on_every_line(run: Run) -> None:
    for name in COMMANDS:
        shown = run(name, "--help").out.split("Examples:\n")[1].split("Exit status:")[0].splitlines()
        assert all(line.startswith(("  # ", "  nola-codec ")) for line in shown if line), name
