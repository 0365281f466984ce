"""How Diffusers spells the keys of a pair of factors, and the path of the module that a spelling means.

    <path>.lora_A.weight, .lora_B.weight                  PEFT's names, which Diffusers writes for most modules
    <path>.lora.down.weight, .up.weight                   attention projections; `convert_state_dict_to_diffusers` turns
                                                          PEFT's names into these, so one file may have both spellings
    <path>.lora_linear_layer.down.weight                  text encoders
    <attention>.processor.to_q_lora.down.weight           attention processors, also without ``processor.``
    <block>.processor.qkv_lora1.down.weight               XLabs

A record's name is the key without ``.lora_A.weight`` or ``.down.weight``, so the name tells the spelling.
"""

from __future__ import annotations

import re

from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.paths import attention_path

_DOWN_UP_END = r"(?:_lora\d?|\.lora_linear_layer|\.lora)"
_IS_DOWN_UP = re.compile(rf".+{_DOWN_UP_END}")

LORA_A_B = PairKeys.of_suffixes(".lora_A.weight", ".lora_B.weight", stem=r"(?!base_model\.).+")
"""PEFT's names without ``base_model.``."""

DOWN_UP = PairKeys.of_suffixes(".down.weight", ".up.weight", stem=rf".+{_DOWN_UP_END}")
"""The other spellings."""


def _a_key(name: str) -> str:
    return name + (".down.weight" if is_down_up(name) else ".lora_A.weight")


def _b_key(name: str) -> str:
    return name + (".up.weight" if is_down_up(name) else ".lora_B.weight")


# A lookbehind must have one width, so the ends of a name are tested one by one.
_AFTER_DOWN_UP = r"(?:(?<=[._]lora)|(?<=_lora\d)|(?<=\.lora_linear_layer))"
_AFTER_OTHERS = r"(?<![._]lora)(?<!_lora\d)(?<!\.lora_linear_layer)"

BOTH = PairKeys(
    re.compile(
        r"(?P<stem>(?!base_model\.).+)(?:"
        rf"(?P<a>{_AFTER_OTHERS}\.lora_A\.weight|{_AFTER_DOWN_UP}\.down\.weight)|"
        rf"(?P<b>{_AFTER_OTHERS}\.lora_B\.weight|{_AFTER_DOWN_UP}\.up\.weight))"
    ),
    _a_key,
    _b_key,
)
"""Both kinds of spellings in one file."""


def is_down_up(name: str) -> bool:
    """Return True if the factors of a record of this name are called ``.down.weight`` and ``.up.weight``."""
    return _IS_DOWN_UP.fullmatch(name) is not None


def alpha_module(name: str) -> str:
    """Return the name M for which a module's alpha is called ``M.alpha``: the path for ``<path>.lora``."""
    return name.removesuffix(".lora")


def path_in_file(name: str) -> str:
    """Return the path of a module, with the component that the name has, if it has one."""
    return attention_path(name) if is_down_up(name) else name
