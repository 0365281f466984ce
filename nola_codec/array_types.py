"""Names for NumPy array types by the type of their elements, for annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt

# Texts, so that they do not load NumPy.
Float32Array: TypeAlias = "npt.NDArray[np.float32]"
Float64Array: TypeAlias = "npt.NDArray[np.float64]"
Int64Array: TypeAlias = "npt.NDArray[np.int64]"
Uint32Array: TypeAlias = "npt.NDArray[np.uint32]"
LevelArray: TypeAlias = "npt.NDArray[np.int8]"
"""An array of quantized levels around 0."""
SymbolArray: TypeAlias = "npt.NDArray[Any]"
"""An array of uint8 or uint16: indices into codebooks."""
