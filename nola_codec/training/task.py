"""`TaskTuner`: trains the coefficients of a file in component form on a task, with quantization in the loop.

tuner = TaskTuner(model, TaskData(train, validation, held_out, loss_fn))
nola_codec.encode("lora", "task.nola", size="20KB", fit="task", tuner=tuner)
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from nola_codec.array_types import Float64Array
from nola_codec.encoder.report import TaskReport
from nola_codec.encoder.tuning import FactorPairs, TrainedForm, TuningStart
from nola_codec.errors import EncodeError
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.model.adapter import Codable
from nola_codec.progress import Progress
from nola_codec.stores.files import atomic_file
from nola_codec.training.attach import FactorPair, attach_factors, freeze_weights
from nola_codec.training.task_code import TaskCode, require_pairs
from nola_codec.training.task_data import (
    Against,
    LogitsFn,
    LossFn,
    OutputsFn,
    TaskData,
    TaskSettings,
    default_rate,
)
from nola_codec.training.task_distance import Kept
from nola_codec.training.task_teacher import Teacher
from nola_codec.training.task_worth import component_worth, weigh_by_worth

__all__ = ["Against", "LogitsFn", "LossFn", "OutputsFn", "TaskData", "TaskSettings", "TaskTuner"]


@dataclass
class _TrainingPosition:
    """The step that a training has reached, and the best step so far.

    Attributes:
        step: The number of steps done.
        best, best_step, best_state: The best validation loss, its step, and the trained numbers at that step.
        idle: The number of validations since that step.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    idle: int = 0
    best_state: dict[str, Any] = field(default_factory=dict)


class TaskTuner:
    """Trains the coefficients of a file in component form on a task; see `encoder.tuning.Tuner`.

    The weights of the model do not change. The model may be on any device. The file that comes out is a file in
    component form like any other.
    """

    def __init__(
        self, model: torch.nn.Module, data: TaskData, settings: TaskSettings | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Make a tuner for a task.

        Args:
            model: A model in evaluation mode. Its layers are found by the names of the adapter's modules.
            data: The data of the task.
            settings: The settings of the training; None is `TaskSettings()`.
            progress: Called as (stage, done, total), or None.

        Raises:
            EncodeError: ``task-data``: there is nothing to train on or to measure on, or a function is missing that the
                settings need.
        """
        self._model, self._data, self._settings = model, data, settings or TaskSettings()
        self._progress = progress
        self._against: Against = self._settings.against or data.choose_against()
        data.check(self._against)
        self._teacher = Teacher(data.distance, self._settings.teacher_bytes)
        self._modules: Sequence[Codable] = []
        self._factors: Mapping[str, FactorPair] = {}
        self._original: Mapping[str, FactorPair] = {}
        self._losses: dict[str, float] = {}
        self._worth: dict[str, Any] = {}
        self._steps, self._is_trained = 0, True

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train the coefficients; see `encoder.tuning.Tuner`.

        Raises:
            EncodeError: ``base-module``: the model lacks a layer; ``task-form``: the adapter has tensors that
                are not pairs of factors; ``task-diverged``: the loss is not finite; ``task-checkpoint``: the checkpoint
                is of another training.
        """
        self._attach(start.items)
        code = TaskCode(start, self._device)
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["base"] = self._held_out_loss({}, "loss of the base model")
            # The distance from the adapter to itself is 0.
            is_zero = self._data.measured == "adapter"
            self._losses["adapter"] = 0.0 if is_zero else self._held_out_loss(self._original, "loss of the adapter")
            self._steps = self._train(code, start)
        self._factors = {}
        return code.result()

    def weigh(self, items: Sequence[Codable], form: CanonicalForm) -> CanonicalForm:
        """Return the form with strengths by what each component is worth on the data; see `task_worth`.

        The form stays as it is for data that are not the task's (`TaskData.are_of_task`).

        Raises:
            EncodeError: ``base-module``, ``task-form``: as `tune`.
        """
        batches = min(self._settings.worth_batches, len(self._data.train))
        if not batches or not self._data.are_of_task:
            return form
        self._attach(items)
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            worth = self._kept_worth(form, batches)
        self._factors = {}
        return weigh_by_worth(form, worth)

    def prefer(self, starts: Sequence[TuningStart]) -> int:
        """Return the number of the start whose loss on the validation batches is the least."""
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            losses = [
                self._mean_loss(_detach(TaskCode(start, self._device).factors()), "validation", "comparing plans")
                for start in starts
            ]
        return losses.index(min(losses))

    def _kept_worth(self, form: CanonicalForm, batches: int) -> list[Float64Array]:
        """Return the worth of all components, from the checkpoint if it is there."""

        def loss(factors: Mapping[str, FactorPair], number: int) -> torch.Tensor:
            self._factors = factors
            return self._checked_loss(number, "a mixture of base model and adapter")

        key = self._fingerprint(form.singular)
        kept = self._read_checkpoint()
        if kept is not None:
            if kept.get("worth_of") != key:
                raise self._foreign_checkpoint()
            self._worth = {"worth_of": key, "worth": kept["worth"]}
        else:
            tell = partial(self._tell, "weighing components")
            made = component_worth(self._modules, loss, batches, self._device, tell)
            self._worth = {"worth_of": key, "worth": [torch.from_numpy(each) for each in made]}
            self._write_checkpoint({})
        return [each.numpy() for each in self._worth["worth"]]

    def _attach(self, items: Sequence[Codable]) -> None:
        """Take over the modules of an adapter, and its own factors."""
        require_pairs(items)
        self._modules = items
        self._original = {
            m.name: (_to_tensor(m.sides[0], self._device), _to_tensor(m.sides[1], self._device)) for m in items
        }

    def _train(self, code: TaskCode, start: TuningStart) -> int:
        """Train a code from its start or from a checkpoint. Set it to its best step, and return that step."""
        if not len(start.plan.kept):
            return 0  # nothing fits into the size, which the encoder says
        settings = self._settings
        rates = [settings.learning_rate or default_rate(code.numbers), settings.size_rate]
        optimizer = torch.optim.Adam(
            [{"params": code.vectors, "lr": rates[0]}, {"params": [code.log_sizes], "lr": rates[1]}], betas=(0.9, 0.99)
        )
        at = self._resume(code, optimizer, start)
        if at.step == 0:
            self._validate(at, code)
        while at.step < settings.steps and at.idle < settings.patience:
            self._tell("training", at.step, settings.steps)
            share = at.step / settings.steps
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (at.step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * share))
            optimizer.zero_grad()
            self._factors = code.factors()
            loss = self._checked_loss(self._batch_number(at.step), f"step {at.step}")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            code.code()
            at.step += 1
            if at.step % settings.every == 0 or at.step == settings.steps:
                self._validate(at, code)
                self._save(at, code, optimizer, start)
        self._tell("training", settings.steps, settings.steps)
        code.restore(at.best_state)
        return at.best_step

    def measure(self, factors: FactorPairs) -> dict[str, float]:
        """Return the held-out loss with the factors that a file decodes to, by its name in the header."""
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["file"] = self._held_out_loss(_to_pairs(factors, self._device), "loss of the file")
        self._factors = {}
        return {"distance" if self._data.measured == "adapter" else "loss": self._losses["file"]}

    def is_better(self, trained: FactorPairs, weights: FactorPairs) -> bool:
        """Return True if the trained file has the smaller loss on the validation batches; see `ComparingTuner`."""
        pairs = [_to_pairs(each, self._device) for each in (trained, weights)]
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            losses = [self._mean_loss(each, "validation", "comparing with the weights alone") for each in pairs]
            self._losses["start"] = self._held_out_loss(pairs[1], "loss of the weights alone")
        self._is_trained = losses[0] < losses[1]
        if not self._is_trained:
            self._losses["file"], self._steps = self._losses["start"], 0
        return self._is_trained

    def report(self) -> TaskReport:
        """Return the measured losses and the number of steps, for the report of the encode."""
        data = self._data
        return TaskReport(
            **self._losses, rows=data.rows, steps=self._steps, unit=data.unit, data=data.description,
            is_trained=self._is_trained, is_distance=data.measured == "adapter",
        )  # fmt: skip

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _checked_loss(self, number: int, where: str) -> torch.Tensor:
        """Return `_training_loss`. Raises EncodeError ``task-diverged`` if it is not finite."""
        loss = self._training_loss(number)
        if not torch.isfinite(loss):
            message = f"the loss is {loss.item()} at {where}; a smaller learning rate may help"
            raise EncodeError(message, code="task-diverged")
        return loss

    def _training_loss(self, number: int) -> torch.Tensor:
        """Return the mean loss of a training batch with the attached factors."""
        data, against, batch = self._data, self._against, self._data.train[number]
        with self._autocast():
            if against == "labels":
                total, count = data.loss(self._model, batch)
                return total / max(1, count)
            kept = self._wanted(("train", number), batch)
            if against == "adapter":
                total, count = data.distance.measure(data.outputs(self._model, batch), kept)
                return total / max(1, count)
            if data.loss_fn is None and data.outputs_fn is None and data.logits_fn is not None:  # one pass does both
                outputs, labels = data.logits_fn(self._model, batch)
                total, count = functional.cross_entropy(outputs.float(), labels, reduction="sum"), len(labels)
            else:
                total, count = data.loss(self._model, batch)
                outputs = data.outputs(self._model, batch)
            distance, items = data.distance.measure(outputs, kept)
            return (total / max(1, count) + distance / max(1, items)) / 2

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.uses_bfloat16(self._model))

    def _wanted(self, key: tuple[str, int], batch: Any) -> Kept:
        """Return what the distance needs of the adapter's outputs on a batch."""

        def outputs(factors: Mapping[str, FactorPair]) -> torch.Tensor:
            before, self._factors = self._factors, factors
            try:
                with torch.no_grad():
                    return self._data.outputs(self._model, batch)
            finally:
                self._factors = before

        return self._teacher.wanted(key, lambda: outputs(self._original), lambda: outputs({}), self._device)

    def _held_out_loss(self, factors: Mapping[str, FactorPair], stage: str) -> float:
        return self._mean_loss(factors, "held_out", stage)

    def _mean_loss(self, factors: Mapping[str, FactorPair], name: str, stage: str | None) -> float:
        """Return the mean loss over the batches of `TaskData` that have this name, with these factors attached.

        Without a `stage` nothing is reported.
        """
        before, self._factors = self._factors, factors
        batches = getattr(self._data, name)
        total = scored = 0.0
        with torch.no_grad():
            for done, batch in enumerate(batches):
                self._tell(stage, done, len(batches))
                if self._data.measured == "labels":
                    loss, count = self._data.loss(self._model, batch)
                else:
                    kept = self._wanted((name, done), batch)
                    loss, count = self._data.distance.measure(self._data.outputs(self._model, batch), kept)
                total += float(loss)
                scored += count
        self._tell(stage, len(batches), len(batches))
        self._factors = before
        return total / max(1.0, scored)

    def _validate(self, at: _TrainingPosition, code: TaskCode) -> None:
        loss = self._mean_loss(_detach(code.factors()), "validation", None)  # a part of the stage of training
        if loss < at.best:
            at.best, at.best_step, at.idle, at.best_state = loss, at.step, 0, code.state()
        else:
            at.idle += 1

    def _batch_number(self, step: int) -> int:
        """Return the number of the batch for a step. Each epoch takes all batches once, in an order from the seed."""
        epoch, position = divmod(step, len(self._data.train))
        order = list(range(len(self._data.train)))
        random.Random(f"{self._settings.seed} {epoch}").shuffle(order)
        return order[position]

    def _fingerprint(self, *arrays: np.ndarray[Any, Any]) -> str:
        """Return a hash of all that a part of a checkpoint depends on: the settings, the data, and some arrays."""
        data = len(self._data.train), self._data.identity
        sha = hashlib.sha256(repr((self._settings, data)).encode())
        for array in arrays:
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def _start_fingerprint(self, start: TuningStart) -> str:
        basis = np.array([start.basis, start.generator, start.seed], np.uint64)
        return self._fingerprint(basis, start.plan.kept, start.plan.coder, start.form.singular)

    def _save(
        self, at: _TrainingPosition, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart
    ) -> None:
        state = {"fingerprint": self._start_fingerprint(start), "at": {**at.__dict__}, "code": code.state(),
                 "optimizer": optimizer.state_dict()}  # fmt: skip
        self._write_checkpoint(state)

    def _write_checkpoint(self, state: Mapping[str, Any]) -> None:
        if self._settings.checkpoint is not None:
            with atomic_file(self._settings.checkpoint) as stream:
                torch.save({**self._worth, **state}, stream)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """Return what the checkpoint holds, or None if there is none. Raises EncodeError ``task-checkpoint``."""
        path = self._settings.checkpoint
        if path is None or not Path(path).is_file():
            return None
        try:
            state = torch.load(path, weights_only=True)
            if not isinstance(state, dict):
                raise TypeError("it holds no mapping")
            return state
        except Exception as error:
            message = f"not a checkpoint of training on a task ({type(error).__name__}); remove it to begin anew"
            raise EncodeError(message, code="task-checkpoint", where=str(path)) from error

    def _foreign_checkpoint(self) -> EncodeError:
        message = "the checkpoint is of another adapter, data, size or settings; remove it to begin anew"
        return EncodeError(message, code="task-checkpoint", where=str(self._settings.checkpoint))

    def _resume(self, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart) -> _TrainingPosition:
        """Return the position that training starts from. A checkpoint also restores the code and the optimizer."""
        state = self._read_checkpoint()
        if state is None or "fingerprint" not in state:
            return _TrainingPosition()
        if state["fingerprint"] != self._start_fingerprint(start):
            raise self._foreign_checkpoint()
        code.restore(state["code"])
        optimizer.load_state_dict(state["optimizer"])
        return _TrainingPosition(**state["at"])

    def _tell(self, stage: str | None, done: int, total: int) -> None:
        if self._progress is not None and stage is not None:
            self._progress(stage, done, total)


def _to_tensor(array: np.ndarray[Any, np.dtype[np.float32]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _to_pairs(factors: FactorPairs, device: torch.device) -> dict[str, FactorPair]:
    """Return decoded factors as tensors, without modules that a file leaves out."""
    return {name: (_to_tensor(b, device), _to_tensor(a, device)) for name, (b, a) in factors.items() if b.any()}


def _detach(factors: Mapping[str, FactorPair]) -> dict[str, FactorPair]:
    return {name: (b.detach(), a.detach()) for name, (b, a) in factors.items()}
