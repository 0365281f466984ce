"""Task-space encoding: the coefficients of a weight-space code, trained against a task with quantization in the loop.

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
from nola_codec.errors import EncodeError, expected
from nola_codec.model.adapter import LoraModule
from nola_codec.progress import Progress
from nola_codec.stores.files import atomic_file
from nola_codec.training.attach import Pair, attached, frozen
from nola_codec.training.task_code import TaskCode

LossFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, int]]
"""(model, batch) -> (loss summed over what is scored, how many that are)."""
LogitsFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
"""(model, batch) -> (logits of what is scored, (scored, classes); its labels, int64 (scored,))."""
Against = Literal["labels", "adapter", "both"]


@dataclass(frozen=True)
class TaskData:
    """A task for some model.

    Attributes:
        train: Batches to train on.
        validation: Batches by which training is stopped and the best step chosen.
        held_out: Batches that are only reported on.
        loss_fn: See `LossFn`; None is the cross-entropy of `logits_fn`.
        logits_fn: See `LogitsFn`; needed for matching the adapter's own outputs.
        unit: What the loss is in.
        rows: Rows in `held_out`, for the report.
        identity: Of the data and the model: a training is not resumed with others.
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
        """Summed loss of a batch, and what it is a sum over."""
        if self.loss_fn is not None:
            return self.loss_fn(model, batch)
        assert self.logits_fn is not None
        logits, labels = self.logits_fn(model, batch)
        return functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


@dataclass(frozen=True)
class TaskSettings:
    """How to train.

    Attributes:
        against: ``labels``: `loss_fn`; ``adapter``: the Kullback-Leibler divergence from the original adapter's
            distribution; ``both``: their mean.
        steps: Steps at most, one batch each; the learning rate falls to zero along a cosine.
        learning_rate: Adam's, for coefficients of unit variance.
        size_rate: Adam's, for the logarithm of the components' sizes.
        every: Steps between validations.
        patience: Validations without a better one after which training stops.
        seed: Of the order of batches.
        checkpoint: File to resume from, written at every validation; whoever asked for it removes it.
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
            raise EncodeError(expected("against", "labels, adapter or both", repr(self.against)), code="option")
        for name in ("steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise EncodeError(expected(name, "a positive number", getattr(self, name)), code="option")
        for name in ("learning_rate", "size_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise EncodeError(expected(name, "a positive number", getattr(self, name)), code="option")


@dataclass
class _Progressed:
    """Where a training is: all that a resumed one needs."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    idle: int = 0
    best_state: dict[str, Any] = field(default_factory=dict)


class TaskTuner:
    """Trains a weight-space code on a task; see `encoder.tuning.Tuner`.

    The model's own weights are not changed. It may be on any device; the file is the same kind of file as ever.
    """

    def __init__(
        self, model: torch.nn.Module, data: TaskData, settings: TaskSettings | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Set a task.

        Args:
            model: In evaluation mode; its layers are found by the names of the adapter's modules.
            data: The task.
            settings: How to train.
            progress: Called as (stage, done, total).

        Raises:
            EncodeError: ``task-data``: nothing to train on or to measure on; or logits are wanted and not to be had.
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
        self._modules: list[LoraModule] = []
        self._factors: Mapping[str, Pair] = {}
        self._losses: dict[str, float] = {}
        self._steps = 0

    def tune(self, start: TuningStart) -> TrainedForm:
        """Train; see `Tuner`.

        Raises:
            EncodeError: ``calibration-module``: the model lacks a layer; ``task-form``: not trainable;
                ``task-diverged``: the loss is not finite; ``task-checkpoint``: the checkpoint is another training's.
        """
        settings, device = self._settings, next(self._model.parameters()).device
        code = TaskCode(start, device)
        self._modules = [item for item in start.items if isinstance(item, LoraModule)]
        original = {m.name: (_tensor(m.lora_B, device), _tensor(m.lora_A, device)) for m in self._modules}
        optimizer = torch.optim.Adam(
            [
                {"params": code.vectors, "lr": settings.learning_rate},
                {"params": [code.log_sizes], "lr": settings.size_rate},
            ],
            betas=(0.9, 0.99),
        )
        rates = [settings.learning_rate, settings.size_rate]
        with frozen(self._model), attached(self._model, self._modules, lambda: self._factors):
            self._losses["base"] = self._mean({}, self._data.held_out, "measuring the base model")
            self._losses["adapter"] = self._mean(original, self._data.held_out, "measuring the adapter")
            self._losses["start"] = self._mean(
                _plain(code.factors()), self._data.held_out, "measuring the weight-space code"
            )
            at = self._resumed(code, optimizer, start)
            if at.step == 0:
                self._validate(at, code)
            while at.step < settings.steps and at.idle < settings.patience:
                self._tell("training", at.step, settings.steps)
                share = at.step / settings.steps
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * min(1.0, (at.step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * share))
                batch = self._data.train[self._number(at.step)]
                optimizer.zero_grad()
                self._factors = code.factors()
                loss = self._loss(batch, original)
                if not torch.isfinite(loss):
                    raise EncodeError(
                        f"the loss is {loss.item()} at step {at.step}; a smaller learning rate may help",
                        code="task-diverged",
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                code.code()
                at.step += 1
                if at.step % settings.every == 0 or at.step == settings.steps:
                    self._validate(at, code)
                    self._save(at, code, optimizer, start)
            self._tell("training", settings.steps, settings.steps)
            self._factors = {}
        code.restore(at.best_state)
        self._steps = at.best_step
        return code.moved()

    def measure(self, factors: FactorPairs) -> float:
        """Held-out loss of decoded factors."""
        device = next(self._model.parameters()).device
        pairs = {name: (_tensor(b, device), _tensor(a, device)) for name, (b, a) in factors.items() if b.any()}
        with frozen(self._model), attached(self._model, self._modules, lambda: self._factors):
            self._losses["file"] = self._mean(pairs, self._data.held_out, "measuring the file")
        self._factors = {}
        return self._losses["file"]

    def report(self) -> TaskReport:
        """What was trained and measured."""
        return TaskReport(**self._losses, rows=self._data.rows, steps=self._steps, unit=self._data.unit)

    def _loss(self, batch: Any, original: Mapping[str, Pair]) -> torch.Tensor:
        """Mean loss of a training batch, with the factors that are attached."""
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

    def _mean(self, factors: Mapping[str, Pair], batches: Sequence[Any], stage: str) -> float:
        """Loss over batches."""
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

    def _validate(self, at: _Progressed, code: TaskCode) -> None:
        loss = self._mean(_plain(code.factors()), self._data.validation, "validating")
        if loss < at.best:
            at.best, at.best_step, at.idle, at.best_state = loss, at.step, 0, code.state()
        else:
            at.idle += 1

    def _number(self, step: int) -> int:
        """Of the batch of a step: every one once before any comes again, in an order of the seed's."""
        epoch, place = divmod(step, len(self._data.train))
        order = list(range(len(self._data.train)))
        random.Random(f"{self._settings.seed} {epoch}").shuffle(order)
        return order[place]

    def _print(self, start: TuningStart) -> str:
        """What makes two trainings one: the settings, the data, the plan, the adapter."""
        data = len(self._data.train), self._data.identity
        sha = hashlib.sha256(repr((self._settings, data, start.basis, start.seed)).encode())
        for array in (start.plan.kept, start.plan.coder, start.form.singular):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def _save(self, at: _Progressed, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart) -> None:
        if self._settings.checkpoint is None:
            return
        state = {"print": self._print(start), "at": {**at.__dict__}, "code": code.state(),
                 "optimizer": optimizer.state_dict()}  # fmt: skip
        with atomic_file(self._settings.checkpoint) as stream:
            torch.save(state, stream)

    def _resumed(self, code: TaskCode, optimizer: torch.optim.Optimizer, start: TuningStart) -> _Progressed:
        path = self._settings.checkpoint
        if path is None or not Path(path).is_file():
            return _Progressed()
        try:
            state = torch.load(path, weights_only=True)
            same = state["print"] == self._print(start)
        except Exception as error:
            message = f"not a checkpoint of a task encode ({type(error).__name__}); remove it to begin anew"
            raise EncodeError(message, code="task-checkpoint", where=str(path)) from error
        if not same:
            message = "of another adapter, data, size or settings; remove it to begin anew"
            raise EncodeError(message, code="task-checkpoint", where=str(path))
        code.restore(state["code"])
        optimizer.load_state_dict(state["optimizer"])
        return _Progressed(**state["at"])

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)


def _tensor(array: np.ndarray[Any, np.dtype[np.float32]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _plain(factors: Mapping[str, Pair]) -> dict[str, Pair]:
    return {name: (b.detach(), a.detach()) for name, (b, a) in factors.items()}
