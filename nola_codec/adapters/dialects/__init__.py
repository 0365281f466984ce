"""The dialects, and the rules that several of them share.

    peft.py                     PEFT. LoRA is here, and these serve it: `peft_base.py`, `peft_config.py`,
                                `peft_patterns.py`, `peft_ranks.py`, `peft_fitting.py`, `peft_components.py`,
                                `peft_experts.py`, `peft_attention.py`, `peft_tying.py`,
                                and for its older forms `peft_rewrites.py`, `peft_adalora.py`, `merged_linear.py`.
                                `peft_scales.py` finds
                                scalings without a configuration. `peft_methods.py` says
                                what is read of PEFT
    peft_lycoris.py             PEFT's own LoHa and LoKr
    peft_vectors.py             what the next two share
    peft_diagonals.py           VeRA, PVeRA and RandLoRA, with `diagonals.py`, `vera.py`, `pvera.py`, `randlora.py`,
                                `peft_draws.py`
    peft_seeded.py              Uni-LoRA, TinyLoRA, VB-LoRA, FourierFT and WaveFT, with `seeded.py` (their contract),
                                `unilora.py`, `tinylora.py`, `vblora.py`, `spectra.py`, `fourierft.py`, `waveft.py`,
                                `wavelets.py`, `torch_draws.py`, `fixed_functions.py`
    kohya.py, lycoris.py, lycoris_keys.py, lycoris_parts.py   kohya's sd-scripts, and LyCORIS
    diffusers.py, diffusers_keys.py, adapter_metadata.py      diffusers, and the JSON of its metadata
    mlx.py, mlx_config.py, mlx_names.py, mlx_experts.py       MLX, its configuration, what its models call their
                                                              layers, its experts; `embedding_names.py` tells
                                                              embeddings
    loralib.py, mistral.py, torchtune.py, numbered.py         one tool each (`numbered.py`: two);
                                `transformers_names.py` renames modules of Llama-like models
    gguf.py, gguf_names.py      llama.cpp
    parameters.py               networks that were trained as coefficients
    weight_changes.py           `encode_delta`: the change of a whole model

Shared: `pairs.py` (pairs of factors), `pair_dialect.py` (a dialect that is nothing else), `paths.py` (names of
modules), `module_rules.py`, `alphas.py`, `comfyui_keys.py` (tensors beside factors), `key_hints.py` (whose keys these
are, for messages), `refused_keys.py` (what is no LoRA) and `dialect_names.py`.
"""
