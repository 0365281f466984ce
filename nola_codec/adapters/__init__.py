"""Read, write and convert adapters of every dialect, and split them into deltas. This package needs NumPy only.

    contract.py                 Dialect: all that a dialect can say
    registry.py                 the table of dialects; `write`, `deltas`
    reading.py                  `read`: the first dialect that knows the keys reads them
    dialects/                   one file for each dialect, and what several of them share
    sources.py, writing.py      what lies around the tensors: directories and configurations
    folders.py, beside_files.py the adapter in a directory of a trainer, and the files beside it
    plain_keys.py, gathered.py  keys without what a training put into them; no empty shards
    frozen_weights.py           the weights of the model that a state dict has beside the factors
    coding_rules.py             what the encoder has to know about a dialect
    base_model.py               what a dialect sees of a base model when it is merged
    adapter_delta.py            an adapter as a list of its deltas
    base_changes.py             carried tensors that are changes of the base model's
    conversion.py               from one dialect to another; `module_naming.py` finds the names of modules there
    families/                   how image and video models name their modules, in two layouts
    base_config.py              what a base model tells a conversion
    joining.py                  several adapters as one, without a base model; weights are in `weighted.py`
    joined_carried.py           the carried tensors of adapters that are joined, and biases beside lora_B
    image_models.py             adapters of image and video models, told from others
    scales.py, scale_records.py  the scaling of modules without alphas, and where it came from
    ranks.py, trimming.py       other ranks for the same deltas; without components that are zero
    spooling.py                 the factors of a large adapter on disk

What the tensors lie in (safetensors, npz, pickle, GGUF) is another matter: `stores`.

Names are imported when they are first used, and a dialect when an adapter needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.lazy import lazy_names

if TYPE_CHECKING:
    from nola_codec.adapters.coding_rules import CodingRules
    from nola_codec.adapters.contract import Dialect
    from nola_codec.adapters.reading import read
    from nola_codec.adapters.registry import DIALECTS, deltas, dialect_of, find_dialect, register_dialect, write
    from nola_codec.stores.files import AnySource

_HOME = {
    "CodingRules": "coding_rules",
    "Dialect": "contract",
    "AnySource": "sources",
    "read": "reading",
    "DIALECTS": "registry",
    "deltas": "registry",
    "dialect_of": "registry",
    "find_dialect": "registry",
    "register_dialect": "registry",
    "write": "registry",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
