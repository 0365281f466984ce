"""Name the modules of Llama-like models as Transformers does, for tools that have names and rows of their own.

torchtune and mistral-finetune keep the rows of queries and keys in the order of Meta's code, where the two numbers that
one rotation turns are neighbours. Transformers keeps the first numbers of all pairs of a head before the second ones.
So a conversion moves rows of lora_B, which is exact, and the number of heads in ``config.json`` of the base model tells
how (`tune_to_peft_adapter_weights` of torchtune, `permute` of Transformers' `convert_mistral_weights_to_hf.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nola_codec.adapters.base_model import mismatch_message
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule

_ROTATED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


@dataclass(frozen=True)
class TransformersNames:
    """The names of one tool, and the models that it trains under these names.

    Attributes:
        tool: The name of the tool, for messages.
        paths: The path of a module in Transformers, by its path in the tool; ``{}`` stands for the number of a layer.
        moved: The values of ``model_type`` whose rows of queries and keys are in another order in the tool.
        kept: The values of ``model_type`` whose rows are in the same order.
    """

    tool: str
    paths: Mapping[str, str]
    moved: frozenset[str]
    kept: frozenset[str] = frozenset()

    def convert(self, modules: Sequence[LoraModule], base: Mapping[str, Any] | None) -> list[LoraModule]:
        """Return the modules under the names of Transformers, with its order of rows. The factors keep their numbers.

        Args:
            modules: The modules under the tool's names.
            base: ``config.json`` of the base model, if it was given.

        Raises:
            AdapterError: ``needs-base``: no base model was given; ``not-expressible``: the order of rows of this model,
                or the place of a module, is not known; ``base-mismatch``: the rows are not those of its heads.
        """
        if not modules:
            return []
        if base is None:
            message = (
                f"{self.tool} names modules in its own way and keeps the rows of queries and keys in another order; "
                "give the directory of the base model in Transformers' form with --base"
            )
            raise AdapterError(message, code="needs-base", where=modules[0].name)
        model_type = base.get("model_type")
        if model_type not in self.moved | self.kept:
            known = ", ".join(sorted(self.moved | self.kept))
            message = mismatch("model_type", f"one of {known}", model_type)
            message += f"; for other models, the order of rows that {self.tool} uses is not known here"
            raise AdapterError(message, code="not-expressible", where=modules[0].name)
        return [self._convert(module, base, moves=model_type in self.moved) for module in modules]

    def _convert(self, module: LoraModule, base: Mapping[str, Any], *, moves: bool) -> LoraModule:
        number = re.search(r"(?<=\blayers\.)\d+(?=\.)", module.name)
        own = module.name if number is None else module.name.replace(f"layers.{number[0]}.", "layers.{}.", 1)
        path = self.paths.get(own)
        if path is None:
            message = f"the name of this module in Transformers is not known; {self.tool}'s file keeps it"
            raise AdapterError(message, code="not-expressible", where=module.name)
        renamed = replace(module, name=path if number is None else path.format(number[0]))
        setting = _ROTATED.get(path.rpartition(".")[2])
        if not moves or setting is None:
            return renamed
        heads = base.get(setting, base.get("num_attention_heads"))
        rows = len(module.lora_B)
        size = base.get("head_dim") or (rows // heads if isinstance(heads, int) and heads > 0 else None)
        if not isinstance(heads, int) or not isinstance(size, int) or heads * size != rows or size % 2:
            problem = f"{module.name}: " + mismatch("rows", f"those of {heads} heads ({setting})", rows)
            raise AdapterError(mismatch_message([problem]), code="base-mismatch")
        order = np.arange(rows).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)
        return replace(renamed, lora_B=np.ascontiguousarray(module.lora_B[order]))
