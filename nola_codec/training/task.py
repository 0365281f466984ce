"""`TaskTuner`: trains the coefficients of a file in component form on a task, with quantization in the loop.

tuner = TaskTuner(model, TaskData(train, validation, held_out, loss_fn))
nola_codec.encode("lora", "task.nola", size="20KB", fit="task", tuner=tuner)
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from nola_codec.encoder.report import TaskReport
from nola_codec.encoder.tuning import FactorPairs, TrainedForm, TuningStart
from nola_codec.errors import EncodeError, mismatch
from nola_codec.model.adapter import Codable
from nola_codec.progress import Progress
from nola_codec.stores.files import atomic_file
from nola_codec.training.attach import FactorPair, attach_factors, freeze_weights
from nola_codec.training.task_code import TaskCode

LossFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, int]]
"""``loss_fn(model, batch)`` returns the loss summed over all scored items, and the number of scored items."""
LogitsFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
"""``logits_fn(model, batch)`` returns the logits of the scored items (scored, classes), and their labels, int64
(scored,)."""
Against = Literal["labels", "adapter", "both"]


@dataclass(frozen=True)
class TaskData:
    """The data of a task, and the functions that score a model on it.

    Attributes:
        train: Batches to train on.
        validation: Batches whose loss decides when training stops, and which step is the best.
        held_out: Batches that are only used to report a loss.
        loss_fn: The loss; see `LossFn`. None is the cross-entropy of `logits_fn`.
        logits_fn: The logits; see `LogitsFn`. They are needed to match the outputs of the adapter.
        unit: The unit of the loss.
        rows: The number of rows in `held_out`, for the report.
        identity: A name of the data and the model. Training does not resume from a checkpoint with another one.
    """

    train: Sequence[Any]
    validation: Sequence[Any]
    held_out: Sequence[Any]
    loss_fn: LossFn | None = None
    logits_fn: LogitsFn | None = None
    unit: str = "nats"
    rows: int = 0
    identity: str = ""

    def loss(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        """Return the loss summed over the scored items of a batch, and the number of these items."""
        if self.loss_fn is not None:
            return self.loss_fn(model, batch)
        assert self.logits_fn is not None
        logits, labels = self.logits_fn(model, batch)
        return functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the training.

    Attributes:
        against: The loss that is minimized: ``labels`` for `TaskData.loss_fn`; ``adapter`` for the Kullback-Leibler
            divergence from the distribution that the original adapter predicts; ``both`` for the mean of the two.
        steps: The most steps, with one batch each. The learning rate falls to zero along a cosine.
        learning_rate: Adam's learning rate for coefficients, which have unit variance.
        size_rate: Adam's learning rate for the logarithms of the sizes of components.
        every: The number of steps between two validations.
        patience: The number of validations in a row without a better loss after which training stops.
        seed: The seed of the order of batches.
        checkpoint: A file that is written at every validation. If it exists, training resumes from it. The caller
            removes it.
    """

    against: Against = "labels"
    steps: int = 150
    learning_rate: float = 0.03
    size_rate: float = 0.01
    every: int = 25
    patience: int = 3
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.against not in ("labels", "adapter", "both"):
            raise EncodeError(mismatch("against", "labels, adapter or both", repr(self.against)), code="option")
        for name in ("steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise EncodeError(mismatch(name, "a positive number", getattr(self, name)), code="option")
        for name in ("learning_rate", "size_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise EncodeError(mismatch(name, "a positive number", getattr(self, name)), code="option")


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
            EncodeError: ``task-data``: there is nothing to train on or to measure on, or logits are needed and there
                is no `logits_fn`.
        """
        self._model, self._data, self._settings = model, data, settings or TaskSettings()
        self._progress = progress
        for name in ("train", "validation", "held_out"):
            if not len(getattr(data, name)):
                raise EncodeError(f"no batches in {name}", code="task-data")
        if data.loss_fn is None and data.logits_fn is None:
            raise EncodeError("neither loss_fn nor logits_fn is given", code="task-data")
        if self._settings.against != "labels" and data.logits_fn is None:
            raise EncodeError("matching the adapter's outputs needs logits_fn", code="task-data")
        self._modules: Sequence[Codable] = []
        self._factors: Mapping[str, FactorPair] = {}
        self._losses: dict[str, float] = {}
        self._steps = 0

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train the coefficients; see `encoder.tuning.Tuner`.

        Raises:
            EncodeError: ``calibration-module``: the model lacks a layer; ``task-form``: the adapter has tensors that
                are not pairs of factors; ``task-diverged``: the loss is not finite; ``task-checkpoint``: the checkpoint
                is of another training.
        """
        device = next(self._model.parameters()).device
        code = TaskCode(start, device)
        self._modules = start.items
        original = {m.name: (_to_tensor(m.sides[0], device), _to_tensor(m.sides[1], device)) for m in self._modules}
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["base"] = self._mean_loss({}, self._data.held_out, "loss of the base model")
            self._losses["adapter"] = self._mean_loss(original, self._data.held_out, "loss of the adapter")
            untrained = _detach(code.factors())
            self._losses["start"] = self._mean_loss(untrained, self._data.held_out, "loss before training")
            self._steps = self._train(code, start, original)
        self._factors = {}
        return code.result()

    def _train(self, code: TaskCode, start: TuningStart, original: Mapping[str, FactorPair]) -> int:
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
            batch = self._data.train[self._batch_number(at.step)]
            optimizer.zero_grad()
            self._factors = code.factors()
            loss = self._loss(batch, original)
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
        device = next(self._model.parameters()).device
        pairs = {name: (_to_tensor(b, device), _to_tensor(a, device)) for name, (b, a) in factors.items() if b.any()}
        with freeze_weights(self._model), attach_factors(self._model, self._modules, lambda: self._factors):
            self._losses["file"] = self._mean_loss(pairs, self._data.held_out, "loss of the file")
        self._factors = {}
        return self._losses["file"]

    def report(self) -> TaskReport:
        """Return the measured losses and the number of steps, for the report of the encode."""
        return TaskReport(**self._losses, rows=self._data.rows, steps=self._steps, unit=self._data.unit)

    def _loss(self, batch: Any, original: Mapping[str, FactorPair]) -> torch.Tensor:
        """Return the mean loss of a training batch with the attached factors."""
        data, against = self._data, self._settings.against
        if against == "labels":
            total, count = data.loss(self._model, batch)
            return total / max(1, count)
        assert data.logits_fn is not None
        trained = self._factors
        with torch.no_grad():
            self._factors = original
            wanted = functional.log_softmax(data.logits_fn(self._model, batch)[0].float(), -1)
        self._factors = trained
        logits, labels = data.logits_fn(self._model, batch)
        found = functional.log_softmax(logits.float(), -1)
        divergence = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        return divergence if against == "adapter" else (divergence + functional.nll_loss(found, labels)) / 2

    def _mean_loss(self, factors: Mapping[str, FactorPair], batches: Sequence[Any], stage: str | None) -> float:
        """Return the mean loss over batches with these factors attached; without a `stage` nothing is reported."""
        before, self._factors = self._factors, factors
        total = scored = 0.0
        with torch.no_grad():
            for done, batch in enumerate(batches):
                self._tell(stage, done, len(batches))
                loss, count = self._data.loss(self._model, batch)
                total += float(loss)
                scored += count
        self._tell(stage, len(batches), len(batches))
        self._factors = before
        return total / max(1.0, scored)

    def _validate(self, at: _TrainingPosition, code: TaskCode) -> None:
        loss = self._mean_loss(_detach(code.factors()), self._data.validation, None)  # a part of the stage of training
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
