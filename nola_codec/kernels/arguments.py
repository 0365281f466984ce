"""Checks of what the wrappers hand to C, which trusts lengths and dtypes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
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
    if array.shape != shape or _name(array.dtype) not in dtypes:
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"a kernel was given {found}, expected {' or '.join(dtypes)} {shape}")
    return np.ascontiguousarray(array)


def require(condition: bool, what: str) -> None:
    """Raise a ValueError that says what does not hold."""
    if not condition:
        raise ValueError(f"a kernel was given wrong arguments: {what} does not hold")


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, which NumPy makes anew each time; that of another byte order is no dtype's."""
    return dtype.name if dtype.isnative else dtype.str
