"""Arguments of a wrong kind: each is refused with a code before any work, and bytes are as good as a path."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
import nola_codec.numpy

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


ODD: tuple[Any, ...] = (5, 1.5, object(), [], {}, set(), True, lambda: 1, np.zeros(3))


@pytest.mark.parametrize(
    "argument",
    ["source", "rung", "factors", "delta_weight", "vector", "dtype", "framework", "format", "device", "tuned", "many",
     "destination", "encoding", "metadata", "limits"],
)  # fmt: skip
def test_arguments_of_odd_types(argument: str, case: Any, tmp_path: Path) -> None:
    """None of them is an error of Python's, which would say nothing of what was expected."""
    many: Any = nola_codec.encode_many
    file = nola_codec.load(case.encoded, "numpy")
    calls: dict[str, Callable[[Any], object]] = {
        "source": lambda odd: nola_codec.encode(odd, None),
        "rung": lambda odd: nola_codec.load(case.encoded, "numpy", rung=odd) if odd is not True else file.factors(""),
        "factors": file.factors,
        "delta_weight": file.delta_weight,
        "vector": lambda odd: (
            file.vector(odd) if not isinstance(odd, list | dict | set | np.ndarray) else file.vector("")
        ),
        "dtype": file.state_dict,
        "framework": lambda odd: nola_codec.safe_open(case.encoded, odd),
        "format": lambda odd: nola_codec.decode(case.encoded, tmp_path / "out", format=odd),
        "device": lambda odd: nola_codec.load(case.encoded, odd).state_dict(),
        "tuned": lambda odd: nola_codec.encode_delta(odd, tmp_path, None),
        "many": lambda odd: many([odd] if odd != [] and not isinstance(odd, dict | set) else 5, tmp_path / "many"),
        "destination": lambda odd: many(tmp_path, odd),
        "encoding": lambda odd: many(tmp_path, tmp_path / "many", encoding=odd if odd != {} else 5),
        "limits": lambda odd: nola_codec.verify(case.encoded, limits=odd),
        "metadata": lambda odd: nola_codec.numpy.save({}, odd if odd != {} else 5),
    }
    for odd in ODD:
        if isinstance(odd, np.ndarray) and argument in ("many", "encoding", "metadata"):
            continue
        with pytest.raises(nola_codec.NolaError):
            calls[argument](odd)
    file.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nola")
    for call in (nola_codec.inspect, nola_codec.load, nola_codec.verify):
        with pytest.raises(nola_codec.AdapterError, match="not a regular file") as caught:
            call(tmp_path / "pipe.nola")
        assert caught.value.code == "unreadable"
    with pytest.raises(nola_codec.AdapterError, match="not a regular file"):
        nola_codec.decode(tmp_path / "pipe.nola", tmp_path / "out")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinite sums on the way to the refusal
@pytest.mark.parametrize("scale", [1e-38, 3e37])
@pytest.mark.parametrize("rate", [{}, {"nmse": 0.1}, {"size": 800}], ids=str)
def test_weights_beyond_what_a_file_holds(scale: float, rate: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    shapes = {"lora_A": (4, 48), "lora_B": (32, 4)}
    tensors = {
        f"base_model.model.a.q_proj.{side}.weight": (rng.standard_normal(shape).clip(-1, 1) * scale).astype(np.float32)
        for side, shape in shapes.items()
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    with pytest.raises(nola_codec.EncodeError, match=r"too (small|large)|cannot be reached: .* leave inf") as caught:
        nola_codec.encode_bytes(tensors, config=config, **rate)
    assert caught.value.code in ("overflow", "unreachable")


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
