"""`TaskCode`: the code of a file in component form whose vectors can be trained. They are coded again at every step.

Each kept component has two vectors of basis coefficients, w_u and w_v, and a size s. It adds to delta_W

    s u v^T,   u (out,) = G_u^T code(w_u) / norm,   v (in,) = G_v^T code(w_v) / norm

The forward pass uses the vectors as the encoder's own coders (trellises included) reproduce them, scaled to norm 1. The
backward pass takes the gradient as that of the uncoded vectors (the straight-through estimator). Both sides of a
component have the norm sqrt(s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from nola_codec.model.adapter import Codable
from nola_codec.training.attach import FactorPair


@dataclass
class _VectorBatch:
    """The vectors of the kept units of one side and one length.

    Attributes:
        side: 0 for u, 1 for v.
        length: The length of a vector.
        units: The positions of the units in the form, (rows,).
        vectors: The trained numbers, float32 (rows, length).
        transform: The bases, one for each row.
        coded: The vectors as the coders reproduce them, (rows, length), each row of norm 1.
    """

    side: int
    length: int
    units: np.ndarray[Any, np.dtype[np.int64]]
    vectors: torch.nn.Parameter
    transform: HadamardTransform
    coded: torch.Tensor


class TaskCode:
    """The trainable form of a `TuningStart`.

    Attributes:
        modules: The modules that have kept components.
        log_sizes: float32 (kept,), log(s) / 2: the logarithm of the factor on each side of a component.
    """

    def __init__(self, start: TuningStart, device: torch.device) -> None:
        """Copy a start to a device. Raises EncodeError ``task-form`` if a tensor is not a pair of factors."""
        self._start, self._device = start, device
        self._matrices: tuple[dict[int, Any], ...] = tuple(
            {length: np.array(matrix) for length, matrix in side.items()} for side in start.form.matrices
        )
        first, second = self._matrices
        self._form = replace(start.form, matrices=(first, second))
        self._workspace = Workspace()
        self._kept = start.plan.kept
        records = start.form.record[self._kept]
        require_pairs(start.items)
        items = start.items
        self.modules = [items[i] for i in np.unique(records).tolist()]
        self._components_of = {items[i].name: np.flatnonzero(records == i) for i in np.unique(records).tolist()}
        norm = np.full(start.form.units, 1e-30)
        norm[start.quantized.kept] = sizes(start.form, start.quantized, start.basis)
        self.log_sizes = torch.nn.Parameter(
            torch.tensor(np.log(norm[self._kept]) / 2, dtype=torch.float32, device=device)
        )
        self._batches = [
            self._make_batch(side, int(length))
            for side in (0, 1)
            for length in np.unique(start.form.lengths[side, self._kept])
        ]
        # For each side and unit: the number of its batch, and its row in the batch.
        self._positions = np.zeros((2, start.form.units, 2), np.int64)
        for number, batch in enumerate(self._batches):
            self._positions[batch.side, batch.units, 0] = number
            self._positions[batch.side, batch.units, 1] = np.arange(len(batch.units))
        self.code()

    def _make_batch(self, side: int, length: int) -> _VectorBatch:
        start, form = self._start, self._start.form
        units = self._kept[form.lengths[side, self._kept] == length]
        rows = torch.from_numpy(self._matrices[side][length][form.rows[side, units]]).to(self._device)
        keys = tuple(
            BasisKey(start.generator, start.seed, 2 * start.streams[record] + side)
            for record in form.record[units].tolist()
        )
        transform = HadamardTransform(length, length, keys, TorchArrays(self._device))
        return _VectorBatch(side, length, units, torch.nn.Parameter(rows), transform, torch.zeros_like(rows))

    @property
    def vectors(self) -> list[torch.nn.Parameter]:
        """All trained vectors, one parameter for each batch of equal lengths."""
        return [batch.vectors for batch in self._batches]

    @property
    def numbers(self) -> int:
        """The number of elements of all vectors."""
        return sum(vectors.numel() for vectors in self.vectors)

    def code(self) -> None:
        """Code the present vectors again."""
        made = self._quantize()
        position = np.full(self._form.units, -1, np.int64)
        position[made.kept] = np.arange(len(made.kept))
        for batch in self._batches:
            own = position[batch.units]
            points = np.zeros((len(own), batch.length), np.float32)  # a unit whose levels are all 0 has no code
            if (own >= 0).any():
                points[own >= 0] = unit_points(self._form, made, batch.side, own[own >= 0], 0)
            coded = torch.from_numpy(points).to(self._device)
            batch.coded = coded / coded.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def factors(self) -> dict[str, FactorPair]:
        """Return lora_B (out, kept) and lora_A (kept, in) of each module with kept components, with autograd."""
        made = []
        for batch in self._batches:
            unit = _StraightThrough.apply(batch.vectors, batch.coded)  # type: ignore[no-untyped-call]
            norm = basis_by_id(self._start.basis).norm2(batch.length) ** 0.5
            made.append(batch.transform.synthesize(unit[:, None])[:, 0] / norm)  # (rows, length)
        scale = self.log_sizes.exp()
        found: dict[str, FactorPair] = {}
        for name, own in self._components_of.items():
            sides = []
            for side in (0, 1):
                positions = self._positions[side, self._kept[own]]
                rows = torch.stack([made[batch][row] for batch, row in positions.tolist()])
                sides.append(rows * scale[torch.from_numpy(own).to(self._device)][:, None])
            found[name] = (sides[0].T, sides[1])
        return found

    def result(self) -> TrainedForm:
        """Return a copy of the present vectors and sizes, for the encoder."""
        self._write_vectors()
        first, second = ({length: matrix.copy() for length, matrix in side.items()} for side in self._matrices)
        size = np.zeros(self._form.units)
        size[self._kept] = np.exp(2 * self.log_sizes.detach().double().cpu().numpy())
        workspace = Workspace(tables=dict(self._workspace.tables))
        return TrainedForm(replace(self._form, matrices=(first, second)), size, workspace)

    def state(self) -> dict[str, Any]:
        """Return a copy of all trained numbers."""
        return {"vectors": [v.detach().clone() for v in self.vectors], "log_sizes": self.log_sizes.detach().clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the trained numbers to those that `state` returned."""
        with torch.no_grad():
            for vector, stored in zip(self.vectors, state["vectors"], strict=True):
                vector.copy_(stored)
            self.log_sizes.copy_(state["log_sizes"])
        self.code()

    def _quantize(self) -> QuantizedForm:
        self._write_vectors()
        self._workspace = Workspace(tables=self._workspace.tables)
        return quantize(self._form, self._start.plan, self._start.basis, self._workspace)

    def _write_vectors(self) -> None:
        """Put the vectors into the form, scaled to a mean square of 1."""
        for batch in self._batches:
            values = batch.vectors.detach()
            values = values / values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
            self._matrices[batch.side][batch.length][self._form.rows[batch.side, batch.units]] = values.cpu().numpy()


def require_pairs(items: Sequence[Codable]) -> None:
    """Raise EncodeError ``task-form`` if a tensor is not a pair of factors that is a delta by itself."""
    wrong = [item for item in items if not item.is_whole_delta]
    if wrong:
        message = "only pairs of factors that are a delta by themselves can be trained on a task"
        raise EncodeError(message, code="task-form", where=wrong[0].name)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, coded: torch.Tensor) -> torch.Tensor:
        return coded.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None
