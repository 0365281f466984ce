"""Integrated gradients of components, and plans that go by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import nola_codec
from nola_codec.adapters import read
from nola_codec.encoder.tuning import TrainedForm, TuningStart
from nola_codec.training import SquaredError, TaskData, TaskSettings, TaskTuner
from nola_codec.training.attach import attach_factors
from nola_codec.training.task_worth import component_worth, weigh_by_worth


class TwoPaths(torch.nn.Module):
    """Two layers side by side; the output of the second one hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.nn.Linear(32, 48)
        self.hidden = torch.nn.Linear(32, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.seen(x) + 0.01 * self.hidden(x)
        return made


def network() -> TwoPaths:
    torch.manual_seed(0)
    return TwoPaths().eval()


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 whose deltas are three times as large where they hardly count."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, size in (("seen", 1.0), ("hidden", 3.0)):
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((4, 32)).astype(np.float32)
        decay = size * 0.7 ** np.arange(4)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (rng.standard_normal((48, 4)) * decay).astype(np.float32)
    folder = tmp_path_factory.mktemp("lora")
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    return folder


def batches(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(1)))


def data() -> TaskData:
    made = batches(16)
    return TaskData(
        made[:12], made[12:14], made[14:], outputs_fn=lambda model, x: model(x), distance=SquaredError(),
        measured="adapter", rows=32, unit="squared error", description="noise was drawn.",
    )  # fmt: skip


def test_the_worth_of_all_components_is_the_gain(lora: Path) -> None:
    """The loss is a square in a, so the middles of equal parts integrate its slope exactly."""
    model, items, factors = network().requires_grad_(False), read(lora).modules, {}
    x = batches(1)[0]
    original = {m.name: (torch.from_numpy(m.lora_B), torch.from_numpy(m.lora_A)) for m in items}
    wanted: torch.Tensor

    def outputs(pairs: Mapping[str, Any]) -> torch.Tensor:
        nonlocal factors
        factors = dict(pairs)
        with attach_factors(model, items, lambda: factors):
            made: torch.Tensor = model(x)
        return made

    wanted = outputs(original)
    found = component_worth(
        items, lambda pairs, _: (outputs(pairs) - wanted).square().sum(), 5, torch.device("cpu"), lambda *_: None
    )
    gain = (outputs({}) - wanted).square().sum().item()
    assert sum(each.sum() for each in found) == pytest.approx(gain, rel=1e-4)
    by_name = {item.name: each.sum() for item, each in zip(items, found, strict=True)}
    assert by_name[items[0].name] + by_name[items[1].name] == pytest.approx(gain, rel=1e-4)
    assert max(by_name.values()) > 50 * abs(min(by_name.values()))


class Look:
    """A tuner that trains nothing; it keeps the start."""

    def tune(self, start: TuningStart) -> TrainedForm:
        self.start = start
        return TrainedForm(start.form, np.ones(start.form.units))

    def measure(self, factors: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": 0.0}

    def report(self) -> None:
        return None


def test_a_plan_goes_by_the_worth(lora: Path) -> None:
    """By the weights the large deltas come first; by the worth those that count, if the data are the task's."""
    kept: dict[int | str, dict[str, int]] = {}
    for batches_weighed, are_of_task in ((0, True), (6, True), (6, False)):
        settings = TaskSettings(against="adapter", steps=2, worth_batches=batches_weighed)
        tuner = TaskTuner(network(), replace(data(), are_of_task=are_of_task), settings)
        report = nola_codec.encode(lora, size=400, fit="task", tuner=tuner)
        found = {tensor.name.rpartition(".")[2]: tensor.kept for tensor in report.tensors}
        kept[batches_weighed if are_of_task else "other data"] = found
        assert report.task is not None
        assert report.task.adapter == 0
        assert report.task.data == "noise was drawn."
    assert kept[0]["hidden"] > 0
    assert kept[6]["seen"] > kept[0]["seen"]
    assert kept[6]["hidden"] == 0
    assert kept["other data"] == kept[0]


def test_weights_without_worth_stay_as_they_are(lora: Path) -> None:
    look = Look()
    nola_codec.encode(lora, size=600, fit="task", tuner=look)
    form = look.start.form
    assert weigh_by_worth(form, [np.zeros(4), np.zeros(4)]) is form
    weighed = weigh_by_worth(form, [np.array([4.0, 1, -1, 0]), np.zeros(4)])
    assert weighed.energy is not None
    np.testing.assert_allclose((weighed.strength**2).sum(), (form.strength**2).sum())
    np.testing.assert_allclose(weighed.strength[0] / weighed.strength[1], 2)
    assert (weighed.strength[2:] < 1e-2 * weighed.strength[0]).all()


def test_a_start_that_is_better_is_preferred(lora: Path) -> None:
    look, starts = Look(), []
    for size in (420, 900, 500):
        nola_codec.encode(lora, size=size, fit="task", tuner=look)
        starts.append(look.start)
    tuner = TaskTuner(network(), data(), TaskSettings(against="adapter"))
    tuner.weigh(starts[0].items, starts[0].form)
    assert tuner.prefer(starts) == 1


def test_the_base_model_is_asked_for_by_relative_distances_alone(lora: Path) -> None:
    relative = replace(data(), distance=SquaredError(relative=True))
    tuner = TaskTuner(network(), relative, TaskSettings(against="adapter", steps=2))
    report = nola_codec.encode(lora, size=600, fit="task", tuner=tuner).task
    assert report is not None
    assert report.base == pytest.approx(1, rel=1e-3)
    assert 0 < report.file < 1
