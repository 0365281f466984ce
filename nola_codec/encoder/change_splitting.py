"""Split dense changes of weights into modules for their strong singular components, and vectors for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nola_codec.adapters.adapter_delta import CHANGE_SUFFIX as SUFFIX
from nola_codec.array_types import Float32Array
from nola_codec.errors import EncodeError
from nola_codec.fit.truncated_svd import truncated_svd
from nola_codec.model.adapter import LoraModule, VectorTensor
from nola_codec.parallel import parallel_map
from nola_codec.spool import Arena

_SMALL = 4096
"""Greatest number of elements of a tensor that is coded as a vector only."""
_AT_ONCE = 2
"""The most weights that are split at once, each of which is in memory as a dense matrix."""
_KERNEL = 16
"""Greatest last dimension of a three-dimensional tensor that is taken for a convolution."""


@dataclass(frozen=True)
class SplitOptions:
    """Settings for the split of a matrix.

    Attributes:
        rank: The greatest number of components; None stands for `DEFAULT_RANK`, or for no limit if `energy` is given.
        energy: The share of the energy of a matrix that its components have to reach; None if there is none.
        residue: True to code the rest that the components leave as a vector.
        seed: The seed of the randomized decomposition.

    Raises:
        EncodeError: ``option``: A value is out of range.
    """

    rank: int | None = None
    energy: float | None = None
    residue: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank is not None and not 0 <= self.rank < 1 << 16:
            raise EncodeError(f"rank: expected 0 to {(1 << 16) - 1}, found {self.rank}", code="option")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise EncodeError(f"energy: expected a number above 0, at most 1, found {self.energy}", code="option")


DEFAULT_RANK = 64


def split_changes(
    deltas: Iterable[tuple[str, str, Float32Array]], options: SplitOptions
) -> tuple[tuple[LoraModule, ...], tuple[VectorTensor, ...]]:
    """Return the modules and vectors of changed weights. A few are split at once, each with one thread of BLAS.

    Args:
        deltas: (name of the weight, dtype of the tuned weight, change) for each weight; the change is overwritten.
        options: The settings of the split.
    """
    modules, vectors = [], []
    arena = Arena(np.float32)

    def split(
        numbered: tuple[int, tuple[str, str, Float32Array]],
    ) -> tuple[str, str, LoraModule | None, Float32Array | None]:
        number, (name, dtype, delta) = numbered
        dtype = dtype if dtype in ("F32", "F16", "BF16") else "F32"
        module = _low_rank(name, dtype, delta, number, options)
        if module is None:
            return name, dtype, None, delta
        if not options.residue:
            return name, dtype, module, None
        delta -= (module.lora_B @ module.lora_A).reshape(delta.shape)
        return name, dtype, module, delta

    for name, dtype, module, rest in parallel_map(split, enumerate(deltas), most=_AT_ONCE):
        if module is not None:
            modules.append(module)
        if rest is not None:
            vectors.append(VectorTensor(name + SUFFIX, arena.copy(rest), dtype))
    return tuple(modules), tuple(vectors)


def _low_rank(name: str, dtype: str, delta: Float32Array, number: int, options: SplitOptions) -> LoraModule | None:
    """Return the strong components of a change, or None if it is not a matrix, or too small for components.

    Args:
        name: The name of the weight.
        dtype: The dtype of the module.
        delta: The change, (out, in), or (out, in, *kernel) of a convolution.
        number: The generator stream of the randomized decomposition.
        options: The settings of the split.
    """
    rank = DEFAULT_RANK if options.rank is None and options.energy is None else options.rank
    if delta.ndim < 2 or (delta.ndim == 3 and delta.shape[-1] > _KERNEL) or delta.size <= _SMALL or rank == 0:
        return None
    matrix = delta.reshape(delta.shape[0], -1)
    most = matrix.size // sum(matrix.shape)  # with more components, the factors would be larger than the matrix
    parts = truncated_svd(matrix, min(most, rank or most), seed=options.seed, stream=number)
    count = len(parts.s)
    if options.energy is not None:
        wanted = options.energy * float(np.square(matrix, dtype=np.float64).sum())
        count = min(count, int(np.searchsorted(np.cumsum(parts.s**2), wanted)) + 1)
    root = np.sqrt(parts.s[:count]).astype(np.float32)
    lora_B = np.ascontiguousarray(parts.u[:count].T * root)
    lora_A = parts.v[:count] * root[:, None]
    return LoraModule(
        name=name,
        lora_A=lora_A,
        lora_B=lora_B,
        a_shape=(count, *delta.shape[1:]),
        b_shape=(delta.shape[0], count, *(1 for _ in delta.shape[2:])),
        scaling=1.0,
        layout="linear" if delta.ndim == 2 else "conv",
        dtype=dtype,
    )
