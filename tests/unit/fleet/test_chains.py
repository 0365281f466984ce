"""`encode_many(chain=True)`: the checkpoints of a run, each coded against the one before it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_adapters import make_tensors, write_adapter
from safetensors.numpy import load_file, save_file

import nola_codec
from nola_codec import FleetReport
from nola_codec.errors import EncodeError, NolaError
from nola_codec.fleet.chains import chain_names

STEPS = (5, 10, 100)


def write_run(folder: Path, steps: tuple[int, ...] = STEPS) -> None:
    """Write the checkpoints of a run, each a little more than the one before."""
    rng = np.random.default_rng(0)
    tensors = make_tensors(0)
    shutil.rmtree(folder, ignore_errors=True)
    for step in steps:
        write_adapter(folder / f"checkpoint-{step}", tensors)
        tensors = {
            key: (1.05 * value + 0.1 * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
            for key, value in tensors.items()
        }


def encode(place: Path, **options: Any) -> FleetReport:
    options = {"encoding": {"nmse": 0.05}, "manifest_format": "jsonl", "chain": True} | options
    return nola_codec.encode_many(place / "run", place / "files", **options)


def needed(file: Path) -> str:
    reference = nola_codec.inspect(file).reference
    return "" if reference is None else reference["name"]


def test_each_checkpoint_needs_the_one_before_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    report = encode(tmp_path)
    assert (report.done, report.failed) == (3, ())
    files = {step: tmp_path / "files" / f"checkpoint-{step}.nola" for step in STEPS}
    assert [needed(file) for file in files.values()] == ["", "checkpoint-5.nola", "checkpoint-10.nola"]
    alone = nola_codec.encode(tmp_path / "run" / "checkpoint-100", None, nmse=0.05)
    assert files[100].stat().st_size < 0.9 * alone.bytes
    assert nola_codec.compare(tmp_path / "run" / "checkpoint-100", files[100]).nmse <= 0.05
    checked = nola_codec.verify_many(tmp_path / "files", workers=1)
    assert (checked.done, checked.failed) == (3, ())


def test_what_comes_after_a_changed_checkpoint_is_made_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    encode(tmp_path)
    assert (encode(tmp_path).done, encode(tmp_path).unchanged) == (0, 3)
    weights = tmp_path / "run" / "checkpoint-10" / "adapter_model.safetensors"
    changed = {key: value * np.float32(1.2) for key, value in load_file(weights).items()}
    save_file(changed, weights)
    report = encode(tmp_path)
    assert (report.done, report.unchanged, report.failed) == (2, 1, ())
    write_run(tmp_path / "run", (*STEPS, 200))
    report = encode(tmp_path)
    assert (report.done, report.failed) == (3, ())  # 10 and what comes after it
    # A run that was stopped may leave a file that was coded against another one than is there now.
    nola_codec.encode(tmp_path / "run" / "checkpoint-5", tmp_path / "elsewhere.nola", nmse=0.04)
    first = tmp_path / "files" / "checkpoint-5.nola"
    padded = (tmp_path / "elsewhere.nola").read_bytes()
    assert len(padded) != first.stat().st_size
    first.write_bytes(padded)
    report = encode(tmp_path)
    assert (report.done, report.failed) == (1, ())  # it is made again as it was, which is what the others need
    last = tmp_path / "files" / "checkpoint-200.nola"
    assert nola_codec.compare(tmp_path / "run" / "checkpoint-200", last).nmse <= 0.05


def test_long_runs_begin_another_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec.container.limits import Limits
    from nola_codec.fleet import chains
    from nola_codec.fleet.items import Item

    monkeypatch.setattr(chains, "DEFAULT_LIMITS", Limits(chain=2))
    names = ["a/step-10", "a/step-9", "a/step-8", "a/step-11", "b/step-1", "b/step-2"]
    made = chains.chain_items([Item(f"/{name}", f"{name}.nola", {}) for name in names])
    assert [item.output for item in made] == [
        "a/step-8.nola", "a/step-9.nola", "a/step-10.nola", "a/step-11.nola", "b/step-1.nola", "b/step-2.nola"
    ]  # fmt: skip
    assert [item.options.get("reference", "") for item in made] == [
        "", "a/step-8.nola", "a/step-9.nola", "", "", "b/step-1.nola"
    ]  # fmt: skip


def test_lone_files_in_numbered_folders_are_a_chain(tmp_path: Path) -> None:
    """A glob of the files themselves made no chain, and said nothing."""
    rng = np.random.default_rng(0)
    tensors = make_tensors(0)
    for step in (20, 100, 3):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        moved = {k: (v + 0.1 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in tensors.items()}
        save_file(moved, folder / "lora.safetensors")
    options: dict[str, Any] = {"encoding": {"nmse": 0.05}, "manifest_format": "jsonl", "chain": True}
    report = nola_codec.encode_many(str(tmp_path / "run" / "*" / "lora.safetensors"), tmp_path / "files", **options)
    assert (report.done, [row.reason for row in report.failed]) == (3, [])
    files = [tmp_path / "files" / f"checkpoint-{step}-lora.nola" for step in (3, 20, 100)]
    assert [needed(file) for file in files] == ["", files[0].name, files[1].name]
    assert (
        nola_codec.encode_many(str(tmp_path / "run" / "*" / "*.safetensors"), tmp_path / "files", **options).done == 0
    )


def test_sources_of_no_chain_are_refused(tmp_path: Path) -> None:
    for name in ("seeds/one", "seeds-two/other"):
        write_adapter(tmp_path / name, make_tensors(0))
    for found in ([tmp_path / "seeds" / "one", tmp_path / "seeds-two" / "other"], tmp_path):
        with pytest.raises(NolaError, match="no two of the 2 sources are in one chain") as caught:
            nola_codec.encode_many(found, tmp_path / "files", chain=True)
        assert caught.value.code == "option"
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("sources", "chains"),
    [
        (["/r/c-1", "/r/c-2", "/r/best"], ["/r", "/r", "/r"]),
        (["/r/c-1/lora.npz", "/r/c-20/lora.npz"], ["/r/c-#/lora.npz"] * 2),
        (["/r/c-1/a.npz", "/r/c-1/b.npz", "/r/c-2/a.npz"], ["/r/c-1", "/r/c-1", "/r/c-#/a.npz"]),
        (["/seed1/c-1", "/seed1/c-2", "/seed2/c-1", "/seed2/c-2"], ["/seed1", "/seed1", "/seed2", "/seed2"]),
    ],
)
def test_which_sources_are_a_chain(sources: list[str], chains: list[str]) -> None:
    assert chain_names(sources) == chains


def test_wrong_options(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (5,))
    for options, error in (
        ({"engine": "ray"}, NolaError),
        ({"encoding": {"bits": 4}}, EncodeError),
        ({"encoding": {"progressive": True}}, EncodeError),
    ):
        with pytest.raises(error) as caught:
            encode(tmp_path, **options)
        assert caught.value.code == "option"
    assert not (tmp_path / "files").exists()


@pytest.mark.slow
def test_a_check_makes_only_damaged_files_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    encode(tmp_path, workers=1)
    report = encode(tmp_path, check=True, workers=1)
    assert (report.done, report.unchanged) == (0, 3)
    damaged = tmp_path / "files" / "checkpoint-10.nola"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    report = encode(tmp_path, check=True, workers=1)
    assert (report.done, report.unchanged) == (1, 2)
    assert damaged.read_bytes() == data


def test_a_checkpoint_that_cannot_be_read_breaks_no_chain(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    broken = tmp_path / "run" / "checkpoint-10" / "adapter_model.safetensors"
    whole = broken.read_bytes()
    broken.write_bytes(b"no tensors")
    report = encode(tmp_path, workers=1)
    assert (report.done, [row.output for row in report.failed]) == (2, ["checkpoint-10.nola"])
    files = {step: tmp_path / "files" / f"checkpoint-{step}.nola" for step in STEPS}
    assert needed(files[100]) == "checkpoint-5.nola"
    broken.write_bytes(whole)
    assert encode(tmp_path, workers=1).done == 2
    assert needed(files[100]) == "checkpoint-10.nola"
