"""AdaLoRA, read as the LoRA that has the same deltas.

    delta = B (E * A) s / (ranknum + 1e-5)        A (r, in), E (r, 1), B (out, r), E * A row by row

``s`` is ``lora_alpha``, or the rank if that is not positive, and ``ranknum`` is the rank ``init_r`` at the start of the
training, also after rows were taken away (peft 0.21, `tuners/adalora/layer.py` and `model.py`). E is multiplied into A
in float32, as PEFT does itself before each product, so both have the same factors to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.pairs import read_floats
from nola_codec.adapters.dialects.peft_config import PREFIX, positive_integer, real_number, with_ranks
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.tensor_store import MemoryStore

PEFT_TYPE = "ADALORA"

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ABE])")
# What a LoraConfig has too; the rest belongs to the allocation of ranks during the training.
_KEPT = (
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "modules_to_save", "revision", "target_modules",
    "task_type", "trainable_token_indices",
)  # fmt: skip


def as_lora(source: AdapterSource) -> tuple[AdapterSource, tuple[str, ...]]:
    """Return an AdaLoRA as a LoRA in memory, and notes for the user.

    Args:
        source: A source whose configuration has the ``peft_type`` ADALORA.

    Raises:
        AdapterError: ``missing-partner``, ``bad-shape``, ``bad-config``, ``empty-adapter``, and those of `read_floats`.
    """
    config, where = dict(source.config or {}), f"{source.where}: {CONFIG_NAME}"
    start = positive_integer(config.get("init_r", 12), "init_r", where)
    alpha = real_number(config.get("lora_alpha", 8), "lora_alpha", where)
    modules: dict[str, dict[str, str]] = {}
    for key in source.file.tensors:
        match = _FACTOR.fullmatch(key)
        if match is not None:
            modules.setdefault(match["module"], {})[match["part"]] = key
    tensors: dict[str, RawTensor] = {}
    ranks: dict[str, int] = {}
    for module, keys in sorted(modules.items()):
        rank = _check(source, module, keys)
        if rank:
            tensors |= _fold(source, module, keys)
            ranks[module.removeprefix(PREFIX)] = rank
    if not ranks:
        raise AdapterError("no factors of AdaLoRA in it", code="empty-adapter", where=source.where)
    used = {key for keys in modules.values() for key in keys.values()}
    ranknums = {key for key in source.file.tensors if key.endswith(".ranknum")}  # of a whole state dict
    tensors |= {key: source.file.read(key) for key in source.file.tensors if key not in used | ranknums}
    divisor = float(np.float32(start) + np.float32(1e-5))
    scalings = {path: (alpha if alpha > 0 else float(rank)) / divisor for path, rank in ranks.items()}
    lora: dict[str, Any] = {"peft_type": "LORA"} | {key: config[key] for key in _KEPT if key in config}
    notes = [
        "AdaLoRA is stored as the LoRA of the same deltas: lora_E is multiplied into lora_A in float32, as PEFT does"
    ]
    if pruned := len(modules) - len(ranks):
        lora["target_modules"] = sorted(ranks)  # an ending would match the modules without factors too
        notes.append(f"{pruned} modules have rank 0 after the training, and no delta")
    file = MemoryStore(tensors, name=source.file.name, metadata=source.file.metadata)
    return replace(source, file=file, config=with_ranks(lora, ranks, scalings)), tuple(notes)


def _check(source: AdapterSource, module: str, keys: Mapping[str, str]) -> int:
    """Return the rank of a module. Raises AdapterError ``missing-partner``, ``bad-shape``."""
    for part in "ABE":
        if part not in keys:
            present = next(iter(keys.values()))
            message = f"its partner {module}.lora_{part} is missing"
            raise AdapterError(message, code="missing-partner", where=f"{source.where}: {present}")
    a, b, e = (source.file.tensors[keys[part]].shape for part in "ABE")
    rank = a[0] if a else 0
    if len(a) != 2 or len(b) != 2 or b[1] != rank or e != (rank, 1):
        message = mismatch("shapes of A, B and E", "(r, in), (out, r) and (r, 1)", f"{list(a)}, {list(b)}, {list(e)}")
        raise AdapterError(message, code="bad-shape", where=f"{source.where}: {module}")
    return rank


def _fold(source: AdapterSource, module: str, keys: Mapping[str, str]) -> dict[str, RawTensor]:
    a, e = (read_floats(source.file, keys[part]) for part in "AE")
    with np.errstate(over="ignore", under="ignore"):
        folded = a * e
    key = f"{module}.lora_A.weight"
    return {key: from_float32(folded, "F32", where=key), f"{module}.lora_B.weight": source.file.read(keys["B"])}
