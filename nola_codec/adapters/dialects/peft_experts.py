"""Split PEFT's factors on a bare parameter of E experts (`target_parameters`) into one module for each expert.

    lora_A (E r, in), rows of one expert together;  lora_B (out, r E), columns of one expert E apart
    delta[e] = sum_k B[:, k E + e] A[e r + k, :]

(peft 0.21, `tuners/lora/layer.py`, `ParamWrapper.get_delta_weight`.) The product of the two stored tensors mixes
experts, and is not a delta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget, mismatch_message
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.adapters.dialects.peft_config import PREFIX, parse_config
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import LoraModule

# The parameters of experts in the models of Transformers, if the configuration does not name any.
_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
_EXPERT = re.compile(r"(?P<module>.+)\[(?P<expert>0|[1-9]\d*)\]")


def split_experts(module: LoraModule, rank: int, where: str) -> list[LoraModule]:
    """Return a module for each expert, named ``<module>[<expert>]``; or the module itself if it has one expert.

    Args:
        module: The module as it is stored.
        rank: The rank of one expert.
        where: The name of the tensor, for messages.

    Raises:
        AdapterError: ``rank-mismatch``: the rank of the factors is not a multiple of `rank`.
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
    """Join the experts of each module again, as they were before `split_experts`.

    Raises:
        AdapterError: ``missing-expert``, ``bad-shape`` for experts that do not belong to one module.
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
            message = f"the numbers of the {len(parts)} experts are not 0 to {len(parts) - 1}"
            raise AdapterError(message, code="missing-expert", where=name)
        ordered = [parts[expert] for expert in range(len(parts))]
        first = ordered[0]
        if any((m.lora_A.shape, m.lora_B.shape) != (first.lora_A.shape, first.lora_B.shape) for m in ordered):
            raise AdapterError("the experts differ in shape", code="bad-shape", where=name)
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
    """Return the number of an expert; 0 for a module that is not an expert."""
    match = _EXPERT.fullmatch(name)
    return 0 if match is None else int(match["expert"])


def expert_module(name: str) -> str:
    """Return the name of the module that an expert belongs to; or the name itself for any other module."""
    match = _EXPERT.fullmatch(name)
    return name if match is None else match["module"]


def expert_target(name: str, parts: Sequence[AdapterDelta], base: BaseModel, config: Mapping[str, Any]) -> MergeTarget:
    """Return the target of a module's experts: a parameter of shape (experts, out, in) or (experts, in, out).

    Args:
        name: The name of the module.
        parts: The delta of each expert, in order.
        base: The base model.
        config: The adapter's configuration, which names the parameters.

    Raises:
        AdapterError: ``base-mismatch``: the module's parameter cannot be told from others.
    """
    module = parts[0].product
    assert module is not None, "experts are pairs"
    out, inputs = module.vector_lengths
    straight, turned = (len(parts), out, inputs), (len(parts), inputs, out)
    path, wanted = _parameter_names(name, config)
    stored = {leaf: base.find(f"{path}.{leaf}") for leaf in dict.fromkeys((*wanted, *_PARAMETERS))}
    fitting = [leaf for leaf, each in stored.items() if each and base.shapes[each] in (straight, turned)]
    # The order of the wrappers tells the parameter; the shape tells it too if only one has that shape.
    leaf = next((leaf for leaf in wanted if leaf in fitting), fitting[0] if len(fitting) == 1 else "")
    if not leaf and wanted and stored[wanted[0]] is None:
        return MergeTarget(name, "linear", straight, weight=f"{path}.{wanted[0]}")  # stored one by one
    if not leaf:
        found = [base.shapes[each] for each in stored.values() if each]
        problem = f"{name}: " + mismatch("parameter", f"one of shape {list(straight)}", found or "none")
        raise AdapterError(mismatch_message([problem]), code="base-mismatch", where=base.where)
    weight = stored[leaf] or ""
    transposed = base.shapes[weight] == turned
    if out == inputs:
        known = base.experts_transposed
        if known is None:
            problem = f"{name}: the experts are square ({out} x {out}), so it is not known if they are transposed"
            raise AdapterError(mismatch_message([problem]), code="base-mismatch", where=base.where)
        transposed = known
    return MergeTarget(name, "linear", straight, fan_in_fan_out=transposed, weight=weight)


def _parameter_names(name: str, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the path of a module in the base model, and the parameters that its factors may be of, likeliest first."""
    path = module_path(name)
    named = parse_config(config, name).parameter_of(name.removeprefix(PREFIX)) if config else None
    return path, () if named is None else (named.rpartition(".")[2],)
