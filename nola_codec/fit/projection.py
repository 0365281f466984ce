"""Fit factors in the factor form: one basis for each factor, alternating least squares on ||delta_W - B A||_F^2.

With A fixed, the error is quadratic in the coefficients b of B = P^T b, where P is the basis. The best b solves
P (B A A^T) = P (delta_W A^T). This matrix is never formed: conjugate gradients take one synthesis and one projection a
step, which cost n log n for the Hadamard basis. delta_W stays a product of two factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.fit.components import singular_components
from nola_codec.model.quantizers import Codebook
from nola_codec.quant.codebooks import mse_scale, nearest_symbols

_CACHE_BYTES = 256 << 20
_CG_STEPS = 12
_SWEEPS = 8
_TOLERANCE = 1e-4


class FactorBasis:
    """The basis of one flat factor for float coefficients, with rows of norm 1.

    A dense basis is made once and kept while the factor is fitted. A dense basis of more than 256 MiB is not kept and
    can only project.

    Attributes:
        id: The id of the basis.
        length: The length of the factor.
        num_basis: The number of coefficients.
    """

    def __init__(self, basis: int, key: BasisKey, length: int, num_basis: int) -> None:
        self._basis, self._key, self.id = basis_by_id(basis), key, basis
        self.length, self.num_basis = length, num_basis
        self._norm = 1 / np.sqrt(self._basis.norm2(length))
        self._dense: npt.NDArray[np.float32] | None = None
        if not self._basis.is_fast and length * num_basis * 4 <= _CACHE_BYTES:
            identity = np.eye(num_basis, dtype=np.int8)[None]
            rows = self._basis.synthesize(identity, length, (key,), 1, NUMPY)[0]
            self._dense = (rows * self._norm).astype(np.float32)

    def synthesize(self, coefficients: Float64Array) -> Float64Array:
        """Return sum_i coefficients_i * row_i, float64 (length,).

        Raises:
            MemoryError: A dense basis takes more than 256 MiB.
        """
        if self._dense is not None:
            return np.asarray(coefficients.astype(np.float32) @ self._dense, np.float64)
        if self._basis.is_fast:
            made = self._basis.synthesize_floats(coefficients[None, None], self.length, (self._key,), NUMPY)[0, 0]
            return np.asarray(made * self._norm, np.float64)
        raise MemoryError(
            f"a dense basis of {self.num_basis} x {self.length} does not fit in {_CACHE_BYTES >> 20} MiB; "
            "use the hadamard basis, or fewer coefficients"
        )

    def project(self, vector: Float64Array) -> Float64Array:
        """Return the inner products of a vector (length,) with the rows, float64 (num_basis,)."""
        if self._dense is not None:
            return np.asarray(self._dense @ vector.astype(np.float32), np.float64)
        rows = self._basis.project(vector[None, None], self.num_basis, (self._key,), NUMPY)[0, 0]
        return np.asarray(rows * self._norm, np.float64)


@dataclass(frozen=True)
class Projection:
    """A fitted pair of factors.

    Attributes:
        symbols: uint16 (num_basis,) for lora_B and for lora_A: the symbols of the coefficients.
        scales: For each side, the factor on its points, for basis rows of norm 1.
        energy_kept: 1 - ||delta_W - B A||^2 / ||delta_W||^2 before quantization.
        energy_bound: The same number at the start of the fit, which is the projection of each balanced factor.
    """

    symbols: tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]
    scales: tuple[float, float]
    energy_kept: float
    energy_bound: float


def fit_projection(
    lora_B: npt.NDArray[np.float32],
    lora_A: npt.NDArray[np.float32],
    rank: int,
    bases: tuple[FactorBasis, FactorBasis],
    codebook: Codebook,
) -> Projection:
    """Fit the coefficients of both factors to lora_B @ lora_A, then quantize them one after the other.

    Args:
        lora_B: float32 (out, r), from the adapter.
        lora_A: float32 (r, in), from the adapter.
        rank: The rank of the fitted factors.
        bases: The basis of lora_B (length out * rank) and of lora_A (length rank * in).
        codebook: The codebook of the coefficients of both factors.

    Raises:
        MemoryError: A dense basis is too large, see `FactorBasis`.
    """
    parts = singular_components(lora_B, lora_A)
    count = min(rank, len(parts.s))
    root = np.sqrt(parts.s[:count])
    b = np.zeros((parts.u.shape[1], rank))
    a = np.zeros((rank, parts.v.shape[1]))
    b[:, :count] = parts.u[:count].T * root
    a[:count] = parts.v[:count] * root[:, None]
    energy = float((parts.s**2).sum())
    target = _Target(parts.u.T.astype(np.float64) * parts.s, parts.v.astype(np.float64), energy)
    if energy == 0.0:
        zero = nearest_symbols(np.zeros(1), codebook)
        return Projection(
            (np.repeat(zero, bases[0].num_basis), np.repeat(zero, bases[1].num_basis)), (1.0, 1.0), 1.0, 1.0
        )
    coefficients_b, coefficients_a = bases[0].project(b.reshape(-1)), bases[1].project(a.reshape(-1))
    b = bases[0].synthesize(coefficients_b).reshape(b.shape)
    a = bases[1].synthesize(coefficients_a).reshape(a.shape)
    bound = max(0.0, 1 - target.error(b, a) / energy)
    before = target.error(b, a)
    for _ in range(_SWEEPS):
        coefficients_b = target.solve_b(a, bases[0], coefficients_b)
        b = bases[0].synthesize(coefficients_b).reshape(b.shape)
        coefficients_a = target.solve_a(b, bases[1], coefficients_a)
        a = bases[1].synthesize(coefficients_a).reshape(a.shape)
        after = target.error(b, a)
        if before - after < _TOLERANCE * energy:
            break
        before = after
    kept = 1 - target.error(b, a) / energy
    symbols_b, scale_b, quantized = _quantize(coefficients_b, codebook)
    b = bases[0].synthesize(quantized).reshape(b.shape)
    coefficients_a = target.solve_a(b, bases[1], coefficients_a)
    symbols_a, scale_a, quantized = _quantize(coefficients_a, codebook)
    return Projection((symbols_b, symbols_a), (scale_b, scale_a), kept, bound)


def fit_vector(
    values: npt.NDArray[np.float32], basis: FactorBasis, codebook: Codebook
) -> tuple[npt.NDArray[np.uint16], float]:
    """Return symbols (num_basis,) and scale, as in `Projection`, of the least-squares coefficients of a tensor."""
    wanted = basis.project(values.reshape(-1).astype(np.float64))
    coefficients = _conjugate_gradients(lambda x: basis.project(basis.synthesize(x)), wanted, np.zeros_like(wanted))
    symbols, scale, _ = _quantize(coefficients, codebook)
    return symbols, scale


@dataclass(frozen=True)
class _Target:
    """The delta to fit: delta_W = left (out, r) @ right (r, in).

    Attributes:
        left, right: The factors.
        energy: ||delta_W||^2.
    """

    left: Float64Array
    right: Float64Array
    energy: float

    def error(self, b: Float64Array, a: Float64Array) -> float:
        """Return ||delta_W - b a||^2 for b (out, k) and a (k, in)."""
        cross = (self.left.T @ b) * (self.right @ a.T)
        return float(self.energy - 2 * cross.sum() + ((b.T @ b) * (a @ a.T)).sum())

    def solve_b(self, a: Float64Array, basis: FactorBasis, start: Float64Array) -> Float64Array:
        """Return the coefficients (num_basis,) of the best b for a given a, iterated from `start`."""
        gram = a @ a.T
        shape = (self.left.shape[0], a.shape[0])
        wanted = basis.project((self.left @ (self.right @ a.T)).reshape(-1))
        return _conjugate_gradients(
            lambda x: basis.project((basis.synthesize(x).reshape(shape) @ gram).reshape(-1)), wanted, start
        )

    def solve_a(self, b: Float64Array, basis: FactorBasis, start: Float64Array) -> Float64Array:
        """Return the coefficients (num_basis,) of the best a for a given b, iterated from `start`."""
        gram = b.T @ b
        shape = (b.shape[1], self.right.shape[1])
        wanted = basis.project(((b.T @ self.left) @ self.right).reshape(-1))
        return _conjugate_gradients(
            lambda x: basis.project((gram @ basis.synthesize(x).reshape(shape)).reshape(-1)), wanted, start
        )


def _conjugate_gradients(
    apply: Callable[[Float64Array], Float64Array], wanted: Float64Array, start: Float64Array
) -> Float64Array:
    """Solve apply(x) = wanted for a symmetric positive map by at most _CG_STEPS steps from `start`."""
    x = start
    residual = wanted - apply(x)
    direction = residual
    power = float(residual @ residual)
    floor = 1e-10 * float(wanted @ wanted)
    for _ in range(_CG_STEPS):
        if power <= floor:
            break
        image = apply(direction)
        step = power / float(direction @ image)
        x = x + step * direction
        residual = residual - step * image
        after = float(residual @ residual)
        direction = residual + after / power * direction
        power = after
    return x


def _quantize(coefficients: Float64Array, codebook: Codebook) -> tuple[npt.NDArray[np.uint16], float, Float64Array]:
    """Return symbols (num_basis,), the scale of the points, and the quantized coefficients (num_basis,)."""
    if not coefficients.any():
        symbols = nearest_symbols(coefficients, codebook)
        return symbols, 1.0, coefficients
    scale = mse_scale(coefficients, codebook)
    symbols = nearest_symbols(coefficients / scale, codebook)
    return symbols, scale, scale * np.array(codebook.points, np.float64)[symbols]
