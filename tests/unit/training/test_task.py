"""Encoding with `fit="task"` of an adapter of a small network: its gain, its resuming, its refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import nola_codec
from nola_codec.adapters import read
from nola_codec.encoder.report import EncodeReport
from nola_codec.encoder.tuning import TrainedForm, TuningStart
from nola_codec.errors import EncodeError
from nola_codec.rendering import render_error
from nola_codec.training import TaskData, TaskSettings, TaskTuner
from nola_codec.training.attach import attach_factors
from nola_codec.training.task_code import TaskCode
from nola_codec.training.task_data import default_rate

SIZE = 560


class Net(torch.nn.Module):
    """A classifier of 24 numbers by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 96)
        self.second = torch.nn.Linear(96, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.second(self.first(x).tanh())
        return made


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Labels from a random linear map."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(640, 24, generator=generator)
    labels = (x @ torch.randn(24, 8, generator=generator)).argmax(1)
    return [(x[i : i + 32], labels[i : i + 32]) for i in range(0, 640, 32)]


@pytest.fixture(scope="module")
def lora(batches: list[tuple[torch.Tensor, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4, trained."""
    model = net().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    shapes = {"first": (96, 24), "second": (8, 96)}
    pairs = {
        name: (torch.zeros(out, 4, requires_grad=True),
               (0.2 * torch.randn(4, inside, generator=generator)).requires_grad_())
        for name, (out, inside) in shapes.items()
    }  # fmt: skip
    optimizer = torch.optim.Adam([p for pair in pairs.values() for p in pair], 0.02)
    handles = [
        getattr(model, name).register_forward_hook(lambda _, x, y, pair=pair: y + x[0] @ pair[1].T @ pair[0].T)
        for name, pair in pairs.items()
    ]
    for _ in range(6):
        for x, labels in batches[:12]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
    for handle in handles:
        handle.remove()
    folder = tmp_path_factory.mktemp("lora")
    tensors = {}
    for name, (b, a) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().numpy()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().numpy()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    return folder


def logits(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch[0]), batch[1]


@pytest.fixture
def data(batches: list[Any]) -> TaskData:
    return TaskData(batches[:12], batches[12:14], batches[14:], logits_fn=logits, rows=192)


def encode(lora: Path, tuner: TaskTuner, out: Path | None = None, **options: Any) -> EncodeReport:
    chosen = {"size": SIZE, **options}
    return nola_codec.encode(lora, out, fit="task", tuner=tuner, **chosen)


def test_training_is_against_all_that_the_data_allow(data: TaskData) -> None:
    def loss(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        return model(batch[0]).sum(), 1

    def outputs(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        found: torch.Tensor = model(batch[0])
        return found

    bare = replace(data, logits_fn=None)
    assert data.choose_against() == "both"
    assert replace(bare, loss_fn=loss).choose_against() == "labels"
    assert replace(bare, outputs_fn=outputs, measured="adapter").choose_against() == "adapter"
    assert replace(bare, loss_fn=loss, outputs_fn=outputs).choose_against() == "both"


def test_both_is_the_default(lora: Path, data: TaskData) -> None:
    found = [
        encode(lora, TaskTuner(net(), data, TaskSettings(against=against, steps=8))).task
        for against in (None, "both", "labels", "adapter")
    ]
    assert found[0] == found[1]
    assert found[0] not in found[2:]


@pytest.mark.parametrize("against", [None, "labels", "adapter"])
def test_training_wins_back_what_coding_lost(against: Any, lora: Path, data: TaskData, tmp_path: Path) -> None:
    model = net()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    tuner = TaskTuner(model, data, TaskSettings(against=against, steps=60, every=10))
    report = encode(lora, tuner, tmp_path / "a.nola")
    task = report.task
    assert task is not None
    assert max(task.adapter, task.file) < task.start < task.base  # trained on labels, a file may be better than both
    assert task.kept is not None
    assert task.kept > (task.base - task.start) / (task.base - task.adapter) + 0.05
    assert report.bytes <= SIZE
    assert (task.rows, report.objective, report.effective_error) == (192, "task", None)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    nola_codec.verify(tmp_path / "a.nola")
    facts = nola_codec.inspect(tmp_path / "a.nola")
    assert facts.measured["loss"] == pytest.approx(task.file, rel=1e-5)
    assert facts.verdict.endswith(f"trained on a task, with a held-out loss of {render_error(facts.measured['loss'])}")
    assert "The file was trained on a task" in str(facts)
    assert "energy" not in str(facts)
    # The loss in the report is that of what the file decodes to, taken here by other means.
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "lora")
    modules = read(tmp_path / "lora").modules
    pairs = {m.name: (torch.from_numpy(m.lora_B), torch.from_numpy(m.lora_A)) for m in modules}
    with torch.no_grad(), attach_factors(model, modules, lambda: pairs):
        losses = [torch.nn.functional.cross_entropy(model(x), y).item() for x, y in data.held_out]
    assert np.mean(losses) == pytest.approx(task.file, abs=1e-6)


def test_steps_keep_their_length_in_large_files(lora: Path, data: TaskData) -> None:
    assert default_rate(1000) == default_rate(350_000) == 0.03
    assert default_rate(4 * 350_000) == pytest.approx(0.015)
    found = [
        encode(lora, TaskTuner(net(), data, TaskSettings(steps=8, learning_rate=r))).task for r in (None, 0.03, 0.01)
    ]
    assert found[0] == found[1] != found[2]


def test_a_loss_of_ones_own_is_enough(lora: Path, data: TaskData) -> None:
    def loss(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        wrong = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return wrong, len(batch[1])

    settings = TaskSettings(steps=12)
    theirs = encode(lora, TaskTuner(net(), replace(data, loss_fn=loss, logits_fn=None), settings)).task
    ours = encode(lora, TaskTuner(net(), data, replace(settings, against="labels"))).task
    assert theirs == ours


def test_it_resumes_to_the_bit(lora: Path, data: TaskData, tmp_path: Path) -> None:
    def settings(name: str) -> TaskSettings:
        return TaskSettings(steps=16, every=4, checkpoint=tmp_path / name)

    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 10):
            raise Killed

    whole, _ = nola_codec.encode_bytes(lora, size=SIZE, fit="task", tuner=TaskTuner(net(), data, settings("a")))
    with pytest.raises(Killed):
        nola_codec.encode_bytes(lora, size=SIZE, fit="task", tuner=TaskTuner(net(), data, settings("b"), kill))
    seen: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        seen.extend([done] if stage == "training" else [])

    resumed, _ = nola_codec.encode_bytes(
        lora, size=SIZE, fit="task", tuner=TaskTuner(net(), data, settings("b"), watch)
    )
    assert seen[0] == 8
    assert resumed == whole
    with pytest.raises(EncodeError, match="is of another adapter") as error:
        nola_codec.encode_bytes(lora, size=SIZE + 200, fit="task", tuner=TaskTuner(net(), data, settings("b")))
    assert error.value.code == "task-checkpoint"
    other = replace(data, identity="other rows")
    with pytest.raises(EncodeError, match="is of another adapter"):
        nola_codec.encode_bytes(lora, size=SIZE, fit="task", tuner=TaskTuner(net(), other, settings("b")))


def test_it_stops_when_nothing_is_gained(lora: Path, data: TaskData) -> None:
    settings = TaskSettings(steps=500, every=1, patience=2, learning_rate=5.0, size_rate=1e-6)
    seen: list[int] = []
    tuner = TaskTuner(net(), data, settings, lambda stage, done, _: seen.extend([done] * (stage == "training")))
    report = encode(lora, tuner).task
    assert max(done for done in seen if done < 500) < 100
    assert report is not None
    assert report.file <= report.start + 0.02  # the best step is kept, be it none


def test_a_training_that_gains_nothing_leaves_the_file_from_the_weights(lora: Path, data: TaskData) -> None:
    settings = TaskSettings(steps=1, learning_rate=1e-9, size_rate=1e-9, worth_batches=0)
    made, report = nola_codec.encode_bytes(lora, size=1400, fit="task", tuner=TaskTuner(net(), data, settings))
    plain, _ = nola_codec.encode_bytes(lora, size=1400)
    assert made == plain
    task = report.task
    assert task is not None
    assert not task.is_trained
    assert (task.file, task.steps) == (task.start, 0)
    assert report.effective_error is not None
    assert "trained    no: the file from the weights alone was as good" in str(report)
    assert not any("--prompts" in note for note in report.notes)


def test_a_training_without_a_target_says_what_was_taken(lora: Path, data: TaskData) -> None:
    settings = TaskSettings(steps=1, learning_rate=1e-9, size_rate=1e-9, worth_batches=0)
    _, report = nola_codec.encode_bytes(lora, fit="task", tuner=TaskTuner(net(), data, settings))
    shown = " ".join(str(report).split())  # the line is longer than a screen
    assert "target none was given: keep 98% of the signal, before the training (--error 0.02)" in shown
    _, report = nola_codec.encode_bytes(lora, fit="task", tuner=TaskTuner(net(), data, settings), error=0.1)
    assert "target  " not in str(report)


def test_a_file_that_is_too_large_loses_its_weakest(lora: Path) -> None:
    class Loud:
        """Amplitudes that no prediction meets."""

        def tune(self, start: TuningStart) -> TrainedForm:
            size = np.zeros(start.form.units)
            size[start.plan.kept] = np.exp(np.random.default_rng(0).normal(0, 3, len(start.plan.kept)))
            return TrainedForm(start.form, size)

        def measure(self, factors: Mapping[str, Any]) -> dict[str, float]:
            return {"loss": 0.0}

        def report(self) -> None:
            return None

    report = nola_codec.encode(lora, size=440, fit="task", tuner=Loud())
    assert report.bytes <= 440
    assert sum(tensor.kept for tensor in report.tensors) > 0


def test_gradients_go_straight_through_the_code(lora: Path) -> None:
    found: list[TuningStart] = []

    class Look:
        def tune(self, start: TuningStart) -> TrainedForm:
            found.append(start)
            return TaskCode(start, torch.device("cpu")).result()

        def measure(self, factors: Mapping[str, Any]) -> dict[str, float]:
            return {"loss": 0.0}

        def report(self) -> None:
            return None

    plain, _ = nola_codec.encode_bytes(lora, size=SIZE)
    moved, _ = nola_codec.encode_bytes(lora, size=SIZE, fit="task", tuner=Look())
    code = TaskCode(found[0], torch.device("cpu"))
    factors = code.factors()
    with torch.no_grad():
        sizes = {name: (b.norm(dim=0) * a.norm(dim=1)) for name, (b, a) in factors.items()}
    own = {
        name: code.log_sizes[torch.from_numpy(places)].exp().square() for name, places in code._components_of.items()
    }
    for name, size in sizes.items():
        torch.testing.assert_close(size, own[name])
    sum((b * b.detach()).sum() + (a * a.detach()).sum() for b, a in factors.values()).backward()
    for batch in code._batches:
        assert batch.vectors.grad is not None
        norms = code.log_sizes.detach().exp()
        scale = torch.stack([norms[list(code._kept).index(unit)] for unit in batch.units])
        # d/dw of a code c, taken for w itself: synthesis of c, projected back, is c times the sizes.
        torch.testing.assert_close(batch.vectors.grad, batch.coded * scale[:, None] ** 2, rtol=1e-4, atol=1e-6)
    # Nothing trained: the same components in the same code, at amplitudes of the same size.
    assert abs(len(moved) - len(plain)) < 80


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"against": "nobody"}, "option"), ({"steps": 0}, "option"), ({"learning_rate": float("inf")}, "option")],
)
def test_settings_that_are_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(EncodeError) as error:
        TaskSettings(**changes)
    assert error.value.code == code


def test_what_is_refused(lora: Path, data: TaskData) -> None:
    def code(call: Callable[[], object]) -> str:
        with pytest.raises(EncodeError) as error:
            call()
        return error.value.code

    assert code(lambda: TaskTuner(net(), replace(data, held_out=[]))) == "task-data"
    assert code(lambda: TaskTuner(net(), replace(data, logits_fn=None))) == "task-data"
    own = replace(data, loss_fn=lambda model, batch: (model(batch[0]).sum(), 1), logits_fn=None)
    assert code(lambda: TaskTuner(net(), own, TaskSettings(against="adapter"))) == "task-data"
    endless = replace(data, loss_fn=lambda model, batch: (model(batch[0]).sum() / 0, 1))
    assert code(lambda: encode(lora, TaskTuner(net(), endless))) == "task-diverged"
    assert code(lambda: encode(lora, TaskTuner(torch.nn.Linear(3, 3), data))) == "base-module"
    assert code(lambda: nola_codec.encode(lora, size=SIZE, fit="task")) == "option"
    assert code(lambda: nola_codec.encode(lora, size=SIZE, tuner=TaskTuner(net(), data))) == "option"
    assert code(lambda: encode(lora, TaskTuner(net(), data), progressive=True)) == "option"


def test_the_file_has_the_code_that_was_trained(lora: Path) -> None:
    """Training makes up for the noise of one code: the file must not code the vectors with other tables."""

    class Move:
        def tune(self, start: TuningStart) -> TrainedForm:
            code = TaskCode(start, torch.device("cpu"))
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for vector in code.vectors:
                    vector.copy_(vector.sign() * torch.rand(vector.shape, generator=generator).pow(4))
            code.code()
            self.wanted = {name: (b.detach().numpy(), a.detach().numpy()) for name, (b, a) in code.factors().items()}
            return code.result()

        def measure(self, factors: Mapping[str, Any]) -> dict[str, float]:
            self.errors = []
            for name, (b, a) in self.wanted.items():
                wanted, found = b @ a, factors[name][0] @ factors[name][1]
                self.errors.append(float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted)))
            return {"loss": 0.0}

        def report(self) -> None:
            return None

    move = Move()
    nola_codec.encode_bytes(lora, size=900, fit="task", tuner=move)
    assert max(move.errors) < 0.04  # amplitudes are rounded to a sixteenth of an octave


def test_a_result_does_not_change_with_the_training(lora: Path) -> None:
    class Look:
        def tune(self, start: TuningStart) -> TrainedForm:
            code = TaskCode(start, torch.device("cpu"))
            result = code.result()
            before = [matrix.copy() for side in result.form.matrices for matrix in side.values()]
            with torch.no_grad():
                for vector in code.vectors:
                    vector.mul_(torch.randn_like(vector))
            code.code()
            after = [matrix for side in result.form.matrices for matrix in side.values()]
            assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
            again = [matrix for side in code.result().form.matrices for matrix in side.values()]
            assert not all(np.array_equal(a, b) for a, b in zip(before, again, strict=True))
            return result

        def measure(self, factors: Mapping[str, Any]) -> dict[str, float]:
            return {"loss": 0.0}

        def report(self) -> None:
            return None

    nola_codec.encode_bytes(lora, size=SIZE, fit="task", tuner=Look())
