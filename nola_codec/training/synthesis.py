"""Make a basis a linear map for autograd: forward is `synthesize`, backward is `project` (NOLA, section 3.1).

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
from nola_codec.basis import BasisKey, Transform, basis_by_id
from nola_codec.quant.scales import scale_value


class Synthesis:
    """The map y (length,) = gain * c (num_basis,) @ G for one basis G, whose rows are rebuilt when they are needed.

    The gain is nearly sqrt(n / (num_basis norm2)), where norm2 is the squared norm of a row. On average it makes the
    entries of y as large as those of c. So a learning rate means the same for any number of coefficients, and the same
    as for the plain factor.

    Attributes:
        key: The key of the basis.
        length: n, the number of elements of y.
        num_basis: k, the number of coefficients.
        grain: The number that scale codes are multiples of.
        gain_code: The scale code of the gain, a multiple of `grain`, so that the scales of a file can contain the gain
            without rounding.
        gain: The gain.
        kept: True if the rows of a dense basis stay in memory, in float32, after they were made.
    """

    def __init__(
        self, basis: int, key: BasisKey, length: int, num_basis: int, *, grain: int = 1, kept: bool = False
    ) -> None:
        self._basis, self.key = basis_by_id(basis), key
        self.length, self.num_basis, self.grain, self.kept = length, num_basis, grain, kept
        # The code counts 32nds of an octave, and the square root halves the logarithm, hence 16.
        wanted = 16 * math.log2(length / (num_basis * self._basis.norm2(length)))
        self.gain_code = grain * round(wanted / grain)
        self.gain = float(scale_value(np.array([self.gain_code]))[0])
        self._transforms: dict[torch.device, Transform] = {}

    def __call__(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Map (num_basis,) to (length,) of the same float dtype, with autograd."""
        made: torch.Tensor = _Synthesize.apply(coefficients, self)  # type: ignore[no-untyped-call]
        return made

    def forward(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Map (num_basis,) to (length,) without autograd."""
        with _full_precision(coefficients.device):
            return self._forward(coefficients) * self.gain

    def adjoint(self, vector: torch.Tensor) -> torch.Tensor:
        """Map a vector (length,) to the gain times its inner products with the rows, (num_basis,)."""
        with _full_precision(vector.device):
            return self._adjoint(vector) * self.gain

    def least_squares(self, vector: torch.Tensor, steps: int = 12) -> torch.Tensor:
        """Return the coefficients (num_basis,) whose image is nearest to a vector (length,).

        The rows of `hadamard` are orthogonal, so there is a closed form. For other bases it takes at most `steps` steps
        of conjugate gradients.
        """
        wanted = self.adjoint(vector)
        if self._basis.is_orthogonal:
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
        own = values[None, None]  # (groups, batch, num_basis)
        if self.kept or self._basis.is_fast:
            made: torch.Tensor = self._transform_on(values.device).synthesize(own)[0, 0]
            return made
        made = self._basis.synthesize_floats(own, self.length, (self.key,), TorchArrays(values.device))[0, 0]
        return made

    def _adjoint(self, vector: torch.Tensor) -> torch.Tensor:
        own = vector[None, None]  # (groups, batch, length)
        if self.kept or self._basis.is_fast:
            made: torch.Tensor = self._transform_on(vector.device).project(own)[0, 0]
            return made
        made = self._basis.project(own, self.num_basis, (self.key,), TorchArrays(vector.device))[0, 0]
        return made

    def _transform_on(self, device: torch.device) -> Transform:
        if device not in self._transforms:
            # Signs are kept as floats: they take four bytes for each element of a factor, but need no cast in a pass.
            self._transforms[device] = self._basis.transform(
                self.length, self.num_basis, (self.key,), TorchArrays(device), "float32"
            )
        return self._transforms[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transforms": {}}  # made again from the key


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that turns off autocast."""
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
