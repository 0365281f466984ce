"""Carried tensors: which of them take the bytes of a file, and what the report and the refusals say (case 26)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import nola_codec
from nola_codec.errors import EncodeError
from nola_codec.rendering import render_largest

HEAD = "base_model.model.lm_head.weight"


def write_adapter(path: Path, head: tuple[int, int] | None, *, scale: float = 0.1, rank: int = 4) -> Path:
    """Write a PEFT adapter of two modules, with a random `lm_head` in modules_to_save."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {}
    for layer in range(2):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = draw(rank, 64)
        tensors[f"{module}.lora_B.weight"] = scale * draw(64, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    if head is not None:
        tensors[HEAD] = draw(*head)
        config["modules_to_save"] = ["lm_head"]
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def test_a_large_head_is_named_and_counted(tmp_path: Path) -> None:
    """Case 26: the report gives the coded and the carried part, and a note names the tensor that takes the bytes."""
    source = write_adapter(tmp_path / "a", (500, 64))
    report = nola_codec.encode(source, tmp_path / "a.nola")
    (head,) = report.carried
    assert (head.name, head.dtype, head.shape, head.parameters) == (HEAD, "F32", (500, 64), 32_000)
    assert report.carried_bytes == head.bytes
    assert 0.8 * 128_000 < head.bytes < 128_000
    assert report.ratio < 1
    verdict, *lines = str(report).splitlines()
    assert f"{1 / report.ratio:.1f}x larger than fp16; " in verdict
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("size ")) :]
    assert lines[0].endswith(" in fp16")
    assert lines[1].startswith("  coded      ")
    assert "for 1,024 parameters" in lines[1]
    assert lines[2].startswith("  carried    ")
    assert "for 32,000 parameters" in lines[2]
    (note,) = (each for each in report.notes if "carried tensors take" in each)
    assert "larger than the adapter in fp16" in note
    assert HEAD in note
    assert any("--base MODEL leaves out" in each for each in report.notes)
    facts = nola_codec.inspect(tmp_path / "a.nola")
    assert [tensor.stored for tensor in facts.tensors if tensor.record == "raw"] == [head.bytes]
    assert f"carried         {HEAD} " in str(facts)


def test_a_size_that_a_head_forbids_is_refused_by_its_name(tmp_path: Path) -> None:
    """Case 26: the refusal names what takes the room; without a large head it names nothing."""
    with pytest.raises(EncodeError, match=rf"alone take \d+ bytes, most of them {HEAD} 1.*KB") as refusal:
        nola_codec.encode(write_adapter(tmp_path / "a", (500, 64)), size="50KB")
    assert refusal.value.code == "unreachable"
    with pytest.raises(EncodeError, match=r"alone take \d+ bytes$"):
        nola_codec.encode(write_adapter(tmp_path / "b", None), size=100)


def test_a_size_that_an_adapter_cannot_use_is_said(tmp_path: Path) -> None:
    """A target that saturates is not silent, in bytes as in a ratio; one that is met says nothing."""
    source = write_adapter(tmp_path / "a", None)
    for target in ({"size": "300KB"}, {"ratio": 0.1}):
        report = nola_codec.encode(source, **target)  # type: ignore[arg-type]
        assert any("that are allowed" in note and "finer ones would take more" in note for note in report.notes), target
    assert not any("allowed" in note for note in nola_codec.encode(source, size=700).notes)


@pytest.mark.parametrize("head", [None, (16, 64)])
def test_an_adapter_that_changes_nothing_is_said(head: tuple[int, int] | None, tmp_path: Path) -> None:
    """All lora_B are zero, as before a training; a target of bytes then says no more than that."""
    report = nola_codec.encode(write_adapter(tmp_path / "a", head, scale=0.0), size="100KB")
    (note,) = (each for each in report.notes if "changes nothing" in each)
    assert ("only its carried tensors" in note) == (head is not None)
    assert not any("allowed" in each for each in report.notes)


def test_the_largest_tensors_are_named_first() -> None:
    """At most three names, then a number."""
    assert render_largest({"a": 10}) == "a 10 B"
    assert render_largest({"a": 10, "b": 2000}) == "b 2.0 KB and a 10 B"
    assert render_largest(dict(zip("abcde", (1, 2, 3, 4, 5), strict=True))) == "e 5 B, d 4 B, c 3 B and 2 others"
