"""One thin interface to NumPy and PyTorch, so that every exact algorithm is written once.

Python's operators (``+ * >> & @``), slicing and ``reshape`` mean the same on the arrays of both libraries. Creation,
casts and gathers differ, so they are methods here. torch is imported only when a `TorchArrays` is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from nola_codec.errors import NolaError, mismatch, require_torch
from nola_codec.kernels import Library, library
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Array = Any
"""A numpy.ndarray from `NumpyArrays`, or a torch.Tensor from `TorchArrays`."""


class Arrays(Protocol):
    """The array operations that algorithms use. dtypes are named as in NumPy ("int16", "float64").

    Attributes:
        has_threads: True if independent pieces of work gain from the threads of `parallel`.
        has_cache: True if arrays lie in the process's memory, so that small ones may be kept between calls.
    """

    has_threads: bool
    has_cache: bool

    def asarray(self, array: npt.NDArray[Any]) -> Array: ...
    def numpy(self, array: Array) -> npt.NDArray[Any]: ...
    def cast(self, array: Array, dtype: str) -> Array: ...
    def arange(self, start: int, stop: int) -> Array: ...
    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array: ...
    def stack(self, arrays: Sequence[Array], axis: int) -> Array: ...
    def concat(self, arrays: Sequence[Array], axis: int) -> Array: ...
    def where(self, condition: Array, yes: Array, no: Array) -> Array: ...
    def clip(self, array: Array, low: int, high: int) -> Array: ...
    def sort(self, array: Array) -> Array: ...
    def integer_work_dtype(self, bound: int) -> str: ...


class NumpyArrays:
    """NumPy: the reference.

    BLAS may sum floats in any order. Sums of integers below the bounds of `integer_work_dtype` are exact all the same.
    """

    has_threads = True
    has_cache = True

    def asarray(self, array: npt.NDArray[Any]) -> Array:
        return array

    def numpy(self, array: Array) -> npt.NDArray[Any]:
        return np.asarray(array)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(dtype, copy=False)

    def arange(self, start: int, stop: int) -> Array:
        return np.arange(start, stop, dtype=np.int64)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, dtype)

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.stack(arrays, axis)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.concatenate(arrays, axis)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        return np.where(condition, yes, no)

    def clip(self, array: Array, low: int, high: int) -> Array:
        return np.clip(array, low, high)

    def sort(self, array: Array) -> Array:
        return np.sort(array)

    def integer_work_dtype(self, bound: int) -> str:
        return _work_dtype(bound, float32_is_exact=True)


class TorchArrays:
    """PyTorch on any device.

    PyTorch may compute float32 products in TF32 or bfloat16: on a CPU if the process allows it
    (`set_float32_matmul_precision`, `autocast`), on an accelerator always. float64 is then used instead. The settings
    of the process are read, never changed.
    """

    has_threads = False  # PyTorch starts its own threads
    has_cache = False

    def __init__(self, device: object = "cpu") -> None:
        require_torch(f"the device {device!r}")
        import torch

        self._torch = torch
        try:
            self.device = torch.device(cast("Any", device))
        except (RuntimeError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            message = mismatch("device", 'what torch.device takes, or "numpy"', f"{device!r} ({reason})")
            raise NolaError(message, code="option") from error
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # no driver; a build without CUDA
            reason = (str(error).splitlines() or [""])[0]
            message = f'the device {str(self.device)!r} is not usable here ({reason}); "cpu" gives the same bits'
            raise NolaError(message, code="option") from error

    def asarray(self, array: Array) -> Array:
        if isinstance(array, self._torch.Tensor):
            return array.to(self.device)
        if not array.flags.writeable:
            array = array.copy()
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def numpy(self, array: Array) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = array.cpu().numpy()
        return result

    def cast(self, array: Array, dtype: str) -> Array:
        return array.to(getattr(self._torch, dtype))

    def arange(self, start: int, stop: int) -> Array:
        return self._torch.arange(start, stop, dtype=self._torch.int64, device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=self.device)

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return self._torch.stack(list(arrays), axis)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self._torch.cat(list(arrays), axis)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        return self._torch.where(condition, yes, no)

    def clip(self, array: Array, low: int, high: int) -> Array:
        return array.clamp(low, high)

    def sort(self, array: Array) -> Array:
        return self._torch.sort(array).values

    def integer_work_dtype(self, bound: int) -> str:
        return _work_dtype(bound, float32_is_exact=self._float32_is_exact())

    def _float32_is_exact(self) -> bool:
        if self.device.type != "cpu" or self._torch.is_autocast_enabled("cpu"):
            return False
        try:
            legacy = self._torch.get_float32_matmul_precision()
            mkldnn = getattr(getattr(self._torch.backends.mkldnn, "matmul", None), "fp32_precision", "none")
        except RuntimeError:  # torch refuses to answer when old and new settings were mixed
            return False
        return legacy == "highest" and mkldnn in ("none", "ieee")


def _work_dtype(bound: int, *, float32_is_exact: bool) -> str:
    """Return the name of a float type in which integers are summed exactly if no partial sum exceeds `bound`.

    Raises:
        ValueError: No float type is exact up to `bound`.
    """
    if bound < 1 << 24 and float32_is_exact:
        return "float32"
    if bound < 1 << 53:
        return "float64"
    raise ValueError(f"integer sums up to {bound} are exact in no float type")


NUMPY = NumpyArrays()


def arrays_on(device: object) -> Arrays:
    """Return the arrays of a device.

    They are NumPy's for "cpu" and "numpy", since NumPy is faster there than PyTorch and gives the same bits.

    Raises:
        MissingPackage: ``needs-torch``: another device was asked for, and PyTorch is not installed.
        NolaError: ``option``: PyTorch knows no such device, or this machine has none.
    """
    return NUMPY if str(device) in ("cpu", "numpy") else TorchArrays(device)


def library_for(xp: Arrays) -> Library | None:
    """Return the compiled kernels, which work on NumPy's arrays; None for other arrays, and where there are none."""
    return library() if isinstance(xp, NumpyArrays) else None


def bfloat16_bits(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """Round float32 bit patterns to bfloat16 ones, ties to even. Infinities stay infinite, and a NaN stays a NaN."""
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    # Just under half a unit is added, and one more if the kept part is odd: this carries exactly when it must.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(nan, quiet, rounded).astype(np.uint16)
