"""Names for NumPy array types by the type of their elements, for annotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Uint32Array = npt.NDArray[np.uint32]
LevelArray = npt.NDArray[np.int8]
"""An array of quantized levels around 0."""
SymbolArray = npt.NDArray[Any]
"""An array of uint8 or uint16: indices into codebooks."""
