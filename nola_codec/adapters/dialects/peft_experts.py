"""PEFT's factors on bare parameters of E experts (`target_parameters`): one module an expert in here.

    lora_A (E r, in), expert-major;  lora_B (out, r E), expert-fastest:  delta[e] = sum_k B[:, k E + e] A[e r + k, :]

(peft 0.21, `tuners/lora/layer.py`, `ParamWrapper.get_delta_weight`.) The product of the two as they are stored mixes
experts and is nobody's delta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule

_EXPERT = re.compile(r"(?P<module>.+)\[(?P<expert>0|[1-9]\d*)\]")


def split_experts(module: LoraModule, rank: int, where: str) -> list[LoraModule]:
    """Return a module for each expert, named ``<module>[<expert>]``; the module itself where it has one.

    Raises:
        AdapterError: ``rank-mismatch`` unless the factors hold a whole number of experts of that rank.
    """
    count, rest = divmod(module.rank, rank)
    if rest:
        message = mismatch("rank", f"a multiple of {rank}", module.rank)
        raise AdapterError(message, code="rank-mismatch", where=where)
    if count == 1:
        return [module]
    lora_A = module.lora_A.reshape(count, rank, -1)
    lora_B = module.lora_B.reshape(-1, rank, count)
    return [
        replace(
            module,
            name=f"{module.name}[{expert}]",
            lora_A=lora_A[expert],
            lora_B=np.ascontiguousarray(lora_B[:, :, expert]),
            a_shape=(rank, module.a_shape[1]),
            b_shape=(module.b_shape[0], rank),
        )
        for expert in range(count)
    ]


def join_experts(modules: Iterable[LoraModule]) -> list[LoraModule]:
    """Return the modules before `split_experts`.

    Raises:
        AdapterError: ``missing-expert``, ``bad-shape`` for a set that is not one module's.
    """
    joined, experts = [], dict[str, dict[int, LoraModule]]()
    for module in modules:
        match = _EXPERT.fullmatch(module.name)
        if match is None:
            joined.append(module)
        else:
            experts.setdefault(match["module"], {})[int(match["expert"])] = module
    for name, parts in experts.items():
        if sorted(parts) != list(range(len(parts))):
            raise AdapterError(f"{len(parts)} experts, not numbered from 0", code="missing-expert", where=name)
        ordered = [parts[expert] for expert in range(len(parts))]
        first = ordered[0]
        if any((m.lora_A.shape, m.lora_B.shape) != (first.lora_A.shape, first.lora_B.shape) for m in ordered):
            raise AdapterError("experts differ in shape", code="bad-shape", where=name)
        total = first.rank * len(ordered)
        lora_B = np.stack([m.lora_B for m in ordered], axis=-1)
        joined.append(
            replace(
                first,
                name=name,
                lora_A=np.concatenate([m.lora_A for m in ordered]),
                lora_B=lora_B.reshape(len(lora_B), total),
                a_shape=(total, first.a_shape[1]),
                b_shape=(first.b_shape[0], total),
            )
        )
    return joined


def is_expert(name: str) -> bool:
    """Return True if a module is one expert of several."""
    return _EXPERT.fullmatch(name) is not None


def expert_number(name: str) -> int:
    """Return the number of the expert that a module is; 0 for a module that is none."""
    match = _EXPERT.fullmatch(name)
    return 0 if match is None else int(match["expert"])


def expert_module(name: str) -> str:
    """Return the module that an expert belongs to."""
    match = _EXPERT.fullmatch(name)
    return name if match is None else match["module"]
