"""Convert between the names of modules in dialects and the path that they stand for.

A path is the dotted path of the module in its model. It begins with the name of the model's component if the adapter
tells components apart: ``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``,
``model.layers.3.mlp.up_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nola_codec.errors import AdapterError

COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "controlnet",
)  # fmt: skip

_KOHYA_PREFIXES: Mapping[str, str] = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3", "lora_transformer_": "transformer", "lora_prior_": "prior",
    "lora_unet__": "unet", "lora_prior_unet_": "prior", "lora_prior_te_": "text_encoder", "lycoris_": "",
}  # fmt: skip
"""The component that each prefix means; a name is read with the longest prefix, and written with the first one.

LyCORIS gives the prefix ``lycoris_`` to the modules of any model. Wan's Fun models have two underscores.
"""

# Names of modules with an underscore; in kohya's flattened names, underscores also stand for dots.
_COMPOUND = frozenset({
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "to_q", "to_k",
    "to_v", "to_out", "to_add_out", "to_qkv_mlp_proj", "add_q_proj", "add_k_proj", "add_v_proj", "proj_in",
    "proj_out", "proj_mlp", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "time_embedding",
    "add_embedding", "linear_1", "linear_2", "linear_in", "linear_out", "text_model", "self_attn", "q_proj", "k_proj",
    "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "token_embedding",
    "position_embedding", "text_projection", "ff_context", "norm_out", "norm1_context", "x_embedder",
    "context_embedder", "time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder", "wi_0", "wi_1",
    "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "img_in",
    "txt_in", "time_in", "vector_in", "guidance_in", "final_layer", "in_layer", "out_layer", "input_blocks",
    "output_blocks", "middle_block", "emb_layers", "in_layers", "out_layers", "skip_connection", "label_emb",
    "time_embed", "joint_blocks", "context_block", "x_block",
})  # fmt: skip
_SINGLE = frozenset({
    "attentions", "resnets", "downsamplers", "upsamplers", "conv", "conv1", "conv2", "attn", "attn1", "attn2", "ff",
    "net", "proj", "layers", "encoder", "decoder", "mlp", "fc1", "fc2", "qkv", "linear", "linear1", "linear2", "lin",
    "modulation", "block", "layer", "wi", "wo", "q", "k", "v", "o", "model", "norm", "norm1", "norm2", "norm3", "op",
    "SelfAttention", "DenseReluDense", "EncDecAttention", "embeddings", "shared", "motion_modules",
})  # fmt: skip


# What follows `transformer.` in the language models of Transformers and of their authors, and in no model of Diffusers:
# GPT-2, GPT-J, CodeGen, BLOOM, Falcon, XLNet, DistilBERT, XLM, ChatGLM, MPT, DBRX and OpenELM.
_LANGUAGE_MODEL = re.compile(
    r"transformer\.(?:h\.\d|layer\.\d|wte|wpe|tokens_embed|positions_embed|word_embeddings?\b|ln_f|norm_f|embeddings?\b"
    r"|position_embeddings|token_embeddings|output_layer|encoder\.layers|attentions\.\d+\.[qkv_out]+lin|ffns\.\d"
    r"|blocks\.\d+\.(?:attn\.(?:Wqkv|out_proj)|ffn\.(?:up|down|gate)_proj|ffn\.(?:experts|router)|norm_attn_norm)"
    r"|layers\.\d+\.(?:attn\.(?:qkv|out)_proj|ffn\.proj_\d|self_attn\.|mlp\.))"
)


def kohya_path(name: str) -> str:
    """Return the path of a kohya name.

    Raises:
        AdapterError: ``not-expressible``: the name does not tell with certainty where the dots were.
    """
    component, rest = kohya_split(name)
    if rest != name:
        path = rest if "." in rest else _unflatten(rest, name)
        return f"{component}.{path}" if component else path
    if "." in name:
        return name
    message = f"the name has none of kohya's prefixes ({', '.join(_KOHYA_PREFIXES)})"
    raise AdapterError(message, code="not-expressible", where=name)


def kohya_split(name: str) -> tuple[str, str]:
    """Return the component and the rest of a kohya name; the component is ``""`` if the name does not tell one.

    The rest is flattened. It has dots if the name has one after the prefix, as in ``lora_te1.text_model.encoder``.
    """
    if "." in name:
        first, _, rest = name.partition(".")
        component = _KOHYA_PREFIXES.get(first + "_")
        return (component, rest) if component else ("", name)
    prefix = max((p for p in _KOHYA_PREFIXES if name.startswith(p)), key=len, default=None)
    if prefix is None:
        return "", name
    return _KOHYA_PREFIXES[prefix], name.removeprefix(prefix)


def old_diffusers_path(name: str) -> str:
    """Return the path of a name that diffusers wrote before version 0.22, with the component."""
    path = attention_path(name)
    component = path.partition(".")[0]
    if component in COMPONENTS:
        return path
    return f"unet.{path}" if component in ("down_blocks", "up_blocks", "mid_block") else path


def attention_path(name: str) -> str:
    """Return the path of a name with one of Diffusers' endings: ``_lora``, ``.lora``, ``.lora_linear_layer``.

    The endings are those of the tables in Diffusers' `state_dict_utils`. Processors of XLabs keep their names.
    """
    path = name.removesuffix(".lora_linear_layer").removesuffix(".lora")
    match = re.fullmatch(r"(.+?)(?:\.processor)?\.(?:to_(q|k|v|out)|(add_[qkv]_proj|to_add_out))_lora", path)
    if match is not None:
        attention, projection, added = match.groups()
        if attention.endswith(".self_attn"):  # a text encoder of Transformers
            return f"{attention}.{added or f'{projection}_proj'}"
        return f"{attention}.{added or ('to_out.0' if projection == 'out' else f'to_{projection}')}"
    if ".processor." in path and re.search(r"_lora\d?$", path):
        return path  # XLabs; the table of Flux knows what such a processor fuses
    return path.replace(".processor.", ".")


def old_diffusers_name(path: str) -> str:
    """Return the name that diffusers before version 0.22 gave a path.

    Raises:
        AdapterError: ``not-expressible`` for a module that is not an attention projection.
    """
    if path.startswith("text_encoder") and path.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "out_proj"):
        return path + ".lora_linear_layer"
    match = re.fullmatch(r"((?:unet|transformer|prior)\..+)\.to_(q|k|v|out)(\.0)?", path)
    if match is None or (match[2] == "out") != bool(match[3]):
        message = "diffusers before 0.22 has only attention projections"
        raise AdapterError(message, code="not-expressible", where=path)
    return f"{match[1]}.processor.to_{match[2]}_lora"


def component_of(path: str) -> str:
    """Return the component that a path begins with, or an empty string.

    Many language models call their inner model ``transformer`` too, as GPT-2 does (``transformer.h.0``). They are known
    by what follows, and have no component.
    """
    first = path.partition(".")[0]
    return first if first in COMPONENTS and not _LANGUAGE_MODEL.match(path) else ""


def _unflatten(text: str, name: str) -> str:
    tokens = text.split("_")
    parts = []
    position = 0
    while position < len(tokens):
        for length in (4, 3, 2):
            compound = "_".join(tokens[position : position + length])
            if len(tokens) - position >= length and compound in _COMPOUND:
                parts.append(compound)
                position += length
                break
        else:
            token = tokens[position]
            if not token.isdigit() and token not in _SINGLE:
                message = f"the name does not tell for certain where the dots were, at {token!r}"
                raise AdapterError(message, code="not-expressible", where=name)
            parts.append(token)
            position += 1
    return ".".join(parts)
