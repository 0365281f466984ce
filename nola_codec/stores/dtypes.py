"""Convert float tensors between their stored bytes and NumPy; each narrowing is one rounding to nearest, ties to even.

NumPy has no bfloat16, so this module converts it by its bit patterns. All other conversions are NumPy's own casts,
which round as IEEE 754 says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nola_codec.arrays import bfloat16_bits
from nola_codec.errors import AdapterError, MissingPackage, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.tensors import RawTensor

if TYPE_CHECKING:
    import numpy.typing as npt

FLOAT_DTYPES: tuple[str, ...] = ("F32", "F16", "BF16", "F64")
FLOAT8_DTYPES: tuple[str, ...] = ("F8_E4M3", "F8_E5M2")
"""The 8-bit floats, which are read but not written. Every value of theirs is a float16."""
INTEGER_DTYPES: tuple[str, ...] = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
SCALAR_DTYPES: tuple[str, ...] = (*FLOAT_DTYPES, *FLOAT8_DTYPES, *INTEGER_DTYPES)
"""The dtypes of a single number, such as an alpha."""
_NUMPY_FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
_NUMPY_DTYPES = _NUMPY_FLOATS | {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip

TORCH_NAMES: Mapping[str, str] = MappingProxyType({
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
})  # fmt: skip
"""The name that torch gives each dtype; an old version of torch may lack some."""


def coded_dtype(source: str) -> str:
    """Return the dtype that a `.nola` file gives a coded tensor: F32, F16 or BF16. F64 becomes F32."""
    return "F32" if source == "F64" else source


def written_dtype(source: str) -> str:
    """Return the dtype in which a coded tensor is written again: F16 for the 8-bit floats, else its own."""
    return "F16" if source in FLOAT8_DTYPES else source


def to_float64(raw: RawTensor, *, where: str = "") -> npt.NDArray[np.float64]:
    """Return the values of a float tensor, exact for every dtype in `FLOAT_DTYPES` and `FLOAT8_DTYPES`.

    Raises:
        AdapterError: ``not-float`` for any other dtype.
    """
    stored = _bfloat16_to_float32(raw) if raw.dtype == "BF16" else _numpy_floats(raw, where)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, which needs no warning
        return stored.astype(np.float64)


def to_float32(raw: RawTensor, *, where: str = "") -> npt.NDArray[np.float32]:
    """Return the values of a float tensor. F64 is rounded to nearest; F32, F16, BF16 and the 8-bit floats are exact.

    Raises:
        AdapterError: ``not-float`` for other dtypes; ``overflow`` if a finite F64 is too large for float32.
    """
    if raw.dtype == "BF16":
        return _bfloat16_to_float32(raw)
    stored = _numpy_floats(raw, where)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values: npt.NDArray[np.float32] = stored.astype(np.float32)
    if raw.dtype == "F64" and not np.array_equal(np.isfinite(values), np.isfinite(stored)):
        raise AdapterError("values too large for float32", code="overflow", where=where)
    return values


def from_float32(array: npt.NDArray[np.float32], dtype: str, *, where: str = "") -> RawTensor:
    """Round float32 values to ``dtype``. F32 keeps the bits, and F64 is exact.

    Raises:
        AdapterError: ``not-float`` for a ``dtype`` that is none of `FLOAT_DTYPES`; ``overflow`` if a finite value has
            no finite neighbour in ``dtype``.
    """
    if dtype == "BF16":
        bits = bfloat16_bits(np.ascontiguousarray(array, dtype=np.float32).view(np.uint32))
        return _to_raw(array, bits, dtype, where)
    return _cast(array, dtype, where)


def from_float64(array: npt.NDArray[np.float64], dtype: str, *, where: str = "") -> RawTensor:
    """Round float64 values to ``dtype`` in a single rounding.

    Raises:
        AdapterError: ``not-float`` and ``overflow``, as in `from_float32`.
    """
    if dtype == "BF16":
        return _to_raw(array, bfloat16_bits(_round_to_odd(array)), dtype, where)
    return _cast(array, dtype, where)


def to_numpy(raw: RawTensor) -> npt.NDArray[Any]:
    """Return a tensor as a read-only NumPy array of the same dtype and shape.

    Raises:
        MissingPackage: ``needs-torch`` for bfloat16 and the 8-bit floats, which NumPy does not have.
    """
    dtype = _NUMPY_DTYPES.get(raw.dtype)
    if dtype is None:
        message = f"NumPy has no dtype {raw.dtype}: load with torch instead, or convert to f32"
        raise MissingPackage(message, code="needs-torch")
    return np.frombuffer(raw.data, dtype=dtype).reshape(raw.shape)


def numpy_name(dtype: np.dtype[Any]) -> str | None:
    """Return the name of a NumPy dtype in `RawTensor`; None if it has none. bfloat16 is that of ``ml_dtypes``."""
    if dtype.name == "bfloat16":
        return "BF16"
    return next((name for name, own in _NUMPY_DTYPES.items() if dtype.newbyteorder("=") == np.dtype(own)), None)


def from_numpy(array: npt.NDArray[Any]) -> RawTensor:
    """Return an array as a tensor of the same dtype and shape. Its dtype must have a `numpy_name`."""
    name = numpy_name(array.dtype)
    assert name is not None
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return RawTensor(name, tuple(int(n) for n in array.shape), np.ascontiguousarray(little).tobytes())


def to_scalar(raw: RawTensor, *, where: str = "") -> float:
    """Return the value of a tensor with one element, a float or an integer of at most 53 bits.

    Raises:
        AdapterError: ``not-float`` for any other dtype; ``overflow`` for a larger integer.
    """
    if raw.dtype not in INTEGER_DTYPES:
        return float(to_float64(raw, where=where).reshape(()))
    value = int(to_numpy(raw).reshape(()))
    if abs(value) > 1 << 53:
        raise AdapterError(mismatch("integer", "at most 53 bits", value), code="overflow", where=where)
    return float(value)


def from_scalar(value: float, dtype: str, shape: tuple[int, ...], *, where: str = "") -> RawTensor:
    """Return a number as a tensor with one element, of a dtype that `to_scalar` takes.

    Raises:
        AdapterError: ``not-float`` for another dtype; ``overflow`` for a number that the dtype does not have.
    """
    if dtype in FLOAT_DTYPES:
        return from_float64(np.full(shape, value, np.float64), dtype, where=where)
    if dtype in FLOAT8_DTYPES:
        found = np.flatnonzero(_float8_values(dtype).astype(np.float64) == value)
        data = bytes([found[0]]) if len(found) else b""
    elif dtype in INTEGER_DTYPES:
        info = np.iinfo(_NUMPY_DTYPES[dtype])
        has_it = value == int(value) and int(info.min) <= value <= int(info.max)
        data = np.array(int(value), _NUMPY_DTYPES[dtype]).tobytes() if has_it else b""
    else:
        raise AdapterError(mismatch("dtype", "a float or an integer", dtype), code="not-float", where=where)
    if not data:
        raise AdapterError(f"{dtype} does not have the number {value}", code="overflow", where=where)
    return RawTensor(dtype, shape, data)


def require_finite(array: npt.NDArray[Any], where: str) -> None:
    """Raise AdapterError ``not-finite`` unless every value is finite; the message counts them and names the first."""
    finite = np.isfinite(array)
    if finite.all():
        return
    flat = int(np.flatnonzero(~finite.reshape(-1))[0])
    index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
    count = int(array.size - np.count_nonzero(finite))
    raise AdapterError(
        f"{count} values are NaN or infinite, the first at {list(index)}", code="not-finite", where=where
    )


def _numpy_floats(raw: RawTensor, where: str) -> npt.NDArray[Any]:
    if raw.dtype in FLOAT8_DTYPES:
        return _float8_values(raw.dtype)[np.frombuffer(raw.data, np.uint8)].reshape(raw.shape)
    numpy_dtype = _NUMPY_FLOATS.get(raw.dtype)
    if numpy_dtype is None:
        raise AdapterError(mismatch("dtype", ", ".join(FLOAT_DTYPES), raw.dtype), code="not-float", where=where)
    return np.frombuffer(raw.data, dtype=numpy_dtype).reshape(raw.shape)


def _bfloat16_to_float32(raw: RawTensor) -> npt.NDArray[np.float32]:
    bits = np.frombuffer(raw.data, dtype="<u2").reshape(raw.shape).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _float8_values(dtype: str) -> npt.NDArray[np.float16]:
    """Return the value of each of the 256 patterns of an 8-bit float (OCP 8-bit Floating Point Specification 1.0)."""
    patterns = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (patterns << np.uint16(8)).view(np.float16)
    # The exponent's bias is 7, and that of float16 is 15: shifted into place, a pattern has 2^-8 of its value.
    moved = ((patterns & 0x80) << np.uint16(8)) | ((patterns & 0x7F) << np.uint16(7))
    values = (moved.view(np.float16).astype(np.float32) * np.float32(256)).astype(np.float16)
    values[[0x7F, 0xFF]] = np.nan  # E4M3 has no infinity
    return values


def _round_to_odd(array: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Return the float32 bits of values rounded to odd: cut towards zero, with the last bit set if the cut was inexact.

    Rounding these to a type with at least two bits less gives the same result as one rounding of the float64 values
    (Boldo and Melquiond, 2008).
    """
    values = np.ascontiguousarray(array, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
        above = np.abs(nearest.astype(np.float64)) > np.abs(values)
    cut = np.where(above, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = cut.astype(np.float64) != values  # true for NaN too, whose last bit does not matter
    bits: npt.NDArray[np.uint32] = cut.view(np.uint32) | inexact.astype(np.uint32)
    return bits


def _cast(array: npt.NDArray[Any], dtype: str, where: str) -> RawTensor:
    numpy_dtype = _NUMPY_FLOATS.get(dtype)
    if numpy_dtype is None:
        raise AdapterError(mismatch("dtype", ", ".join(FLOAT_DTYPES), dtype), code="not-float", where=where)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.ascontiguousarray(array).astype(numpy_dtype, copy=False)
    return _to_raw(array, values, dtype, where)


def _to_raw(array: npt.NDArray[Any], stored: npt.NDArray[Any], dtype: str, where: str) -> RawTensor:
    if stored.dtype != array.dtype:
        if stored.dtype == np.uint16:  # bfloat16 patterns: an exponent of all ones is not finite
            finite: npt.NDArray[np.bool_] = (stored & np.uint16(0x7F80)) != np.uint16(0x7F80)
        else:
            finite = np.isfinite(stored)
        if not finite.all() and not np.array_equal(finite, np.isfinite(array)):
            raise AdapterError(f"values too large for {dtype}", code="overflow", where=where)
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    data = little.reshape(-1).view(np.uint8).data.toreadonly()
    return RawTensor(dtype, tuple(int(n) for n in array.shape), data)
