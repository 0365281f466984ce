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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from nola_codec.encoder.report import TaskReport
from nola_codec.encoder.tuning import FactorPairs, TrainedForm, TuningStart
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Codable
from nola_codec.progress import Progress
from nola_codec.stores.files import atomic_file
from nola_codec.training.attach import FactorPair, attach_factors, freeze_weights
from nola_codec.training.task_code import TaskCode
from nola_codec.training.task_data import Against, LogitsFn, LossFn, OutputsFn, TaskData, TaskSettings
from nola_codec.training.task_distance import Kept
from nola_codec.training.task_teacher import Teacher

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
        data.check(self._settings.against)
        self._teacher = Teacher(data.distance, self._settings.teacher_bytes)
        self._modules: Sequence[Codable] = []
        self._factors: Mapping[str, FactorPair] = {}
        self._original: Mapping[str, FactorPair] = {}
        self._losses: dict[str, float] = {}
        self._steps = 0

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train the coefficients; see `encoder.tuning.Tuner`.

        Raises:
            EncodeError: ``calibration-module``: the model lacks a layer; ``task-form``: the adapter has tensors that
                are not pairs of factors; ``task-diverged``: the loss is not finite; ``task-checkpoint``: the checkpoint
                is of another training.
        """
        code = TaskCode(start, self._device)
        self._modules = start.items
        self._original = {
            m.name: (_to_tensor(m.sides[0], self._device), _to_tensor(m.sides[1], self._device)) for m in self._modules
        }
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["base"] = self._held_out_loss({}, "loss of the base model")
            # The distance from the adapter to itself is 0.
            is_zero = self._data.measured == "adapter"
            self._losses["adapter"] = 0.0 if is_zero else self._held_out_loss(self._original, "loss of the adapter")
            self._losses["start"] = self._held_out_loss(_detach(code.factors()), "loss before training")
            self._steps = self._train(code, start)
        self._factors = {}
        return code.result()

    def _train(self, code: TaskCode, start: TuningStart) -> int:
        """Train a code from its start or from a checkpoint. Set it to its best step, and return that step."""
        settings = self._settings
        rates = [settings.learning_rate, settings.size_rate]
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
            loss = self._training_loss(self._batch_number(at.step))
            if not torch.isfinite(loss):
                message = f"the loss is {loss.item()} at step {at.step}; a smaller learning rate may help"
                raise EncodeError(message, code="task-diverged")
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

    def measure(self, factors: FactorPairs) -> float:
        """Return the held-out loss with the factors that a file decodes to."""
        device = self._device
        pairs = {name: (_to_tensor(b, device), _to_tensor(a, device)) for name, (b, a) in factors.items() if b.any()}
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["file"] = self._held_out_loss(pairs, "loss of the file")
        self._factors = {}
        return self._losses["file"]

    def report(self) -> TaskReport:
        """Return the measured losses and the number of steps, for the report of the encode."""
        data = self._data
        return TaskReport(**self._losses, rows=data.rows, steps=self._steps, unit=data.unit, data=data.description)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _training_loss(self, number: int) -> torch.Tensor:
        """Return the mean loss of a training batch with the attached factors."""
        data, against, batch = self._data, self._settings.against, self._data.train[number]
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

    def _fingerprint(self, start: TuningStart) -> str:
        """Return a hash of all that a checkpoint depends on: the settings, the data, the plan and the adapter."""
        data = len(self._data.train), self._data.identity
        sha = hashlib.sha256(repr((self._settings, data, start.basis, start.seed)).encode())
        for array in (start.plan.kept, start.plan.coder, start.form.singular):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def _save(
        self, at: _TrainingPosition, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart
    ) -> None:
        if self._settings.checkpoint is None:
            return
        state = {"fingerprint": self._fingerprint(start), "at": {**at.__dict__}, "code": code.state(),
                 "optimizer": optimizer.state_dict()}  # fmt: skip
        with atomic_file(self._settings.checkpoint) as stream:
            torch.save(state, stream)

    def _resume(self, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart) -> _TrainingPosition:
        """Return the position that training starts from. A checkpoint also restores the code and the optimizer."""
        path = self._settings.checkpoint
        if path is None or not Path(path).is_file():
            return _TrainingPosition()
        try:
            state = torch.load(path, weights_only=True)
            same = state["fingerprint"] == self._fingerprint(start)
        except Exception as error:
            message = f"not a checkpoint of training on a task ({type(error).__name__}); remove it to begin anew"
            raise EncodeError(message, code="task-checkpoint", where=str(path)) from error
        if not same:
            message = "the checkpoint is of another adapter, data, size or settings; remove it to begin anew"
            raise EncodeError(message, code="task-checkpoint", where=str(path))
        code.restore(state["code"])
        optimizer.load_state_dict(state["optimizer"])
        return _TrainingPosition(**state["at"])

    def _tell(self, stage: str | None, done: int, total: int) -> None:
        if self._progress is not None and stage is not None:
            self._progress(stage, done, total)


def _to_tensor(array: np.ndarray[Any, np.dtype[np.float32]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _detach(factors: Mapping[str, FactorPair]) -> dict[str, FactorPair]:
    return {name: (b.detach(), a.detach()) for name, (b, a) in factors.items()}
