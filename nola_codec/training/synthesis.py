"""A basis as a linear map that autograd knows: forward is `synthesize`, backward is `project` (NOLA, section 3.1).

    forward:   y (n,) = gain * c (k,) @ G (k, n)
    backward:  dL/dc (k,) = gain * G (k, n) @ dL/dy (n,)

Nothing is saved for the backward pass, since a basis is rebuilt from its key.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from nola_codec.arrays import TorchArrays
from nola_codec.basis import BasisKey, Hadamard, Rademacher, Uniform, basis_by_id
from nola_codec.basis.hadamard import HadamardTransform
from nola_codec.quant.scales import scale_value


class Synthesis:
    """The map y (length,) = gain * c (num_basis,) @ G for one basis G, whose rows are rebuilt when they are needed.

    The gain is nearly sqrt(n / (num_basis norm2)), where norm2 is the squared norm of a row. It makes the entries of y
    as large as those of c on average, so that a learning rate means the same for any number of coefficients, and the
    same as for the plain factor.

    Attributes:
        length: n, the numbers in y.
        num_basis: k, the numbers in c.
        grain: Scale codes are multiples of it.
        gain_code: The scale code of the gain, a multiple of `grain`, so that the scales of a file hold it unrounded.
        gain: The gain.
        kept: True if the rows of a dense basis stay in memory, in float32, once they were made.
    """

    def __init__(
        self, basis: int, key: BasisKey, length: int, num_basis: int, *, grain: int = 1, kept: bool = False
    ) -> None:
        self._basis, self.key = basis_by_id(basis), key
        self.length, self.num_basis, self.grain, self.kept = length, num_basis, grain, kept
        wanted = 16 * math.log2(
            length / (num_basis * self._basis.norm2(length))
        )  # in 32nds of an octave: 16, and not 32, for the root
        self.gain_code = grain * round(wanted / grain)
        self.gain = float(scale_value(np.array([self.gain_code]))[0])
        self._words: dict[torch.device, HadamardTransform] = {}
        self._rows: dict[torch.device, torch.Tensor] = {}

    def __call__(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Map (num_basis,) floats to (length,) of the same dtype, differentiably."""
        made: torch.Tensor = _Synthesize.apply(coefficients, self)  # type: ignore[no-untyped-call]
        return made

    def forward(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Map (num_basis,) to (length,) without autograd."""
        with _full_precision(coefficients.device):
            return self._forward(coefficients) * self.gain

    def adjoint(self, vector: torch.Tensor) -> torch.Tensor:
        """Map (length,) to gain times its inner products with the rows, (num_basis,)."""
        with _full_precision(vector.device):
            return self._adjoint(vector) * self.gain

    def least_squares(self, vector: torch.Tensor, steps: int = 12) -> torch.Tensor:
        """The coefficients (num_basis,) whose image is nearest to a vector (length,).

        The rows of `hadamard` are orthogonal, so that this is a closed form. Else it takes `steps` of conjugate
        gradients at most.
        """
        wanted = self.adjoint(vector)
        if isinstance(self._basis, Hadamard):
            return wanted / (self.gain**2 * self._basis.norm2(self.length))
        x, residual = torch.zeros_like(wanted), wanted
        direction, power = residual, residual @ residual
        for _ in range(steps):
            if not power > 0:
                break
            image = self.adjoint(self.forward(direction))
            step = power / (direction @ image)
            x, residual = x + step * direction, residual - step * image
            after = residual @ residual
            direction, power = residual + after / power * direction, after
        return x

    def _forward(self, values: torch.Tensor) -> torch.Tensor:
        if isinstance(self._basis, Hadamard):
            made: torch.Tensor = self._words_on(values.device).synthesize(values[None, None])[0, 0]
            return made
        if self.kept:
            return values @ self._rows_on(values.device).to(values.dtype)
        xp = TorchArrays(values.device)
        made = self._basis.synthesize_floats(values[None, None], self.length, (self.key,), xp)[0, 0]  # type: ignore[attr-defined]
        return made

    def _adjoint(self, vector: torch.Tensor) -> torch.Tensor:
        if isinstance(self._basis, Hadamard):
            made: torch.Tensor = self._words_on(vector.device).project(vector[None, None])[0, 0]
            return made
        if self.kept:
            return self._rows_on(vector.device).to(vector.dtype) @ vector
        projected: torch.Tensor = self._basis.project(
            vector[None, None], self.num_basis, (self.key,), TorchArrays(vector.device)
        )[0, 0]
        return projected

    def _words_on(self, device: torch.device) -> HadamardTransform:
        if device not in self._words:
            # Signs as floats: four bytes an element of a factor, and no cast in every pass.
            self._words[device] = HadamardTransform(
                self.length, self.num_basis, (self.key,), TorchArrays(device), "float32"
            )
        return self._words[device]

    def _rows_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._rows:
            assert isinstance(self._basis, Rademacher | Uniform)
            parts = self._basis.rows(self.key, self.length, self.num_basis, TorchArrays(device), "float32")
            self._rows[device] = torch.cat([rows for _, rows in parts])
        return self._rows[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_words": {}, "_rows": {}}  # made again from the key


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast."""
    known = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


class _Synthesize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, synthesis: Synthesis) -> torch.Tensor:
        ctx.synthesis = synthesis
        return synthesis.forward(coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.synthesis.adjoint(grad.contiguous()), None
