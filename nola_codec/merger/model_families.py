"""Recognise the family of a model from the names of its modules, for messages.

The names may be dotted or flattened, with or without outer prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

_MOST_READ = 20_000  # names

_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SDXL in the original layout", (
        r"label_emb_", r"(?:input|output)_blocks_\d+_1_transformer_blocks_[1-9]",
        r"middle_block_1_transformer_blocks_[1-9]")),
    ("Stable Diffusion in the original layout", (r"(?:input|output)_blocks_\d+_", r"middle_block_\d+_")),
    ("SDXL as diffusers names it", (
        r"(?:down_blocks_\d+|up_blocks_\d+|mid_block)_attentions_\d+_transformer_blocks_[1-9]",
        r"add_embedding_linear")),
    ("Stable Diffusion as diffusers names it", (r"(?:down|up)_blocks_\d+_(?:attentions|resnets)_", r"mid_block_")),
    ("SD3 in the original layout", (r"joint_blocks_\d+_(?:x|context)_block",)),
    ("HunyuanVideo in the original layout", (
        r"double_blocks_\d+_(?:img|txt)_(?:mlp_fc|mod_linear)", r"single_blocks_\d+_modulation_linear",
        r"individual_token_refiner_blocks_\d+_self_attn_qkv")),
    ("Flux in BFL's layout", (
        r"double_blocks_\d+_(?:img|txt)_(?:attn|mlp|mod)", r"single_blocks_\d+_(?:linear|modulation|norm)")),
    ("HunyuanVideo as diffusers names it", (r"context_embedder_token_refiner",)),
    ("Qwen-Image", (r"transformer_blocks_\d+_(?:img|txt)_(?:mod|mlp)",)),
    ("Flux as diffusers names it", (r"single_transformer_blocks_\d+_",)),
    ("SD3, Flux or Qwen-Image as diffusers names them", (r"transformer_blocks_\d+_attn_(?:to|add|norm)_",)),
    ("LTX-Video or PixArt as diffusers names them", (r"transformer_blocks_\d+_attn[12]_",)),
    ("Wan in the original layout", (r"blocks_\d+_(?:self|cross)_attn_(?:[qkvo]|norm_[qk]|[kv]_img)(?:_|$)",)),
    ("Wan as diffusers names it", (r"blocks_\d+_attn[12]_", r"blocks_\d+_ffn_net_")),
    ("CLIP's text encoder", (r"text_model_(?:encoder_layers_\d+|embeddings)_",)),
    ("OpenCLIP", (r"transformer_resblocks_\d+",)),
    ("T5", (r"(?:encoder|decoder)_block_\d+_layer_\d+",)),
    ("BERT", (r"layer_\d+_attention_(?:self|output)_", r"layer_\d+_(?:intermediate|output)_dense")),
    ("DistilBERT", (r"layer_\d+_attention_[qkv]_lin",)),
    ("GPT-NeoX", (r"layers_\d+_attention_(?:query_key_value|dense)", r"gpt_neox_")),
    ("Falcon or BLOOM", (r"h_\d+_self_attention_(?:query_key_value|dense)",)),
    ("GPT-J", (r"h_\d+_attn_[qkv]_proj",)),
    ("GPT-2", (r"h_\d+_attn_c_(?:attn|proj)", r"h_\d+_mlp_c_(?:fc|proj)")),
    ("Llama or Mistral in the original layout", (r"layers_\d+_(?:attention_w[qkvo]|feed_forward_w[123])",)),
    ("OPT, Whisper or BART", (r"layers_\d+_(?:encoder_attn_|self_attn_out_proj|fc[12](?:_|$))",)),
    ("Llama or a relative of it", (
        r"layers_\d+_self_attn_(?:[qkvo]|qkv)_proj", r"layers_\d+_mlp_(?:gate|up|down|gate_up)_proj")),
)  # fmt: skip
"""The name of each family, and patterns for a flattened name. The first family that has a name decides."""


def family_of(names: Iterable[str]) -> str:
    """Return the name of the family that names of modules belong to; an empty string if it is not known."""
    flattened = [name.replace(".", "_") for name in islice(names, _MOST_READ)]
    for family, patterns in _FAMILIES:
        compiled = re.compile("|".join(patterns))
        if any(compiled.search(name) for name in flattened):
            return family
    return ""
