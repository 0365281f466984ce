"""Find, check and read pairs of factors in any dialect, and make their tensors again.

A pair has a down factor A (r, in[, kernel]) and an up factor B (out, r[, 1, ...]). Dialects spell the keys in different
ways, and some store the factors transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_codec.adapters.dialects.peft_config import MAX_RANK
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import Layout, LoraModule, VectorTensor
from nola_codec.model.tensors import DTYPES, RawTensor
from nola_codec.stores.dtypes import from_float32, require_finite, to_float32, written_dtype
from nola_codec.stores.tensor_store import TensorStore

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_DIMENSION = 1 << 31
_MAX_CARRIED_DIMENSIONS = 8
Transposed = tuple[bool, bool]
_NUM_DIMENSIONS: Mapping[Layout, tuple[int, ...]] = {"linear": (2,), "conv": (3, 4, 5), "embedding": (2,)}


@dataclass(frozen=True)
class PairKeys:
    """The spelling of the keys of a pair.

    Attributes:
        pattern: A pattern for the whole key of a factor. Its group ``stem`` gives the module's name, and its group
            ``a`` or ``b`` matches.
        a_key, b_key: The functions that return the keys of A and of B for a module's name.
        transposed: Two flags: True if A is stored (in, r), and True if B is stored (r, out).
        module: The function that returns the module's name for a stem.
    """

    pattern: re.Pattern[str]
    a_key: Callable[[str], str]
    b_key: Callable[[str], str]
    transposed: Transposed = (False, False)
    module: Callable[[str], str] = str

    @classmethod
    def of_suffixes(cls, a: str, b: str, *, stem: str = ".+", transposed: Transposed = (False, False)) -> PairKeys:
        """Make the spelling in which a key is the name of the module and a suffix.

        Args:
            a: The suffix of A.
            b: The suffix of B.
            stem: The regular expression for the name of a module.
            transposed: As in the attributes.
        """
        pattern = re.compile(rf"(?P<stem>{stem})(?:(?P<a>{re.escape(a)})|(?P<b>{re.escape(b)}))")
        return cls(pattern, lambda name: name + a, lambda name: name + b, transposed)

    def split(self, key: str) -> tuple[str, str] | None:
        """Return the module's name and ``"A"`` or ``"B"``; None for a key that does not belong to a factor."""
        match = self.pattern.fullmatch(key)
        if match is None:
            return None
        return self.module(match["stem"]), "A" if match["a"] is not None else "B"

    def of(self, module: str) -> tuple[str, str]:
        """Return the keys of A and of B."""
        return self.a_key(module), self.b_key(module)


def find_pairs(keys: Iterable[str], pair_keys: PairKeys, where: str) -> tuple[list[str], list[str]]:
    """Return the names of the modules that have a pair of factors, and the keys of all other tensors.

    Raises:
        AdapterError: ``missing-partner``: a module has only one factor; ``duplicate-key``: two keys mean one factor.
    """
    found: dict[str, dict[str, str]] = {}
    others = []
    for key in keys:
        split = pair_keys.split(key)
        if split is None:
            others.append(key)
            continue
        name, side = split
        if side in found.setdefault(name, {}):
            message = f"means the same factor as {found[name][side]}"
            raise AdapterError(message, code="duplicate-key", where=f"{where}: {key}")
        found[name][side] = key
    for name, sides in found.items():
        for side, key in zip("AB", pair_keys.of(name), strict=True):
            if side not in sides:
                present = next(iter(sides.values()))
                raise AdapterError(f"its partner {key} is missing", code="missing-partner", where=f"{where}: {present}")
    return sorted(found), others


def read_pair(
    store: TensorStore,
    name: str,
    keys: tuple[str, str],
    *,
    scaling: float = 1.0,
    layout: Layout = "linear",
    transposed: Transposed = (False, False),
    fan_in_fan_out: bool = False,
) -> LoraModule:
    """Read the two factors of one module.

    Args:
        store: The file that holds both tensors.
        name: The module's name.
        keys: The keys of A and B.
        scaling: The scaling of the product.
        layout: The layout; ``linear`` becomes ``conv`` if the tensors have a kernel.
        transposed: As in `PairKeys`.
        fan_in_fan_out: As in `LoraModule`.

    Raises:
        AdapterError: ``bad-shape``, ``rank-mismatch``, ``grouped-conv``, ``not-float``, ``not-finite``, ``overflow``.
    """
    a_key, b_key = keys
    a_shape, b_shape = store.tensors[a_key].shape, store.tensors[b_key].shape
    where_a, where_b = f"{store.name}: {a_key}", f"{store.name}: {b_key}"
    if any(transposed):
        for shape, where in ((a_shape, where_a), (b_shape, where_b)):
            if len(shape) != 2:
                raise AdapterError(mismatch("dimensions", 2, list(shape)), code="bad-shape", where=where)
    a_shape = a_shape[::-1] if transposed[0] else a_shape
    b_shape = b_shape[::-1] if transposed[1] else b_shape
    if layout == "linear" and len(a_shape) > 2:
        layout = "conv"
    check_shapes(layout, a_shape, b_shape, where_a, where_b)
    rank = a_shape[0]
    a, b = read_floats(store, a_key), read_floats(store, b_key)
    dtypes = {written_dtype(store.tensors[key].dtype) for key in keys}
    return LoraModule(
        name=name,
        lora_A=np.ascontiguousarray(a.T) if transposed[0] else a.reshape(rank, -1),
        lora_B=np.ascontiguousarray(b.T) if transposed[1] else b.reshape(b_shape[0], rank),
        a_shape=a_shape,
        b_shape=b_shape,
        scaling=scaling,
        layout=layout,
        fan_in_fan_out=layout == "linear" and fan_in_fan_out,
        # Tools write both factors in one dtype. If a file has two, float32 can hold the values of both.
        dtype=dtypes.pop() if len(dtypes) == 1 else "F32",
    )


def pair_tensors(
    module: LoraModule, keys: tuple[str, str], dtype: str | None = None, *, transposed: Transposed = (False, False)
) -> dict[str, RawTensor]:
    """Return the tensors of both factors by their keys, in their stored shapes.

    Args:
        module: The module.
        keys: The keys of A and B.
        dtype: The dtype that the factors are rounded to; None is the module's own dtype.
        transposed: As in `PairKeys`.

    Raises:
        AdapterError: ``zero-rank``, ``overflow``, ``not-float``, ``not-finite``.
    """
    if module.rank < 1:
        raise AdapterError(mismatch("rank", "at least 1", module.rank), code="zero-rank", where=module.name)
    a_shape = (module.rank, *module.a_shape[1:])
    b_shape = (module.b_shape[0], module.rank, *module.b_shape[2:])
    tensors = {}
    factors = (module.lora_A, module.lora_B)
    for key, factor, shape, turned in zip(keys, factors, (a_shape, b_shape), transposed, strict=True):
        require_finite(factor, key)
        stored = np.ascontiguousarray(factor.T) if turned else factor.reshape(shape)
        tensors[key] = from_float32(stored, dtype or module.dtype, where=key)
    return tensors


def join_tensors(*parts: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Join tensors by key into one mapping. Raises AdapterError ``duplicate-key``."""
    tensors: dict[str, RawTensor] = {}
    for part in parts:
        for key, tensor in part.items():
            if key in tensors:
                raise AdapterError("occurs twice", code="duplicate-key", where=key)
            tensors[key] = tensor
    return tensors


def check_shapes(layout: Layout, a: tuple[int, ...], b: tuple[int, ...], where_a: str, where_b: str) -> None:
    """Check that two shapes make a pair.

    Raises:
        AdapterError: ``bad-shape``, ``rank-mismatch``, ``grouped-conv``.
    """
    for shape, where in ((a, where_a), (b, where_b)):
        if len(shape) not in _NUM_DIMENSIONS[layout]:
            wanted = " or ".join(str(n) for n in _NUM_DIMENSIONS[layout])
            raise AdapterError(mismatch("dimensions", wanted, list(shape)), code="bad-shape", where=where)
        if not all(1 <= size < MAX_DIMENSION for size in shape):
            message = mismatch("shape", "sizes from 1 to 2^31 - 1", list(shape))
            raise AdapterError(message, code="bad-shape", where=where)
    if len(a) != len(b) or any(size != 1 for size in b[2:]):
        ones = ", 1" * (len(a) - 2)
        raise AdapterError(mismatch("shape", f"[out, {a[0]}{ones}]", list(b)), code="bad-shape", where=where_b)
    if a[0] > MAX_RANK:
        raise AdapterError(mismatch("rank", f"at most {MAX_RANK}", a[0]), code="bad-shape", where=where_a)
    if b[1] != a[0]:
        if layout == "conv" and a[0] % b[1] == 0 and b[0] % (a[0] // b[1]) == 0:
            message = (
                f"a grouped convolution ({a[0] // b[1]} groups): lora_B {list(b)} mixes only part of the rank "
                f"{a[0]} of lora_A, so the delta is not lora_B @ lora_A"
            )
            raise AdapterError(message, code="grouped-conv", where=where_b)
        raise AdapterError(mismatch("rank", f"{a[0]} as in lora_A", b[1]), code="rank-mismatch", where=where_b)


def read_floats(store: TensorStore, key: str) -> npt.NDArray[np.float32]:
    """Read the values of a tensor in float32. Raises AdapterError ``not-float``, ``not-finite``, ``overflow``."""
    where = f"{store.name}: {key}"
    values = to_float32(store.read(key), where=where)
    require_finite(values, where)
    return values


def read_vector(store: TensorStore, key: str) -> VectorTensor:
    """Read a tensor that is coded as one vector. Raises the errors of `read_floats`."""
    return VectorTensor(key, read_floats(store, key), written_dtype(store.tensors[key].dtype))


def read_carried(store: TensorStore, key: str) -> RawTensor:
    """Read a tensor that will be carried exactly.

    Raises:
        AdapterError: ``unknown-dtype`` or ``bad-shape`` for a tensor that a file cannot carry.
    """
    info = store.tensors[key]
    if len(info.shape) > _MAX_CARRIED_DIMENSIONS or any(size > MAX_DIMENSION for size in info.shape):
        message = mismatch("shape", f"{_MAX_CARRIED_DIMENSIONS} sizes up to 2^31", list(info.shape))
        raise AdapterError(message, code="bad-shape", where=f"{store.name}: {key}")
    if info.dtype not in DTYPES:
        message = mismatch("dtype", "one that an adapter may carry", info.dtype)
        raise AdapterError(message, code="unknown-dtype", where=f"{store.name}: {key}")
    return store.read(key)
