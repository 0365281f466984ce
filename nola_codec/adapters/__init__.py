"""Adapters of every dialect: read, written, converted, and taken apart into deltas. NumPy only.

`contract.Dialect` says what a dialect is, `registry` has the table of them, and `dialects/` one file for each.
What the tensors lie in (safetensors, npz, pickle, GGUF) is another matter: `stores`.
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
