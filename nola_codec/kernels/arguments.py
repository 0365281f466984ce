"""Checks of what the wrappers hand to C, which trusts lengths and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def require_array(array: npt.NDArray[Any], dtypes: tuple[str, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the array, C-contiguous; it is copied only if it is not.

    Args:
        array: The array.
        dtypes: The names of the dtypes that are allowed.
        shape: The shape that it must have.

    Raises:
        ValueError: The dtype or the shape is another one.
    """
    if array.shape != shape or not any(array.dtype == name for name in dtypes):  # other byte orders are not equal
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"a kernel was given {found}, expected {' or '.join(dtypes)} {shape}")
    return np.ascontiguousarray(array)


def require(condition: bool, what: str) -> None:
    """Raise a ValueError that says what does not hold."""
    if not condition:
        raise ValueError(f"a kernel was given wrong arguments: {what} does not hold")
