"""Read `adapter_config.json` of a LoRA: the rank and scaling of each module, and the options that are not supported.

This follows peft 0.21: `tuners/lora/model.py` (`_create_and_replace`), `utils/other.py` (`get_pattern_key`),
`tuners/lora/layer.py` (`update_layer`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nola_codec.adapters.dialects.peft_methods import describe_refusal
from nola_codec.adapters.dialects.peft_patterns import PatternMap
from nola_codec.adapters.sources import PEFT_PREFIX
from nola_codec.errors import AdapterError, mismatch

PREFIX = PEFT_PREFIX
MAX_RANK = 1 << 16
_MAX_PATTERNS = 100_000

# PEFT saves these embeddings whole if they are adapted or were resized (`save_embedding_layers`,
# `EMBEDDING_LAYER_NAMES`).
_EMBEDDING_WEIGHT = re.compile(r"(^|\.)(embed_tokens|lm_head)(\.base_layer)?\.(weight|bias)$|\.base_layer\.weight$")

# The modules that PEFT adds to ``modules_to_save`` for a type of task (`peft_model.py`: `classifier_module_names` and
# `qa_module_names`). The configuration on disk may not name them, since the model adds them again when it is loaded.
_SAVED_BY_TASK: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# Initialisations that move a part of the base weight into the factors. The factors are then a delta on a changed base
# model that only the trainer has. (eva, gaussian, orthogonal, mica and the defaults do not change the base.)
_MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")

# Options with which scaling * B @ A is not the delta, or the factors have other shapes: the code and the reason.
_UNSUPPORTED_OPTIONS: Mapping[str, tuple[str, str]] = {
    "layer_replication": ("layer-replication", "layers are replicated: the modules do not exist in the base model"),
    "use_qalora": ("qalora", "QALoRA factors act on pooled inputs"),
    "use_bdlora": ("bdlora", "BD-LoRA factors are block-diagonal"),
    "kasa_config": ("kasa", "KaSA truncates the base weights and puts a diagonal between the factors"),
    "monteclora_config": ("monteclora", "MonteCLoRA samples its factors"),
    "arrow_config": ("arrow", "Arrow routes between several adapters"),
}  # fmt: skip


@dataclass(frozen=True)
class PeftSettings:
    """The part of a LoraConfig that decides how tensors are read.

    Attributes:
        rank: The default rank, ``r``.
        alpha: The default alpha, ``lora_alpha``.
        rank_pattern: Regular expressions, and the ranks of modules that match; the first match counts.
        alpha_pattern: The same for alphas.
        use_rslora: True if the scaling is alpha / sqrt(r), and False if it is alpha / r.
        fan_in_fan_out: True if base weights are stored (in, out). PEFT changes this flag for each module by its type,
            so in a model with both types it tells only the type of the last module.
        target_parameters: The ends of the paths of parameters that have factors of their own, such as experts.
    """

    rank: int
    alpha: float
    rank_pattern: PatternMap
    alpha_pattern: PatternMap
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    target_parameters: tuple[str, ...] = ()

    def parameter_of(self, module: str) -> str | None:
        """Return the path of the bare parameter that a module's factors belong to; None if they belong to a module.

        PEFT (`tuners_utils.py`, `_inject_parameters`) wraps a module once for each of its parameters, the first one
        innermost, and calls the inner ones ``base_layer``. The configuration lists the parameters in any order. In all
        models of Transformers ``down_proj`` is the last parameter of experts.

        Args:
            module: The module's path in the base model, where ``base_layer`` may stand at the end.
        """
        path = module
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        depth = (len(module) - len(path)) // len(".base_layer")
        leaves = set()
        for target in self.target_parameters:
            parent, _, leaf = target.rpartition(".")
            # A name without a parent means the parameters of that name in all modules, and only experts have such.
            if (parent and f".{path}".endswith("." + parent)) or (not parent and path.endswith("experts")):
                leaves.add(leaf)
        if not leaves:
            return None
        ordered = sorted(leaves, key=lambda leaf: ("down" in leaf, leaf))
        return f"{path}.{ordered[max(0, len(ordered) - 1 - depth)]}"

    def rank_of(self, path: str) -> int:
        """Return the rank of a module, by its path in the base model (no ``base_model.model.``)."""
        found: int | None = self.rank_pattern.find(path)
        return self.rank if found is None else found

    def scaling_of(self, path: str) -> float:
        """Return ``alpha / r`` or ``alpha / sqrt(r)`` of a module, computed as PEFT does."""
        found: float | None = self.alpha_pattern.find(path)
        alpha = self.alpha if found is None else found
        rank = self.rank_of(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def parse_config(config: Mapping[str, Any], where: str) -> PeftSettings:
    """Check a configuration, and return the settings that reading needs.

    Args:
        config: The parsed ``adapter_config.json``.
        where: The name of the configuration, for messages.

    Raises:
        AdapterError: ``not-lora`` for another ``peft_type``; ``not-a-delta`` for an initialisation that changes the
            base; a different code for each option that is not supported; ``bad-config`` for malformed values;
            ``unsafe-pattern`` for regular expressions that could run for ever.
    """
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterError(describe_refusal(peft_type), code="not-lora", where=where)
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        message = (
            f"init_lora_weights {init!r} changes the base weights, so the factors are not a delta on the original base "
            "model; save the adapter with path_initial_model_for_weight_conversion first"
        )
        raise AdapterError(message, code="not-a-delta", where=where)
    for option, (code, reason) in _UNSUPPORTED_OPTIONS.items():
        if config.get(option):
            raise AdapterError(f"{option} is not supported: {reason}", code=code, where=where)
    return replace(
        parse_ranks(config, "lora_alpha", where),
        use_rslora=_flag(config, "use_rslora", where),
        fan_in_fan_out=_flag(config, "fan_in_fan_out", where),
        target_parameters=_names(config, "target_parameters", where),
    )


def parse_ranks(config: Mapping[str, Any], alpha: str, where: str) -> PeftSettings:
    """Return the ranks and alphas of a configuration; all other settings are those of a plain LoRA.

    Args:
        config: The parsed ``adapter_config.json``.
        alpha: The name of the option that gives alpha.
        where: The name of the configuration, for messages.

    Raises:
        AdapterError: ``bad-config``, ``unsafe-pattern``.
    """
    return PeftSettings(
        rank=positive_integer(config.get("r", 8), "r", where),
        alpha=real_number(config.get(alpha, 8), alpha, where),
        rank_pattern=_patterns(config, "rank_pattern", positive_integer, where),
        alpha_pattern=_patterns(config, "alpha_pattern", real_number, where),
    )


def is_saved_embedding(key: str) -> bool:
    """Return True if a tensor is an embedding that PEFT saves whole."""
    return _EMBEDDING_WEIGHT.search(key) is not None


def is_saved_module(key: str, config: Mapping[str, Any]) -> bool:
    """Return True if a tensor belongs to a module that PEFT saves whole: a component of its path ends in a name of it.

    These are the modules of ``modules_to_save``, and those that the type of the task adds (`_SAVED_BY_TASK`). PEFT
    compares the ends of strings, so ``norm`` also means ``input_layernorm``.
    """
    saved = config.get("modules_to_save") or []
    task = config.get("task_type")
    implied = _SAVED_BY_TASK.get(task, ()) if isinstance(task, str) else ()
    names = [*(saved if isinstance(saved, list) else ()), *implied]
    return any(isinstance(name, str) and f"{name}." in key for name in names)


def with_ranks(config: Mapping[str, Any], ranks: Mapping[str, int], scalings: Mapping[str, float]) -> dict[str, Any]:
    """Return the configuration for other ranks and these scalings.

    The most common rank and alpha become ``r`` and ``lora_alpha``. The others become patterns, one exact entry for each
    module. Alpha is chosen so that PEFT's division gives the same scaling, to the last bit if there is such a float.

    Args:
        config: The configuration as it was read; it does not change.
        ranks: The new rank of every module, by its path (without ``base_model.model.``).
        scalings: The scaling of every module, by its path.

    Raises:
        AdapterError: ``zero-rank``, since PEFT refuses to load a rank of 0.
    """
    for path, rank in ranks.items():
        if rank < 1:
            raise AdapterError(mismatch("rank", "at least 1", rank), code="zero-rank", where=path)
    use_rslora = bool(config.get("use_rslora"))
    alphas = {path: _alpha_for(scalings[path], rank, use_rslora) for path, rank in ranks.items()}
    result = dict(config)
    for default, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
        # Of equally common values the first module's counts, so the output does not depend on the order of hashes.
        common: float = Counter(values.values()).most_common(1)[0][0]
        result[default] = common
        result[pattern] = {_exact_pattern(path): value for path, value in values.items() if value != common}
    if result.get("init_lora_weights") in ("orthogonal", "mica"):
        # PEFT allows these only for some ranks, and a trained adapter no longer needs its initialisation.
        result["init_lora_weights"] = True
    return result


def has_alpha_for(scaling: float, rank: int, use_rslora: bool) -> bool:
    """Return True if `with_ranks` finds an alpha with which PEFT computes exactly this scaling at this rank."""
    return _alpha_for(scaling, rank, use_rslora) / (math.sqrt(rank) if use_rslora else rank) == scaling


def _alpha_for(scaling: float, rank: int, use_rslora: bool) -> int | float:
    divisor = math.sqrt(rank) if use_rslora else float(rank)
    alpha = scaling * divisor
    for candidate in (float(round(alpha)), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, 0.0)):
        if candidate / divisor == scaling:
            alpha = candidate
            break
    return int(alpha) if alpha.is_integer() else alpha


def _exact_pattern(path: str) -> str:
    # `^` inside PEFT's "(.*\.)?(...)$" matches only at the start, so a longer path with this ending does not match.
    return "^" + re.escape(path)


def _patterns(
    config: Mapping[str, Any], option: str, check: Callable[[Any, str, str], float], where: str
) -> PatternMap:
    patterns = config.get(option) or {}
    is_map = isinstance(patterns, dict) and all(isinstance(pattern, str) for pattern in patterns)
    if not is_map or len(patterns) > _MAX_PATTERNS:
        raise AdapterError(f"{option} is not a map of patterns", code="bad-config", where=where)
    return PatternMap(
        {pattern: check(value, option, where) for pattern, value in patterns.items()}, f"{where}: {option}"
    )


def _names(config: Mapping[str, Any], option: str, where: str) -> tuple[str, ...]:
    value = config.get(option) or []
    if not isinstance(value, list) or len(value) > _MAX_PATTERNS or not all(isinstance(name, str) for name in value):
        raise AdapterError(mismatch(option, "a list of names", value), code="bad-config", where=where)
    return tuple(value)


def positive_integer(value: Any, what: str, where: str) -> int:
    """Return a value if it is an integer from 1 to `MAX_RANK`. Raises AdapterError ``bad-config``."""
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterError(
            mismatch(what, f"an integer from 1 to {MAX_RANK}", f"{value!r:.80}"), code="bad-config", where=where
        )
    return value


def real_number(value: Any, what: str, where: str) -> float:
    """Return a value if it is a finite number (below 1e30). Raises AdapterError ``bad-config``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise AdapterError(mismatch(what, "a finite number", f"{value!r:.80}"), code="bad-config", where=where)
    return value


def _flag(config: Mapping[str, Any], option: str, where: str) -> bool:
    value = config.get(option)
    if value is not None and not isinstance(value, bool):
        raise AdapterError(mismatch(option, "true or false", f"{value!r:.80}"), code="bad-config", where=where)
    return bool(value)
