"""Weigh components by a calibration set, instead of by their energy (docs/architecture.md, "The objective").

Each calibration row has a gradient of the loss, G = dL/d(delta_W). A component s u v^T of delta_W then has these
figures, summed over the rows:

    value     -s <G, u v^T>      how much the component lowers the loss, to first order
    noise_u   s^2 |G v|^2 / out  the curvature for white noise on u (empirical Fisher information)
    noise_v   s^2 |G^T u|^2 / in  the same for v

The weight of a component is its value instead of its energy s^2, and value / noise says how much noise each of its
vectors tolerates. u and v lie in the spans of lora_B and lora_A^T, so three (r, r) matrices for each module hold all
that is needed.
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
"""The least weight of a component, as a share of its energy: first-order values are noisy."""
CAP = 8.0
"""The largest factor by which the measured tolerance of a vector may differ from the average, either way."""
TRUST = 0.5
"""The exponent of the measured tolerances. It is below 1, since they hold for small noise, and coarse quantization
makes much."""


@dataclass(frozen=True)
class Moments:
    """Statistics of one adapted weight over a calibration set.

    Attributes:
        inputs: float32 (k, in): a sketch of the layer's inputs; E|M x|^2 is about |M inputs^T|_F^2 for any M.
        cross: float64 (r, r): the sum over rows of lora_B^T G lora_A^T.
        left: float64 (r, r): the sum over rows of (G lora_A^T)^T (G lora_A^T).
        right: float64 (r, r): the sum over rows of (lora_B^T G) (lora_B^T G)^T.
    """

    inputs: npt.NDArray[np.float32]
    cross: Float64Array
    left: Float64Array
    right: Float64Array


@dataclass(frozen=True)
class Figures:
    """The figures of the components of one adapted weight, which this module's docstring defines.

    Attributes:
        value: float64 (r,).
        noise: float64 (2, r): noise_u and noise_v.
    """

    value: Float64Array
    noise: Float64Array


def component_figures(module: Codable, parts: Components, moments: Moments) -> Figures:
    """Return the figures of a module's components.

    Raises:
        EncodeError: ``moments``: The moments do not have the shapes of this module, or are not finite.
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
    # u = lora_B a and v = lora_A^T b. If a factor lacks rank, this fails only for components with s = 0.
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
        energy: float64 (units,): the squared norm of each component in delta_W.
        value: float64 (units,): see the module's docstring.
        noise: float64 (2, units): see the module's docstring.

    Returns:
        The weights, float64 (units,), with the same sum as the energies; and the tolerances, float64 (2, units), which
        are factors on the gammas of the objective, around 1.

    Raises:
        EncodeError: ``calibration``: The adapter does not lower the loss of the calibration set.
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
    # Without noise nothing is known, as in a layer that the calibration set never reaches.
    return weight, np.where(noise > 0, np.clip(tolerance, 1 / CAP, CAP) ** TRUST, 1.0)


def activation_errors(
    module: Codable, lora_B: npt.NDArray[np.float32], lora_A: npt.NDArray[np.float32], moments: Moments
) -> tuple[float, float]:
    """Return (E|(delta_W - decoded) x|^2, E|delta_W x|^2) over the sketch of the inputs x, without scaling^2.

    Args:
        module: The module of the source.
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
        EncodeError: ``moments``: A module has no moments.
    """
    missing = [m.name for m in modules if m.name not in moments]
    if missing:
        raise EncodeError(f"no moments for {len(missing)} of {len(modules)} modules, the first {missing[0]}",
                          code="moments")  # fmt: skip
    return [moments[m.name] for m in modules]
