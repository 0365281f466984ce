"""The weight-space code as something that can be trained: vectors in full precision, coded anew at every step.

Each kept component has two vectors of basis coefficients, w_u and w_v, and a size s. The forward pass takes what the
encoder's own coders (trellises included) make of the vectors, scaled to norm 1; the backward pass takes it for the
vectors themselves, the straight-through estimator. Both sides of a component get the norm sqrt(s).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from nola_codec.arrays import TorchArrays
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.basis.hadamard import HadamardTransform
from nola_codec.encoder.tuning import TrainedForm, TuningStart, sizes
from nola_codec.errors import EncodeError
from nola_codec.fit.levels import Workspace
from nola_codec.fit.quantize import QuantizedForm, quantize, unit_points
from nola_codec.model.adapter import LoraModule
from nola_codec.training.attach import Pair


@dataclass
class _Group:
    """The kept units' vectors of one side and length.

    Attributes:
        side: 0 u, 1 v.
        length: Of the vectors.
        units: Of the form, (rows,).
        vectors: Trained, float32 (rows, length).
        words: The bases, one a row.
        coded: What the coders made of the vectors, rows of norm 1.
    """

    side: int
    length: int
    units: np.ndarray[Any, np.dtype[np.int64]]
    vectors: torch.nn.Parameter
    words: HadamardTransform
    coded: torch.Tensor


class TaskCode:
    """Trainable form of a `TuningStart`.

    Attributes:
        modules: Those that have kept components.
        log_sizes: (kept,) float32, log of s / 2: what both sides are multiplied by, in the logarithm.
    """

    def __init__(self, start: TuningStart, device: torch.device) -> None:
        """Take a start to a device; raises EncodeError ``task-form`` for what is no pair of factors of its own."""
        self._start, self._device = start, device
        self._matrices: tuple[dict[int, Any], ...] = tuple(
            {length: np.array(matrix) for length, matrix in side.items()} for side in start.form.matrices
        )
        first, second = self._matrices
        self._bank = replace(start.form, matrices=(first, second))
        self._workspace = Workspace()
        self._kept = start.plan.kept
        records = start.form.record[self._kept]
        wrong = [i for i in start.items if not isinstance(i, LoraModule) or i.gain is not None]
        if wrong:
            message = "only pairs of factors that are a delta by themselves can be trained on a task"
            raise EncodeError(message, code="task-form", where=wrong[0].name)
        items = [item for item in start.items if isinstance(item, LoraModule)]
        self.modules = [items[i] for i in np.unique(records).tolist()]
        self._members = {items[i].name: np.flatnonzero(records == i) for i in np.unique(records).tolist()}
        norm = np.full(start.form.units, 1e-30)
        norm[start.quantized.kept] = sizes(start.form, start.quantized, start.basis)
        self.log_sizes = torch.nn.Parameter(
            torch.tensor(np.log(norm[self._kept]) / 2, dtype=torch.float32, device=device)
        )
        self._groups = [
            self._group(side, int(length))
            for side in (0, 1)
            for length in np.unique(start.form.lengths[side, self._kept])
        ]
        self._places = np.zeros((2, start.form.units, 2), np.int64)  # of each side and unit: its group, its row
        for number, group in enumerate(self._groups):
            self._places[group.side, group.units, 0] = number
            self._places[group.side, group.units, 1] = np.arange(len(group.units))
        self.code()

    def _group(self, side: int, length: int) -> _Group:
        start, form = self._start, self._start.form
        units = self._kept[form.lengths[side, self._kept] == length]
        rows = torch.from_numpy(self._matrices[side][length][form.rows[side, units]]).to(self._device)
        keys = tuple(
            BasisKey(start.generator, start.seed, 2 * start.streams[record] + side)
            for record in form.record[units].tolist()
        )
        words = HadamardTransform(length, length, keys, TorchArrays(self._device))
        return _Group(side, length, units, torch.nn.Parameter(rows), words, torch.zeros_like(rows))

    @property
    def vectors(self) -> list[torch.nn.Parameter]:
        """Of all groups."""
        return [group.vectors for group in self._groups]

    def code(self) -> None:
        """Code the vectors as they stand."""
        made = self._quantized()
        position = np.full(self._bank.units, -1, np.int64)
        position[made.kept] = np.arange(len(made.kept))
        for group in self._groups:
            own = position[group.units]
            points = np.zeros((len(own), group.length), np.float32)  # a unit whose levels are all 0 is not coded
            if (own >= 0).any():
                points[own >= 0] = unit_points(self._bank, made, group.side, own[own >= 0], 0)
            coded = torch.from_numpy(points).to(self._device)
            group.coded = coded / coded.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def factors(self) -> dict[str, Pair]:
        """(lora_B (out, kept), lora_A (kept, in)) of the modules that have kept components; differentiable."""
        made = []
        for group in self._groups:
            unit = _Straight.apply(group.vectors, group.coded)  # type: ignore[no-untyped-call]
            norm = basis_by_id(self._start.basis).norm2(group.length) ** 0.5
            made.append(group.words.synthesize(unit[:, None])[:, 0] / norm)
        scale = self.log_sizes.exp()
        found: dict[str, Pair] = {}
        for name, own in self._members.items():
            sides = []
            for side in (0, 1):
                places = self._places[side, self._kept[own]]
                rows = torch.stack([made[group][row] for group, row in places.tolist()])
                sides.append(rows * scale[torch.from_numpy(own).to(self._device)][:, None])
            found[name] = (sides[0].T, sides[1])
        return found

    def moved(self) -> TrainedForm:
        """The vectors as they stand, for the encoder."""
        self._write()
        size = np.zeros(self._bank.units)
        size[self._kept] = np.exp(2 * self.log_sizes.detach().double().cpu().numpy())
        return TrainedForm(self._bank, size)

    def state(self) -> dict[str, Any]:
        """Everything trained."""
        return {"vectors": [v.detach().clone() for v in self.vectors], "log_sizes": self.log_sizes.detach().clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        with torch.no_grad():
            for vector, stored in zip(self.vectors, state["vectors"], strict=True):
                vector.copy_(stored)
            self.log_sizes.copy_(state["log_sizes"])
        self.code()

    def _quantized(self) -> QuantizedForm:
        self._write()
        self._workspace = Workspace(tables=self._workspace.tables)
        return quantize(self._bank, self._start.plan, self._start.basis, self._workspace)

    def _write(self) -> None:
        """Put the vectors, with a mean square of 1, into the form."""
        for group in self._groups:
            values = group.vectors.detach()
            values = values / values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
            self._matrices[group.side][group.length][self._bank.rows[group.side, group.units]] = values.cpu().numpy()


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, coded: torch.Tensor) -> torch.Tensor:
        return coded.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None
