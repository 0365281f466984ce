"""Live objects, configurations and targets: each is taken as documented, or refused with a code."""

from __future__ import annotations

import enum
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import nola_codec
from nola_codec.api.arguments import plain_config

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT of Transformers


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case()


class TaskType(str, enum.Enum):
    CAUSAL_LM = "CAUSAL_LM"


@dataclass
class Config:
    """A configuration as PEFT has it: sets, enumerations, and to_dict()."""

    peft_type: str = "LORA"
    r: int = 4
    lora_alpha: int = 8
    task_type: TaskType = TaskType.CAUSAL_LM
    target_modules: set[str] = field(default_factory=lambda: {"v_proj", "q_proj", "k_proj"})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def test_a_configuration_becomes_what_json_holds() -> None:
    wanted = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM",
        "target_modules": ["k_proj", "q_proj", "v_proj"],
    }  # fmt: skip
    for config in (Config(), Config().to_dict()):
        made = plain_config(config)
        assert made == wanted
        assert type(made["task_type"]) is str
        assert json.loads(json.dumps(made)) == wanted
    assert plain_config(None) is None


def test_a_live_configuration_gives_the_file_of_its_json(case: Any) -> None:
    from peft import LoraConfig

    weights = (case.adapter / "adapter_model.safetensors").read_bytes()
    saved = json.loads((case.adapter / "adapter_config.json").read_text())
    live = LoraConfig(r=saved["r"], lora_alpha=saved["lora_alpha"], target_modules=set(saved["target_modules"]))
    data, _ = nola_codec.encode_bytes(weights, config=live, nmse=0.1)
    config = nola_codec.inspect(data).config
    assert config is not None
    assert config["target_modules"] == sorted(saved["target_modules"])
    assert config["lora_alpha"] == saved["lora_alpha"]


@pytest.mark.parametrize("config", [3, "LORA", object(), {"r": object()}])
def test_what_is_no_configuration(config: Any) -> None:
    with pytest.raises(nola_codec.AdapterError) as caught:
        nola_codec.encode(b"", config=config)
    assert caught.value.code == "bad-config"


NO_ADAPTERS = [
    (3.5, "found builtins.float"),
    (io.StringIO("x"), "found _io.StringIO"),
    (None, "found builtins.NoneType"),
]
NO_FILES = [
    *NO_ADAPTERS,
    ({"a": torch.zeros(2)}, "found builtins.dict; encode the tensors first"),
    (torch.nn.Linear(2, 2), "found torch.nn.modules.linear.Linear"),
]


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (nola_codec.encode, NO_ADAPTERS),
        (nola_codec.sweep, NO_ADAPTERS),
        (nola_codec.read_adapter, NO_ADAPTERS),
        (nola_codec.inspect, NO_FILES),
        (nola_codec.truncate, NO_FILES),
        (nola_codec.load, NO_FILES),
        (nola_codec.verify, NO_FILES),
        (lambda source: nola_codec.decode(source, "out"), NO_FILES),
    ],
    ids=["encode", "sweep", "read_adapter", "inspect", "truncate", "load", "verify", "decode"],
)
def test_what_is_no_source(call: Callable[[Any], Any], refused: list[tuple[Any, str]]) -> None:
    for source, words in refused:
        with pytest.raises(nola_codec.AdapterError) as caught:
            call(source)
        assert caught.value.code == "source-type"
        assert words in str(caught.value)


def test_a_live_model_is_no_file(case: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(case.fresh(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(nola_codec.AdapterError, match=r"with nola_codec\.encode\(model, OUT\)") as caught:
        nola_codec.load(model)  # type: ignore[arg-type]
    assert caught.value.code == "source-type"


@pytest.mark.parametrize("out", [3, io.StringIO(), [1]], ids=lambda value: type(value).__name__)
def test_what_is_no_target(out: Any, case: Any, tmp_path: Path) -> None:
    for call in (
        lambda: nola_codec.encode(case.adapter, out, nmse=0.1),
        lambda: nola_codec.truncate(case.encoded, out),
    ):
        with pytest.raises(nola_codec.EncodeError) as caught:
            call()
        assert caught.value.code == "target-type"


def test_a_directory_is_no_stream(case: Any) -> None:
    with pytest.raises(nola_codec.AdapterError, match="expected a path to write to, found BytesIO") as caught:
        nola_codec.decode(case.encoded, io.BytesIO())  # type: ignore[arg-type]
    assert caught.value.code == "target-type"


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {"dtype": "f16", "base": "base"}], ids=str)
def test_a_dtype_that_means_nothing(options: dict[str, str], case: Any, tmp_path: Path) -> None:
    with pytest.raises(nola_codec.NolaError, match="dtype") as caught:
        nola_codec.decode(case.encoded, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert caught.value.code == "option"
    assert not (tmp_path / "out").exists()


def test_a_stream_is_a_target(case: Any, tmp_path: Path) -> None:
    stream, cut = io.BytesIO(), io.BytesIO()
    report = nola_codec.encode(case.adapter, stream, nmse=0.01, rungs=["500B"])
    assert report.bytes == len(stream.getvalue())
    assert nola_codec.truncate(stream.getvalue(), cut, rung=0).bytes == len(cut.getvalue()) < report.bytes
    assert nola_codec.verify(cut.getvalue())["bytes"] == len(cut.getvalue())


def test_reports_print_what_the_command_line_prints(case: Any) -> None:
    report = nola_codec.encode(case.adapter, nmse=0.05)
    lines = str(report).splitlines()
    assert "x smaller than fp16; the weights lose " in lines[0]
    assert lines[1].startswith("size  ")
    assert lines[1].endswith(" in fp16")
    assert any(line.startswith("NMSE         0.0") for line in lines)
    shown = str(nola_codec.inspect(case.encoded)).splitlines()
    assert shown[1] == "file            bytes"
    assert shown[-1].startswith("decoded SHA-256 ")
    assert str(nola_codec.truncate(case.encoded)).startswith("rung         0 (the only one")
