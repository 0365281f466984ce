"""Deltas that are made of several coded parts: Tucker (``lora_mid``), LoHa and LoKr.

    Tucker  delta[p, q, k, l] = sum_ij t[i, j, k, l] a[i, p] b[j, q]
    LoHa    delta = (w1_a @ w1_b) * (w2_a @ w2_b)            elementwise; either may be a Tucker product
    LoKr    delta = kron(w1, w2)                             w1, w2: tensors or products; w2 may be a Tucker product

Each is multiplied by alpha / rank (LyCORIS 3, `lycoris/functional/{locon,loha,lokr}.py`). Merged weights must have the
same bits everywhere. So products of two decoded factors are exact in float64, and all operations after them are
elementwise, in an order that is fixed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nola_codec.adapters.adapter_delta import CombinedDelta, Values
from nola_codec.adapters.dialects.lycoris_keys import PART, PRODUCTS
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np

MAX_ELEMENTS = 1 << 28
"""The most elements of a delta, since the whole delta is made in float64."""


@dataclass(frozen=True)
class LycorisDelta(CombinedDelta):
    """A delta that LyCORIS makes of its parts."""

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the delta, (out, in[, kernel]), from the shapes of the values that `combine` takes."""
        part = {name[len(self.name) + 1 :]: shape for name, shape in shapes.items()}
        if "lora_mid.weight" in part:
            return (part["lora_up.weight"][0], part["lora_down.weight"][1], *part["lora_mid.weight"][2:])
        if "hada_t1" in part:
            return (part["hada_w1_a"][1], part["hada_w1_b"][1], *part["hada_t1"][2:])
        if "hada_w1" in part:
            return part["hada_w1"]
        (a, b), second = part["lokr_w1"], part.get("lokr_w2")
        if second is None:
            second = (part["lokr_w2_a"][1], part["lokr_w2_b"][1], *part["lokr_t2"][2:])
        return (a * second[0], b * second[1], *second[2:])

    def combine(self, values: Values) -> Float64Array:
        """Return the delta, (out, in[, kernel]) float64.

        Args:
            values: The exact value of each part, by its name: a product lora_B @ lora_A, or the tensor of a vector.

        Raises:
            AdapterError: ``bad-shape`` for parts that do not fit each other.
        """
        part = {name[len(self.name) + 1 :]: np.asarray(value, np.float64) for name, value in values.items()}
        try:
            delta = _combine(part)
        except ValueError as error:
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in part.items())
            message = f"the parts do not fit each other: {shapes}"
            raise AdapterError(message, code="bad-shape", where=self.name) from error
        return delta * self.scale


def composite_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the parts of each module that has several, by the name of the module.

    Raises:
        AdapterError: ``missing-partner``, ``mixed-layout`` for a set of parts that does not make a delta.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        match = PART.fullmatch(name)
        if match is not None:
            found.setdefault(match["stem"], []).append(name)
    for stem, parts in found.items():
        _require_complete(stem, {name[len(stem) + 1 :] for name in parts})
    return found


def part_rank(shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int]) -> int | None:
    """Return the rank that alpha is divided by; None if no part is a pair of factors.

    Args:
        shapes: The shape of each tensor of a module, by the end of its key.
        ranks: The rank of each product of the module, by the end of its name.
    """
    for part in ("lora_down.weight", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"):
        if part in shapes:
            return shapes[part][0]
    return next((ranks[part] for part in PRODUCTS if part in ranks), None)


def require_reasonable(stem: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the size of a delta before it is made.

    Args:
        stem: The name of the module.
        shapes: The shape of each part, by its name: that of a tensor, or (out, in) of a product.

    Raises:
        AdapterError: ``limit``: the delta has more than `MAX_ELEMENTS` elements.
    """
    part = {name[len(stem) + 1 :]: shape for name, shape in shapes.items()}

    def size(name: str, *dimensions: int) -> int:
        shape = part.get(name, ())
        return math.prod(shape[n] for n in dimensions if n < len(shape)) if dimensions else math.prod(shape)

    def tucker(core: str, a: str, b: str, axes: tuple[int, int] = (1, 1)) -> int:
        return size(a, axes[0]) * size(b, axes[1]) * math.prod(part.get(core, ())[2:])

    elements = max(
        tucker("lora_mid.weight", "lora_up.weight", "lora_down.weight", (0, 1)),
        *(tucker(f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b") for n in "12"),
        *(size(f"hada_w{n}") for n in "12"),
        size("lokr_w1") * max(size("lokr_w2"), tucker("lokr_t2", "lokr_w2_a", "lokr_w2_b")),
    )
    if elements > MAX_ELEMENTS:
        message = f"its parts make a delta of {elements} elements, over {MAX_ELEMENTS}"
        raise AdapterError(message, code="limit", where=stem)


_COMPLETE: tuple[frozenset[str], ...] = tuple(
    frozenset(parts)
    for parts in (
        ("lora_down.weight", "lora_mid.weight", "lora_up.weight"),
        ("hada_w1", "hada_w2"),
        ("hada_t1", "hada_w1_a", "hada_w1_b", "hada_t2", "hada_w2_a", "hada_w2_b"),
        ("lokr_w1", "lokr_w2"),
        ("lokr_w1", "lokr_t2", "lokr_w2_a", "lokr_w2_b"),
    )
)


def _require_complete(stem: str, parts: set[str]) -> None:
    if parts in _COMPLETE:
        return
    nearest = min(_COMPLETE, key=lambda needed: len(needed ^ parts))
    missing = sorted(nearest - parts)
    if missing:
        raise AdapterError(f"its partner {missing[0]} is missing", code="missing-partner", where=stem)
    message = mismatch("parts", ", ".join(sorted(nearest)), ", ".join(sorted(parts)))
    raise AdapterError(message, code="mixed-layout", where=stem)


def _combine(part: Mapping[str, Float64Array]) -> Float64Array:
    if "lora_mid.weight" in part:
        up, down = (
            part[f"lora_{side}.weight"].reshape(part[f"lora_{side}.weight"].shape[:2]) for side in ("up", "down")
        )
        return _tucker_product(part["lora_mid.weight"], up.T, down)
    if "hada_t1" in part:
        first, second = (_tucker_product(part[f"hada_t{n}"], part[f"hada_w{n}_a"], part[f"hada_w{n}_b"]) for n in "12")
        return _multiply(first, second)
    if "hada_w1" in part:
        return _multiply(part["hada_w1"], part["hada_w2"])
    second = (
        _tucker_product(part["lokr_t2"], part["lokr_w2_a"], part["lokr_w2_b"]) if "lokr_t2" in part else part["lokr_w2"]
    )
    return _kronecker_product(part["lokr_w1"], second)


def _multiply(first: Float64Array, second: Float64Array) -> Float64Array:
    if first.shape != second.shape:
        raise ValueError("shapes differ")
    return first * second


def _tucker_product(core: Float64Array, a: Float64Array, b: Float64Array) -> Float64Array:
    """Return the Tucker product (p, q, *k) of a core (i, j, *k), a (i, p) and b (j, q).

    The sum over j is exact, and the sum over i is computed in order.
    """
    if core.ndim < 3 or a.ndim != 2 or b.ndim != 2 or core.shape[:2] != (a.shape[0], b.shape[0]):
        raise ValueError("not a Tucker product")
    inner = np.moveaxis(np.tensordot(core, b, axes=(1, 0)), -1, 1)  # (i, q, *k)
    total = np.zeros((a.shape[1], *inner.shape[1:]))
    for row, values in zip(a, inner, strict=True):
        total += row.reshape(-1, *(1,) * (inner.ndim - 1)) * values
    return total


def _kronecker_product(first: Float64Array, second: Float64Array) -> Float64Array:
    """Return the Kronecker product (a c, b d, *k) of arrays (a, b) and (c, d, *k)."""
    if first.ndim != 2 or second.ndim < 2:
        raise ValueError("not matrices")
    (a, b), (c, d, *kernel) = first.shape, second.shape
    outer = first[:, None, :, None].reshape(a, 1, b, 1, *(1,) * len(kernel)) * second.reshape(1, c, 1, d, *kernel)
    return outer.reshape(a * c, b * d, *kernel)
