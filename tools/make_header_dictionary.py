"""Writes the preset dictionary of header compression: what headers of common adapters have in common.

    python tools/make_header_dictionary.py nola_codec/container/header-dictionary.bin

The dictionary is part of the format. It changes only with the format's version, so this program refuses to overwrite.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from nola_codec.container import canonical

# Keys and default values that PEFT writes (0.6 to 0.21), and what trainers commonly set.
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "-Instruct", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 16, "lora_bias": False, "lora_dropout": 0.0,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 16,
    "rank_pattern": {}, "revision": None,
    "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None,
    "use_dora": False, "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip
OTHER_WORDS = [
    "runwayml/stable-diffusion-v1-5", "Qwen/Qwen", "google/gemma-", "mistralai/Mistral-7B-Instruct-v0.", "SEQ_CLS",
    "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "TOKEN_CLS", "lm_head", "embed_tokens", "score", "classifier",
    "unet.down_blocks.#.attentions.#.transformer_blocks.#.attn#.to_", "text_encoder.text_model.encoder.layers.#.",
    "base_model.model.bert.encoder.layer.#.attention.self.query", "base_model.model.roberta.encoder.layer.#.",
    "base_model.model.transformer.h.#.attn.c_attn", "base_model.model.transformer.h.#.attn.attention.q_proj",
    "attention.output.dense", "intermediate.dense", "key", "value", "query", "query_key_value", "dense_h_to_#h",
    "dense_#h_to_h", "c_proj", "c_fc", "out_proj", "fc#", "lora_magnitude_vector", "lora_B.bias",
    "base_model.model.score.weight",
]  # fmt: skip
MODELS = [
    "FacebookAI/roberta-base", "google-bert/bert-base-uncased", "openai-community/gpt2", "EleutherAI/gpt-neo-125m",
    "tiiuae/falcon-7b", "bigscience/bloom-", "microsoft/phi-", "microsoft/Phi-3-mini-4k-instruct",
    "sentence-transformers/all-MiniLM-L6-v2", "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0", "black-forest-labs/FLUX.1-dev", "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "deepseek-ai/DeepSeek-R1-Distill-", "unsloth/", "-bnb-4bit", "google/gemma-2-", "google/gemma-3-",
    "mistralai/Mistral-7B-Instruct-v0.3", "Qwen/Qwen2.5-", "Qwen/Qwen3-", "HuggingFaceTB/SmolLM2-",
    "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-3.1-8B-Instruct",
]  # fmt: skip
MODULES = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj",
           "self_attn.q_proj", "self_attn.v_proj"]  # fmt: skip


# Keys and default values of PEFT's methods beside LoRA (0.21), and the names of their tensors.
METHODS: dict[str, Any] = {
    "d_initial": 0.1, "generator_seed": None, "init_logits_std": 0.1, "init_theta_d_bound": 0.02,
    "init_v_bound": 0.02, "init_vector_bank_bound": 0.02, "init_weights": True, "n_frequency": 1000,
    "n_frequency_pattern": {}, "num_vectors": 256, "peft_type": "RANDLORA", "proj_seed": 42,
    "projection_prng_key": 0, "projection_seed": 42, "proportional_parameters": False, "pvera_dropout": 0.0,
    "random_loc_seed": 777, "randlora_alpha": 640, "randlora_dropout": 0.0, "sample_at_inference": False,
    "save_indices": False, "save_only_topk_weights": False, "save_projection": True, "scaling": 150.0, "sparse": False,
    "theta_d_length": 256, "tinylora_dropout": 0.0, "topk": 2, "u": 64, "unilora_dropout": 0.0, "use_idwt": True,
    "vblora_dropout": 0.0, "vector_length": 256, "vera_dropout": 0.0, "very_sparse": False, "wavelet_family": "db1",
    "weight_tying": 0.0,
}  # fmt: skip
METHOD_WORDS = [
    "UNILORA", "TINYLORA", "VBLORA", "FOURIERFT", "WAVEFT", "PVERA", "VERA", "LOHA", "LOKR", "hada_w#_a", "lokr_w#",
    "base_model.unilora_theta_d", "base_model.model.model.layers.#.self_attn.q_proj.unilora_indices_A",
    ".unilora_scales_B", "base_model.tinylora_v.#", ".tinylora_A", ".tinylora_B", ".tinylora_P",
    "base_model.vblora_vector_bank", ".vblora_logits_A_topk_indices", ".vblora_logits_B_topk_weights",
    ".fourierft_spectrum", ".waveft_spectrum", ".vera_lambda_b", ".vera_lambda_d", "base_model.vera_A",
    ".pvera_lambda_b", ".pvera_lambda_d", "base_model.pvera_A", "base_model.pvera_B", ".randlora_lambda",
    ".randlora_gamma", "base_model.randlora_A", "base_model_class", "LlamaForCausalLM", "parent_library",
    "transformers.models.llama.modeling_llama",
]  # fmt: skip
# What mlx-lm writes into its configuration.
MLX: dict[str, Any] = {
    "adapter_path": "adapters", "batch_size": 4, "config": None, "data": "data/", "fine_tune_type": "lora",
    "grad_accumulation_steps": 1, "grad_checkpoint": False, "iters": 1000, "learning_rate": 1e-05,
    "lora_parameters": {"alpha": 16, "dropout": 0.0, "rank": 8, "scale": 20.0}, "lr_schedule": None,
    "mask_prompt": False, "max_seq_length": 2048, "model": "mlx-community/", "num_layers": 16, "optimizer": "adam",
    "optimizer_config": {"adam": {}, "adamw": {}}, "project_name": None, "report_to": None,
    "resume_adapter_file": None, "save_every": 100, "seed": 0, "steps_per_eval": 200, "steps_per_report": 10,
    "test": False, "test_batches": 500, "train": True, "val_batches": 25,
}  # fmt: skip
# What the scripts of kohya write into the metadata of a file: "None", "True" and numbers, all as text.
KOHYA_KEYS = [
    "ss_adaptive_noise_scale", "ss_base_model_version", "ss_batch_size_per_device", "ss_bucket_info",
    "ss_bucket_no_upscale", "ss_cache_latents", "ss_caption_dropout_every_n_epochs", "ss_caption_dropout_rate",
    "ss_caption_tag_dropout_rate", "ss_clip_skip", "ss_color_aug", "ss_dataset_dirs", "ss_datasets",
    "ss_enable_bucket", "ss_epoch", "ss_face_crop_aug_range", "ss_flip_aug", "ss_full_fp16",
    "ss_gradient_accumulation_steps", "ss_gradient_checkpointing", "ss_ip_noise_gamma", "ss_keep_tokens",
    "ss_learning_rate", "ss_lowram", "ss_lr_scheduler", "ss_lr_warmup_steps", "ss_max_bucket_reso",
    "ss_max_grad_norm", "ss_max_token_length", "ss_max_train_steps", "ss_min_bucket_reso", "ss_min_snr_gamma",
    "ss_mixed_precision", "ss_multires_noise_discount", "ss_multires_noise_iterations", "ss_network_alpha",
    "ss_network_args", "ss_network_dim", "ss_network_dropout", "ss_network_module", "ss_new_sd_model_hash",
    "ss_new_vae_hash", "ss_noise_offset", "ss_num_batches_per_epoch", "ss_num_epochs", "ss_num_reg_images",
    "ss_num_train_images", "ss_optimizer", "ss_output_name", "ss_prior_loss_weight", "ss_random_crop",
    "ss_reg_dataset_dirs", "ss_resolution", "ss_scale_weight_norms", "ss_sd_model_hash", "ss_sd_model_name",
    "ss_sd_scripts_commit_hash", "ss_seed", "ss_session_id", "ss_shuffle_caption", "ss_steps", "ss_tag_frequency",
    "ss_text_encoder_lr", "ss_total_batch_size", "ss_training_comment", "ss_training_finished_at",
    "ss_training_started_at", "ss_unet_lr", "ss_v2", "ss_vae_hash", "ss_vae_name", "ss_zero_terminal_snr",
    "sshs_legacy_hash", "sshs_model_hash",
]  # fmt: skip
KOHYA_VALUES = {
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "modelspec.date": "2024-",
    "modelspec.encoder_layer": "1", "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.prediction_type": "epsilon", "modelspec.resolution": "1024x1024", "modelspec.sai_model_spec": "1.0.0",
    "modelspec.title": "", "ss_base_model_version": "sd_v1.5", "ss_lr_scheduler": "cosine_with_restarts",
    "ss_mixed_precision": "fp16", "ss_network_module": "networks.lora",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit", "ss_cache_latents": "True",
}  # fmt: skip
IMAGE_NAMES = [
    *(f"lora_unet_{block}_attentions_#_transformer_blocks_#_attn#_to_{part}"
      for block in ("down_blocks_#", "mid_block", "up_blocks_#") for part in ("k", "out_#", "q", "v")),
    "lora_unet_down_blocks_#_attentions_#_transformer_blocks_#_ff_net_#_proj",
    "lora_unet_down_blocks_#_resnets_#_conv#",
    "lora_te#_text_model_encoder_layers_#_self_attn_out_proj", "lora_te_text_model_encoder_layers_#_mlp_fc#",
    "lora_unet_double_blocks_#_img_attn_qkv", "lora_unet_double_blocks_#_txt_mlp_#",
    "lora_unet_single_blocks_#_linear#", "lora_unet_single_blocks_#_modulation_lin",
    "transformer.single_transformer_blocks.#.attn.to_", "transformer.transformer_blocks.#.attn.add_k_proj",
]  # fmt: skip
IMAGE_KINDS = [
    [0, f"{block}.attentions.#.transformer_blocks.#.attn#.processor.to_{part}_lora", 0, 1.0, 0, 0, 1, 0, None,
     [width, rank], [rank, into]]
    for rank, (block, width) in zip((8, 4, 4, 4), (("unet.down_blocks.#", 640), ("down_blocks.#", 320),
                                                   ("mid_block", 1280), ("up_blocks.#", 1280)), strict=True)
    for part, into in (("k", width), ("out", width), ("q", width), ("v", width), ("k", 768), ("v", 768))
]  # fmt: skip


def dictionary() -> bytes:
    """Later bytes are the cheaper to refer to, so what every header has comes last, in the order of a header."""
    header = {
        "amplitude_slope": 2,
        "blocks": [210],
        "config": CONFIG,
        "dialect": "peft",
        "generator": 1,
        "kinds": [
            [0, f"base_model.model.model.layers.#.{module}", 0, scaling, 0, dtype, 1, 0, None, [4096, 16], [16, 4096]]
            for scaling, dtype in ((1.0, 2), (1.0, 0), (2.0, 2), (2.0, 0))
            for module in MODULES
        ],
        "metadata": {"format": "pt"},
        "numbers": [0] * 7 + [1] * 203,
        "quantizers": [
            [3, [55, [34, 33, 33], [20, 33, 32]], [1122, 975, 506, 6]],
            *([2, number, None] for number in range(13)),
        ],
        "records": [number for kinds in (2, 4, 7) for number in [*range(kinds)] * 4],
        "rungs": [[b"", {"effective_error": 0.02, "nmse": 0.5}]],
        "sections": [[3, 0, 0], [2, 0, 0]],
        "seed": 0,
        "streams": None,
        "writer": "nola-codec 0.2.0",
    }
    images = canonical.pack(dict.fromkeys(KOHYA_KEYS, "None")) + canonical.pack(KOHYA_VALUES)
    images += canonical.pack(IMAGE_NAMES) + canonical.pack(IMAGE_KINDS)
    methods = canonical.pack(METHODS) + canonical.pack(METHOD_WORDS)
    return images + methods + canonical.pack(MLX) + canonical.pack(OTHER_WORDS + MODELS) + canonical.pack(header)


def main() -> None:
    """Write the dictionary, and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, metavar="FILE", help="the file to write; it must not exist yet")
    path = parser.parse_args().path
    with path.open("xb") as file:
        file.write(dictionary())
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
