"""The forms in which a file may hold a carried tensor, and the way back to the tensor (`--carried`).

    exact       a carried record K
    bf16        a carried record K of another dtype
    int8        a carried record K.int8 (I8, in the shape of K), and K.int8_scale (in the dtype of K, one for each row)
    coded       a vector record K.coded; or, for a tensor M.weight that is near that of the base model, its change: a
                vector record M.diff, and a carried record M.diff.base_sha256 (U8, 32 numbers)

K is the key of the tensor. The specification describes the names ("Reduced tensors").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import BaseReference, VectorTensor
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import FLOAT_DTYPES, from_float32, from_float64, to_float64

CarriedForm = Literal["exact", "bf16", "int8", "coded"]

CARRIED_FORMS: tuple[CarriedForm, ...] = ("exact", "bf16", "int8", "coded")
"""The values of the option `carried`."""
CODED = ".coded"
INT8 = ".int8"
INT8_SCALE = ".int8_scale"
BASE_SHA256 = ".base_sha256"
SUFFIXES = (CODED, INT8, INT8_SCALE, BASE_SHA256)
"""The ends of the names of records that stand for a tensor without that end."""
_SHA256_BYTES = 32
_PIECE = 1 << 22
"""The number of elements that are multiplied at once."""


def is_reduced(name: str) -> bool:
    """Return True if a record of this name stands for a tensor of another name."""
    return name.endswith(SUFFIXES)


def restore_carried(
    raw: Mapping[str, RawTensor], vectors: Iterable[VectorTensor]
) -> tuple[dict[str, RawTensor], tuple[VectorTensor, ...]]:
    """Return the carried tensors under their own keys, and the vectors that are not carried tensors.

    Args:
        raw: The carried tensors of a file, by the names of their records.
        vectors: The decoded vectors of the file.

    Raises:
        AdapterError: ``bad-carried``: the parts of a tensor do not fit each other; ``duplicate-key``: a file has a
            tensor in two forms; ``overflow``.
    """
    restored = {key: tensor for key, tensor in raw.items() if not is_reduced(key)}
    left = []

    def add(key: str, tensor: RawTensor) -> None:
        if key in restored:
            raise AdapterError("is in the file in two forms", code="duplicate-key", where=key)
        restored[key] = tensor

    for vector in vectors:
        if vector.name.endswith(CODED):
            add(vector.name.removesuffix(CODED), from_float32(vector.values, vector.dtype, where=vector.name))
        else:
            left.append(vector)
    stems = {key.removesuffix(INT8_SCALE).removesuffix(INT8) for key in raw if key.endswith((INT8, INT8_SCALE))}
    for stem in sorted(stems):
        for name in (stem + INT8, stem + INT8_SCALE):
            if name not in raw:
                raise AdapterError(f"its part {name} is missing", code="bad-carried", where=stem)
        add(stem, _from_int8(stem, raw[stem + INT8], raw[stem + INT8_SCALE]))
    return restored, tuple(left)


def read_references(raw: Mapping[str, RawTensor], vectors: Iterable[VectorTensor]) -> dict[str, BaseReference]:
    """Return the reference of each vector that is a change of a tensor of the base model, by the vector's name.

    Raises:
        AdapterError: ``bad-carried``: a checksum has another dtype or shape, or no vector.
    """
    names = {vector.name for vector in vectors}
    found = {}
    for key, tensor in raw.items():
        if key.endswith(BASE_SHA256):
            name = key.removesuffix(BASE_SHA256)
            if name not in names or (tensor.dtype, tensor.shape) != ("U8", (_SHA256_BYTES,)):
                wanted, got = f"{_SHA256_BYTES} numbers of U8, and a vector {name}", f"{tensor.dtype} {tensor.shape}"
                raise AdapterError(mismatch("checksum", wanted, got), code="bad-carried", where=key)
            found[name] = BaseReference(bytes(tensor.data))
    return found


def reference_tensors(references: Mapping[str, BaseReference]) -> dict[str, RawTensor]:
    """Return the carried records that hold references."""
    return {
        name + BASE_SHA256: RawTensor("U8", (_SHA256_BYTES,), reference.sha256)
        for name, reference in references.items()
    }


def _from_int8(key: str, values: RawTensor, scale: RawTensor) -> RawTensor:
    """Return each row times its scale, with one rounding to the dtype of the scales."""
    rows = values.shape[0] if values.shape else 0
    if values.dtype != "I8" or scale.dtype not in FLOAT_DTYPES or scale.shape != (rows,):
        wanted, found = f"I8 and a float scale for each of {rows} rows", f"{values.dtype}, {scale.dtype} {scale.shape}"
        raise AdapterError(mismatch("parts", wanted, found), code="bad-carried", where=key)
    numbers = np.frombuffer(values.data, np.int8).reshape(rows, -1)
    factors = to_float64(scale, where=key)
    step = max(1, _PIECE // max(1, numbers.shape[1]))
    pieces = [
        from_float64(numbers[start : start + step] * factors[start : start + step, None], scale.dtype, where=key).data
        for start in range(0, rows, step)
    ]
    return RawTensor(scale.dtype, values.shape, b"".join(pieces))
