"""Find the parts of LyCORIS's deltas among the keys of a file, and say how an error of a part weighs in its delta.

kohya's dialect and PEFT's dialects for LoHa and LoKr share the names of the parts, after the name of the module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.adapter_delta import CombinedDelta, part_values
from nola_codec.adapters.dialects.lycoris_keys import PART
from nola_codec.adapters.dialects.pairs import PairKeys, find_pairs
from nola_codec.model.adapter import Adapter

PRODUCT_KEYS = PairKeys.of_suffixes("_b", "_a", stem=r".+\.(?:hada|lokr)_w[12]")
"""The spelling of the parts that are products: ``_a`` (out, r) is the up factor, and ``_b`` (r, in) the down factor."""


@dataclass(frozen=True)
class PartKeys:
    """The keys of a file, sorted by what they are for LyCORIS.

    Attributes:
        products: The names of the parts that are products of two factors.
        tucker: The keys of the parts of modules with a Tucker core.
        others: All other keys, also those of the parts that are single tensors.
    """

    products: list[str]
    tucker: list[str]
    others: list[str]


def find_parts(keys: Iterable[str], where: str) -> PartKeys:
    """Sort keys. Raises AdapterError ``missing-partner``, ``duplicate-key``."""
    names = list(keys)
    tucker = {match["stem"] for key in names if (match := PART.fullmatch(key)) and _is_tucker(match["part"])}
    products, others = find_pairs([key for key in names if not _is_part_of(tucker, key)], PRODUCT_KEYS, where)
    return PartKeys(products, [key for key in names if _is_part_of(tucker, key)], others)


def with_gains(adapter: Adapter, combined: Sequence[CombinedDelta]) -> Adapter:
    """Set the gain of each part, ||delta|| / ||part||: the factor from its error to the error of the delta.

    The gain is exact for a factor of a Kronecker product. For other parts it holds on average over random errors.
    """
    values = part_values([*adapter.modules, *adapter.vectors])
    gains: dict[str, float] = {}
    for composite in combined:
        norm = _norm(composite.combine({part: values[part]() for part in composite.parts}))
        for part in composite.parts:
            own = _norm(values[part]())
            gains[part] = norm / own if own else 0.0
    return replace(
        adapter,
        modules=tuple(replace(m, gain=gains[m.name]) if m.name in gains else m for m in adapter.modules),
        vectors=tuple(replace(v, gain=gains[v.name]) if v.name in gains else v for v in adapter.vectors),
    )


def _norm(values: npt.NDArray[Any]) -> float:
    """Return the Frobenius norm, in float64 where a square leaves float32."""
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(values))
    return norm if math.isfinite(norm) else float(np.linalg.norm(values.astype(np.float64)))


def _is_tucker(part: str) -> bool:
    return part == "lora_mid.weight" or part.startswith(("hada_t", "lokr_t"))


def _is_part_of(stems: set[str], key: str) -> bool:
    """Return True if a key is a part of a module with a Tucker core; such parts are not pairs of factors."""
    match = PART.fullmatch(key)
    # The first factor of a LoKr is a plain matrix or a pair, even if the second factor has a Tucker core.
    return match is not None and match["stem"] in stems and not match["part"].startswith("lokr_w1")
