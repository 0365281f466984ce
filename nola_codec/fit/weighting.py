"""Weigh components by a calibration set, in place of constants for all.

For a component s u v^T of delta_W, with the loss's gradient G = dL/d(delta_W) of each calibration row:

    value    -s <G, u v^T>      summed over rows: what the loss gains from the component, to first order
    noise_u   s^2 |G v|^2 / out  summed over rows: curvature met by white noise on u (empirical Fisher information)
    noise_v   s^2 |G^T u|^2 / in

A component then weighs its value instead of its energy s^2, and value / noise says how much noise each of its vectors
tolerates. u and v lie in the spans of lora_B and lora_A^T, so three (r, r) matrices a module hold all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.errors import EncodeError
from nola_codec.fit.components import Components
from nola_codec.model.adapter import Codable

FLOOR = 0.02
"""Least weight of a component, as a share of what its energy alone would give: first-order values are noisy."""
CAP = 8.0
"""Most that one vector's measured tolerance of noise may differ from the average, either way."""
TRUST = 0.5
"""Power of the measured tolerances that is used: they hold for small noise, and coarse quantization makes much."""


@dataclass(frozen=True)
class Moments:
    """Statistics of one adapted weight over a calibration set.

    Attributes:
        inputs: float32 (k, in): a sketch of the layer's inputs, E|M x|^2 being about |M inputs^T|_F^2 for any M.
        cross: float64 (r, r): sum over rows of lora_B^T G lora_A^T.
        left: float64 (r, r): sum over rows of (G lora_A^T)^T (G lora_A^T).
        right: float64 (r, r): sum over rows of (lora_B^T G) (lora_B^T G)^T.
    """

    inputs: npt.NDArray[np.float32]
    cross: Float64Array
    left: Float64Array
    right: Float64Array


@dataclass(frozen=True)
class Figures:
    """`value`, float64 (r,), and `noise`, float64 (2, r), of a module's components; see the module's docstring."""

    value: Float64Array
    noise: Float64Array


def component_figures(module: Codable, parts: Components, moments: Moments) -> Figures:
    """Return the figures of a module's components.

    Raises:
        EncodeError: the moments are not of a module of this shape, or not finite (code ``moments``).
    """
    lora_B, lora_A = module.sides
    rank, out, columns = module.rank, lora_B.shape[0], lora_A.shape[1]
    shapes = (moments.inputs.shape[1:], moments.cross.shape, moments.left.shape, moments.right.shape)
    if shapes != ((columns,), (rank, rank), (rank, rank), (rank, rank)):
        raise EncodeError(
            f"moments: expected those of lora_A ({rank}, {columns}) and lora_B ({out}, {rank}), found shapes {shapes}",
            code="moments", where=module.name,
        )  # fmt: skip
    if not all(np.isfinite(m).all() for m in (moments.inputs, moments.cross, moments.left, moments.right)):
        raise EncodeError("moments are not finite: the model overflowed on the calibration set", code="moments",
                          where=module.name)  # fmt: skip
    # u = lora_B a and v = lora_A^T b. What a rank-deficient factor cannot reach belongs to components with s = 0.
    a = np.linalg.lstsq(lora_B.astype(np.float64), parts.u.T.astype(np.float64), rcond=None)[0]
    b = np.linalg.lstsq(lora_A.T.astype(np.float64), parts.v.T.astype(np.float64), rcond=None)[0]
    size = abs(module.scaling) * parts.s
    return Figures(
        value=-np.sign(module.scaling) * size * np.einsum("ic,ij,jc->c", a, moments.cross, b),
        noise=size**2
        * np.stack(
            [
                np.einsum("ic,ij,jc->c", b, moments.left, b) / out,
                np.einsum("ic,ij,jc->c", a, moments.right, a) / columns,
            ]
        ),
    )


def weigh(energy: Float64Array, value: Float64Array, noise: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the weights of all components, and how much noise their vectors tolerate.

    Args:
        energy: float64 (units,): squared share of delta_W's Frobenius norm.
        value: float64 (units,).
        noise: float64 (2, units).

    Returns:
        Weights, float64 (units,), of the same sum as the energies; and tolerances, float64 (2, units), factors on the
        objective's gammas, around 1.

    Raises:
        EncodeError: on the calibration set the adapter gains nothing (code ``calibration``).
    """
    total = float(energy.sum())
    if total == 0:
        return energy, np.ones_like(noise)
    gained = float(value.sum())
    if not gained > 0:
        raise EncodeError(
            "the adapter does not lower the loss of the calibration set; is it text of the adapter's own task?",
            code="calibration",
        )
    weight = np.maximum(value * (total / gained), FLOOR * energy)
    weight *= total / weight.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        tolerance = weight / noise * (noise.sum(axis=1, keepdims=True) / total)
    # Where neither is felt nothing is known; a layer that the calibration set never reaches is such a one.
    return weight, np.where(noise > 0, np.clip(tolerance, 1 / CAP, CAP) ** TRUST, 1.0)


def activation_errors(
    module: Codable, lora_B: npt.NDArray[np.float32], lora_A: npt.NDArray[np.float32], moments: Moments
) -> tuple[float, float]:
    """Return (E|(delta_W - decoded) x|^2, E|delta_W x|^2) over the sketch of the inputs, both over the scaling squared.

    Args:
        module: The source.
        lora_B: float32 (out, k), decoded.
        lora_A: float32 (k, in), decoded.
        moments: The moments of the module.
    """
    inputs = moments.inputs.T
    own_B, own_A = module.sides
    wanted = own_B @ (own_A @ inputs)
    lost = wanted - lora_B @ (lora_A @ inputs)
    return float(np.square(lost, dtype=np.float64).sum()), float(np.square(wanted, dtype=np.float64).sum())


def match_moments(modules: Sequence[Codable], moments: Mapping[str, Moments]) -> list[Moments]:
    """Return the moments in the order of the modules.

    Raises:
        EncodeError: some module has none (code ``moments``).
    """
    missing = [m.name for m in modules if m.name not in moments]
    if missing:
        raise EncodeError(f"no moments for {len(missing)} of {len(modules)} modules, the first {missing[0]}",
                          code="moments")  # fmt: skip
    return [moments[m.name] for m in modules]
