"""Read, write and convert adapters of every dialect, and split them into deltas. This package needs NumPy only.

`contract.Dialect` is the contract of a dialect, `registry` has the table of dialects, and `dialects/` has one file for
each. The files of tensors (safetensors, npz, pickle, GGUF) are read and written by the package `stores`.
"""

from __future__ import annotations

from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.registry import (
    DIALECTS,
    deltas,
    dialect_of,
    find_dialect,
    read,
    register_dialect,
    write,
)
from nola_codec.stores.files import AnySource

__all__ = [
    "DIALECTS",
    "AnySource",
    "CodingRules",
    "Dialect",
    "deltas",
    "dialect_of",
    "find_dialect",
    "read",
    "register_dialect",
    "write",
]
