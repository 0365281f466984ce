"""Convert between a LoRA of Transformers and one of llama.cpp: names, and the rows that llama.cpp permutes.

The names come from the tables of the `gguf` package. Only some architectures are supported: those whose linear weights
llama.cpp leaves as they are, or changes only by permuting query and key (`convert_hf_to_gguf.py`,
`LlamaModel.permute`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.ranks import with_rank
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule

# By model_type of Transformers: the architecture of llama.cpp, and True if query and key are permuted.
_ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False),
    "gemma": ("gemma", False), "gemma2": ("gemma2", False), "gemma3_text": ("gemma3", False), "phi3": ("phi3", False),
}  # fmt: skip
_MAX_LAYERS = 4096
_MOST_ADDED = 64
_MOST_TIMES = 4
_MOST_SCALINGS = 16

ALPHA = "adapter.lora.alpha"
EMBEDDING = "token_embd.weight"


def key_values(adapter: Adapter) -> dict[str, tuple[str, Any]]:
    """Return the typed key-values that `config` holds.

    Raises:
        AdapterError: ``bad-config``, for a `.nola` file of a stranger.
    """
    found = (adapter.config or {}).get("gguf")
    if not isinstance(found, Mapping) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in found.values()
    ):
        raise AdapterError("these are not the key-values of a GGUF adapter", code="bad-config", where="config: gguf")
    return {key: (pair[0], pair[1]) for key, pair in found.items()}


def to_gguf(modules: Sequence[LoraModule], base: Mapping[str, Any] | None) -> Adapter:
    """Make an adapter of llama.cpp from modules whose names are the paths of Transformers.

    Args:
        modules: The modules.
        base: ``config.json`` of the base model, or None.

    Raises:
        AdapterError: ``needs-base``; ``not-expressible`` for an architecture or module that is not supported, or for
            alphas that differ; ``bad-config``; ``base-mismatch``.
    """
    if base is None:
        message = "GGUF's names depend on the architecture: give the base model's directory with --base"
        raise AdapterError(message, code="needs-base")
    arch, permuted, layers = _architecture(base)
    table = _name_map(arch, layers)
    alpha, modules = fit_to_one_alpha(modules)
    # llama.cpp looks for the tensor of every factor, and a model with tied embeddings has no output.weight.
    tied = base.get("tie_word_embeddings", arch.startswith("gemma"))
    named = []
    for module in modules:
        if tied and module.name.rpartition(".")[2] == "lm_head":
            message = "the base ties its output layer to its embeddings, so llama.cpp has no tensor for these factors"
            raise AdapterError(message, code="not-expressible", where=module.name)
        name = table.get_name(module.name)
        if name is None or module.layout == "conv":
            raise AdapterError(f"{arch} of llama.cpp has no such tensor", code="not-expressible", where=module.name)
        heads = _heads(base, module.name) if permuted else None
        lora_B = module.lora_B if heads is None else _permute(module, heads, inverse=False)
        named.append(replace(module, name=f"{name}.weight", lora_B=lora_B, fan_in_fan_out=False))
    if any((m.layout == "embedding") != (m.name == EMBEDDING) for m in named):
        raise AdapterError("a tensor that is not the token embedding has factors of one", code="not-expressible")
    extra = {
        "general.architecture": ["STRING", arch], "general.type": ["STRING", "adapter"],
        "adapter.type": ["STRING", "lora"], ALPHA: ["FLOAT32", alpha],
    }  # fmt: skip
    return Adapter("gguf", tuple(sorted(named, key=lambda m: m.name)), {}, {"gguf": extra}, {})


def fit_to_one_alpha(modules: Sequence[LoraModule]) -> tuple[float, list[LoraModule]]:
    """Return the one alpha of a GGUF file, and the modules with ranks at which alpha / r is each one's scaling.

    Zero components are added where a rank must be larger.

    Raises:
        AdapterError: ``not-expressible``: no alpha and ranks give the scalings.
    """
    scalings = {m.scaling for m in modules}
    largest = {s: max(m.rank for m in modules if m.scaling == s) for s in scalings}
    most = _MOST_TIMES * max(largest.values())
    searched = 0.0 not in scalings and len(scalings) <= _MOST_SCALINGS
    candidates = (
        {s * rank for s in scalings for rank in range(largest[s], largest[s] + _MOST_ADDED)} if searched else ()
    )
    for alpha in sorted(candidates, key=abs):
        ranks = {s: round(alpha / s) for s in scalings}
        fits = all(largest[s] <= ranks[s] <= most and alpha / ranks[s] == s for s in scalings)
        if fits and alpha == float(np.float32(alpha)):
            return alpha, [with_rank(m, ranks[m.scaling]) for m in modules]
    found = ", ".join(map(str, sorted(scalings)[:4]))
    message = f"GGUF has one alpha for all modules, and no ranks give them these scalings: {found}"
    raise AdapterError(message, code="not-expressible")


def from_gguf(adapter: Adapter, base: Mapping[str, Any] | None) -> list[LoraModule]:
    """Return the modules of an adapter of llama.cpp with the paths of Transformers as names.

    Args:
        adapter: The adapter.
        base: ``config.json`` of the base model, or None.

    Raises:
        AdapterError: ``needs-base``; ``not-expressible``; ``bad-config``; ``base-mismatch`` for a base model of another
            architecture.
    """
    if base is None:
        message = "the modules of GGUF's tensors depend on the architecture: give the base model with --base"
        raise AdapterError(message, code="needs-base")
    arch, permuted, layers = _architecture(base)
    found = key_values(adapter).get("general.architecture", ("", None))[1]
    if found != arch:
        raise AdapterError(mismatch("architecture", arch, found), code="base-mismatch")
    paths = _paths(arch, layers)
    modules = []
    for module in adapter.modules:
        path = paths.get(module.name.removesuffix(".weight"))
        if path is None:
            message = f"no module of the architecture {arch} has this name"
            raise AdapterError(message, code="not-expressible", where=module.name)
        heads = _heads(base, path) if permuted else None
        lora_B = module.lora_B if heads is None else _permute(module, heads, inverse=True)
        modules.append(replace(module, name=path, lora_B=lora_B))
    return modules


def _architecture(base: Mapping[str, Any]) -> tuple[str, bool, int]:
    model_type, layers = base.get("model_type"), base.get("num_hidden_layers")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        message = mismatch("model_type", f"one of {', '.join(_ARCHITECTURES)}", model_type)
        raise AdapterError(message, code="not-expressible", where="config.json")
    if type(layers) is not int or not 1 <= layers <= _MAX_LAYERS:
        message = mismatch("num_hidden_layers", f"1 to {_MAX_LAYERS}", layers)
        raise AdapterError(message, code="bad-config", where="config.json")
    return (*_ARCHITECTURES[model_type], layers)


def _name_map(arch: str, layers: int) -> Any:
    try:
        import gguf
    except ImportError as e:
        message = "converting names from or to llama.cpp needs gguf: pip install 'nola-codec[gguf]'"
        raise AdapterError(message, code="missing-package") from e
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    return gguf.get_tensor_name_map(number, layers)


def _paths(arch: str, layers: int) -> dict[str, str]:
    """Return the paths of modules in Transformers' Llama and in similar models, by the name of llama.cpp's tensor."""
    table = _name_map(arch, layers)
    leaves = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.qkv_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj")  # fmt: skip
    modules = [f"model.layers.{layer}.{leaf}" for layer in range(layers) for leaf in leaves]
    found = {}
    for path in (*modules, "model.embed_tokens", "lm_head"):
        name = table.get_name(path)
        if name is not None:
            found[name] = path
    return found


def _heads(base: Mapping[str, Any], path: str) -> int | None:
    """Return the number of heads of a query or key projection, whose rows are permuted; None for any other module."""
    leaf = path.rpartition(".")[2]
    option = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(leaf)
    if option is None:
        return None
    heads = base.get(option, base.get("num_attention_heads"))
    if type(heads) is not int or heads < 1:
        raise AdapterError(mismatch(option, "a positive integer", heads), code="bad-config", where="config.json")
    return heads


def _permute(module: LoraModule, heads: int, *, inverse: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows, rank = module.lora_B.shape
    if rows % (2 * heads):
        message = mismatch("rows", f"a multiple of 2 x {heads} heads", rows)
        raise AdapterError(message, code="base-mismatch", where=module.name)
    halves = (heads, rows // heads // 2, 2, rank) if inverse else (heads, 2, rows // heads // 2, rank)
    return np.ascontiguousarray(module.lora_B.reshape(halves).swapaxes(1, 2).reshape(rows, rank))
