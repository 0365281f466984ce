"""Merges of any layout: the same bits for every number of shards, threads and rows at once; several files; resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_paths import PATHS

import nola_codec
from nola_codec.arrays import NUMPY
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.cli.merge import file_and_weight
from nola_codec.container.reader import open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError, OutputExists
from nola_codec.merger import merged_model
from nola_codec.merger.arithmetic.sum import delta_weight
from nola_codec.merger.journal import open_journal
from nola_codec.merger.merge_files import decode_source
from nola_codec.merger.request import MergeReport, UnmergeRequest
from nola_codec.merger.restored_model import write_restored_model
from nola_codec.merger.undo_file import read_undo
from nola_codec.stores.dtypes import from_float64, to_float64
from nola_codec.stores.safetensors_writer import SafetensorsWriter

SHAPES = {"q_proj": (96, 64), "v_proj": (32, 64), "down_proj": (64, 160)}


def make_adapter(folder: Path, seed: int, modules: dict[str, tuple[int, int]]) -> Path:
    """A PEFT directory of rank 4."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    state = {}
    for layer in range(3):
        for name, (out, into) in modules.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            state[f"{key}.lora_A.weight"] = rng.standard_normal((4, into), np.float32) * np.float32(0.05)
            state[f"{key}.lora_B.weight"] = rng.standard_normal((out, 4), np.float32) * np.float32(0.05)
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def make_base(
    folder: Path, shards: int, dtype: str, *, backwards: bool = False, rows: int = 1, layers: int = 3
) -> Path:
    """A model of `layers` blocks in so many files."""
    rng = np.random.default_rng(11)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((50, 64)) * 0.02}
    for layer in range(3):
        for name, (out, into) in SHAPES.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = rng.standard_normal((out, into)) * 0.02
    order = list(reversed(tensors)) if backwards else list(tensors)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    weight_map = {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        raw = {name: from_float64(tensors[name], dtype) for name in order[number::shards]}
        with (folder / file).open("wb") as stream:
            writer = SafetensorsWriter(stream, {n: (t.dtype, t.shape) for n, t in raw.items()}, {"format": "pt"})
            for name, tensor in raw.items():
                writer.write(name, tensor)
                weight_map[name] = file
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def files_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters that share q_proj, as directories and as `.nola` files."""
    folder = tmp_path_factory.mktemp("files")
    for number, modules in enumerate((("q_proj", "down_proj"), ("q_proj", "v_proj"))):
        adapter = make_adapter(folder / f"adapter{number}", number, {name: SHAPES[name] for name in modules})
        nola_codec.encode(adapter, folder / f"{number}.nola", nmse=0.02)
    return folder


@pytest.fixture
def files(files_once: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of these in the folder of the test: the two `.nola` files."""
    shutil.copytree(files_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "0.nola", tmp_path / "1.nola"


def contents(folder: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name).data for name in checkpoint.weights}


def by_definition(base: Path, sources: list[tuple[Path, float]]) -> dict[str, bytes]:
    """Whole tensors, one NumPy line a step of the specification."""
    checkpoint = Checkpoint(base)
    found = contents(base)
    totals: dict[str, Any] = {}
    for path, weight in sources:
        with open_container(str(path)) as container:
            decoder = Decoder(container, NUMPY)
            for record, factors in zip(decoder.header.pairs, decoder.decode_all(), strict=True):
                name = record.name.removeprefix("base_model.model.") + ".weight"
                delta = delta_weight(factors, record.kind, NUMPY) * weight
                totals[name] = totals[name] + delta if name in totals else delta
    for name, delta in totals.items():
        found[name] = from_float64(
            to_float64(checkpoint.read(name)) + (delta + 0.0), checkpoint.weights[name].dtype
        ).data
    return found


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_no_bit_depends_on_shards_threads_or_rows_at_once(
    dtype: str, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, bytes] = {}
    for number, (shards, backwards, threads, piece) in enumerate(
        [(1, False, 1, 1 << 21), (4, False, 2, 1 << 21), (4, True, 3, 1000), (1, True, 3, 1), (3, False, 2, 77_777)]
    ):
        base = make_base(tmp_path / f"base{number}", shards, dtype, backwards=backwards)
        monkeypatch.setenv("NOLA_THREADS", str(threads))
        monkeypatch.setenv("NOLA_KERNELS", PATHS[number % len(PATHS)])
        report = nola_codec.merge([files[0]], base, tmp_path / f"out{number}", piece_bytes=piece)
        assert report == MergeReport(tmp_path / f"out{number}", shards, 0, 6)
        wanted = wanted or by_definition(base, [(files[0], 1.0)])
        assert contents(report.output) == wanted
        nola_codec.decode(files[0], tmp_path / f"decoded{number}", base=base)
        for path in report.output.iterdir():
            assert path.read_bytes() == (tmp_path / f"decoded{number}" / path.name).read_bytes()


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_several_files_add_up_in_order(dtype: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", 2, dtype)
    for number, weights in enumerate([(0.7, 0.3), (1.0, 1.0), (-1.5, 0.1)]):
        sources = list(zip(files, weights, strict=True))
        report = nola_codec.merge(sources, base, tmp_path / f"out{number}")
        assert report.weights == 9
        assert contents(report.output) == by_definition(base, sources)


def test_the_function_is_not_hidden_by_the_package_of_its_name() -> None:
    code = "import nola_codec, nola_codec.merger.engine, nola_codec.api.opened; print(nola_codec.merge.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "nola_codec.api.merging"


def test_what_cannot_be_merged_says_so(files: tuple[Path, Path], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", 1, "F32")
    for sources, code in (
        ([tmp_path / "adapter0"], "not-nola"),
        ([tmp_path / "adapter0" / "adapter_model.safetensors"], "not-nola"),
        ([(files[0], float("nan"))], "merge-weight"),
        ([], "not-found"),
    ):
        with pytest.raises(AdapterError) as e:
            nola_codec.merge(sources, base, tmp_path / "out")
        assert e.value.code == code
    assert not (tmp_path / "out").exists()


def test_file_and_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b:2").write_text("")
    assert file_and_weight("a.nola:0.7") == ("a.nola", 0.7)
    assert file_and_weight("a.nola:-1e-2") == ("a.nola", -0.01)
    assert file_and_weight("a.nola") == ("a.nola", 1.0)
    assert file_and_weight("dir:x/a.nola") == ("dir:x/a.nola", 1.0)
    assert file_and_weight("C:a") == ("C:a", 1.0)
    assert file_and_weight("b:2") == ("b:2", 1.0)
    assert file_and_weight("b:2:3") == ("b:2", 3.0)


KILLED = """
import sys, nola_codec
nola_codec.merge([sys.argv[1]], sys.argv[2], sys.argv[3], piece_bytes=2048)
"""


def test_killed_at_random_moments_it_goes_on_and_ends_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    base = make_base(tmp_path / "base", 8, "BF16")
    nola_codec.merge([files[0]], base, tmp_path / "wanted")
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "wanted").iterdir()}
    out = tmp_path / "out"
    journal = tmp_path / ".out.partial" / "journal"
    resumed = 0
    for shards_first in rng.permutation(7)[:4]:  # killed after so many shards, and a random moment more
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(files[0]), str(base), str(out)])
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > shards_first):
            time.sleep(0.0005)
        time.sleep(float(rng.uniform(0, 0.003)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # it was faster than the signal
            assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
            continue
        report = nola_codec.merge([files[0]], base, out)
        resumed += report.resumed
        assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
        assert not journal.parent.exists()
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    assert resumed > 0


def interrupted(sources: list[Any], base: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a merge as Ctrl-C does, in its last shard."""
    real, calls = merged_model.add_rows, 0

    def stop(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setenv("NOLA_THREADS", "1")
        patch.setattr(merged_model, "add_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            nola_codec.merge(sources, base, out)


def test_a_stale_run_is_not_resumed(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = make_base(tmp_path / "base", 8, "BF16"), tmp_path / "out"
    shard = base / Checkpoint(base).shards[0]

    def again(*changed: Any, resumes: bool) -> None:
        interrupted([files[0]], base, out, monkeypatch)
        for change in changed:
            change()
        report = nola_codec.merge([files[0]], base, out, overwrite=True)
        assert (report.resumed > 0) is resumes
        assert contents(out) == by_definition(base, [(files[0], 1.0)])
        assert not (tmp_path / ".out.partial").exists()
        for path in out.iterdir():
            path.unlink()
        out.rmdir()

    def damage() -> None:
        for path in sorted((tmp_path / ".out.partial" / "files").glob("*.safetensors")):
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)

    def cut() -> None:
        journal = tmp_path / ".out.partial" / "journal"
        journal.write_bytes(journal.read_bytes()[:-5])

    again(resumes=True)
    again(damage, resumes=False)
    again(cut, resumes=True)
    again(lambda: os.utime(shard, ns=(1, 1)), resumes=False)
    interrupted([files[0]], base, out, monkeypatch)
    assert nola_codec.merge([(files[0], 0.5)], base, out).resumed == 0
    assert contents(out) == by_definition(base, [(files[0], 0.5)])


def test_what_is_in_the_way_is_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base", 1, "BF16"), tmp_path / "out"
    foreign = tmp_path / ".out.partial"
    foreign.mkdir()
    (foreign / "journal").write_text("dear diary\n")
    with pytest.raises(AdapterError) as e:
        nola_codec.merge([files[0]], base, out)
    assert e.value.code == "foreign-partial"
    assert (foreign / "journal").read_text() == "dear diary\n"
    (foreign / "journal").unlink()
    with open_journal(out, "other", replace=False) as journal:
        with pytest.raises(AdapterError) as e:
            nola_codec.merge([files[0]], base, out)
        assert e.value.code == "busy"
        (journal.files / "x").write_text("x")
    assert [path.name for path in out.iterdir()] == ["x"]
    with pytest.raises(OutputExists):
        nola_codec.merge([files[0]], base, out)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "unet_fp32.safetensors"])
def test_components_of_diffusers_and_lone_files(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base2", 1, "F16")
    wanted = by_definition(base, [(files[0], 1.0)])
    (base / "model.safetensors").rename(base / name)
    report = nola_codec.merge([files[0]], base, tmp_path / "out")
    assert sorted(path.name for path in report.output.iterdir()) == sorted(["config.json", name])
    assert contents(report.output) == wanted


@pytest.mark.parametrize(("dtype", "shards"), [("BF16", 3), ("F16", 1), ("F32", 2), ("F64", 1)])
def test_unmerged_to_the_byte(
    dtype: str, shards: int, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", shards, dtype)
    wanted = {path.name: path.read_bytes() for path in base.iterdir()}
    sources = [(files[0], 0.7), (files[1], 30.0)]  # the second turns many signs and exponents
    undo = []
    for threads, path in ((1, PATHS[0]), (3, PATHS[-1])):
        monkeypatch.setenv("NOLA_THREADS", str(threads))
        monkeypatch.setenv("NOLA_KERNELS", path)
        merged = tmp_path / f"merged{threads}"
        nola_codec.merge(sources, base, merged, keep_undo=True, piece_bytes=5000)
        undo.append((merged / "nola_undo.bin").read_bytes())
        assert contents(merged) == by_definition(base, sources)
        report = nola_codec.unmerge(sources, merged, tmp_path / f"back{threads}")
        assert (report.shards, report.weights) == (shards, 9)
        assert {path.name: path.read_bytes() for path in report.output.iterdir()} == wanted
    assert undo[0] == undo[1]


def test_what_cannot_be_unmerged_says_so(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, merged, out = make_base(tmp_path / "base", 1, "BF16"), tmp_path / "merged", tmp_path / "out"

    def refused(code: str, sources: list[Any]) -> None:
        with pytest.raises(AdapterError) as e:
            nola_codec.unmerge(sources, merged, out)
        assert e.value.code == code
        assert not out.exists()
        assert not (tmp_path / ".out.partial").exists()

    nola_codec.merge([files[0]], base, merged)
    refused("no-undo", [files[0]])
    nola_codec.merge([files[0]], base, merged, overwrite=True, keep_undo=True)
    refused("unmerge-files", [files[1]])
    refused("unmerge-files", [(files[0], 0.5)])
    weights = merged / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("unmerge-mismatch", [files[0]])
    weights.write_bytes(good)
    undo = merged / "nola_undo.bin"
    whole = undo.read_bytes()
    for place in (0, 20, len(whole) // 2, len(whole) - 60, len(whole) - 3):
        undo.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        refused("bad-undo", [files[0]])
    undo.write_bytes(whole[: len(whole) // 2])
    refused("bad-undo", [files[0]])
    undo.write_bytes(whole)
    nola_codec.unmerge([files[0]], merged, out)
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_an_undo_file_cannot_ask_for_a_delta_on_integers(files: tuple[Path, Path], tmp_path: Path) -> None:
    merged, out = tmp_path / "merged", tmp_path / "out"
    nola_codec.merge([files[0]], make_base(tmp_path / "base", 1, "BF16"), merged, keep_undo=True)
    weights = merged / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"BF16"', b'"I16" '))
    index = read_undo(merged)
    for tensor in index["shards"][weights.name]["tensors"].values():
        tensor[0] = "I16"
    with pytest.raises(AdapterError, match="a delta on I16") as e:
        write_restored_model(index, [decode_source(files[0], None, "cpu")], UnmergeRequest((), merged, out))
    assert e.value.code == "bad-undo"
    assert not out.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT of Transformers
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("options", [{"targets": ("lm_head", "q_proj"), "tie": True}, {"modules_to_save": ["norm"]}])
def test_ties_and_saved_modules_are_undone(options: dict[str, Any], make_case: Any, tmp_path: Path) -> None:
    case = make_case(**options)
    nola_codec.merge([case.encoded], case.base, tmp_path / "merged", keep_undo=True)
    nola_codec.unmerge([case.encoded], tmp_path / "merged", tmp_path / "back")
    for path in case.base.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() != (case.base / "model.safetensors").read_bytes()
