"""A stored tensor is found by each of the names that tools give it, and never by a guess."""

from __future__ import annotations

import pytest

from nola_codec.merger.stored_names import StoredNames

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SELF_Q = "blocks.3.self_attn.q"


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (f"{TO_Q}.weight", f"{TO_Q}.weight"),
        (f"{TO_Q}.weight", f"unet.{TO_Q}.weight"),
        (f"{TO_Q}.weight", "lora_unet_" + TO_Q.replace(".", "_") + ".weight"),
        (f"{TO_Q}.weight", "lycoris_" + TO_Q.replace(".", "_") + ".weight"),
        (f"unet.{TO_Q}.weight", "lora_unet_" + TO_Q.replace(".", "_") + ".weight"),
        (f"{TO_Q}.weight", "unet." + TO_Q.replace(".", "_") + ".weight"),  # flattened in part
        (f"{TO_Q}.weight", "lora_unet_down_blocks.0.attentions.0.transformer_blocks_0_attn1.to_q.weight"),
        (f"{SELF_Q}.weight", f"diffusion_model.{SELF_Q}.weight"),
        (f"{SELF_Q}.weight", f"model.diffusion_model.{SELF_Q}.weight"),
        (f"model.diffusion_model.{SELF_Q}.weight", f"{SELF_Q}.weight"),
        (f"model.diffusion_model.{SELF_Q}.weight", f"diffusion_model.{SELF_Q}.weight"),
        (f"model.diffusion_model.{SELF_Q}.weight", "lora_unet_blocks_3_self_attn_q.weight"),
        (f"model.diffusion_model.{SELF_Q}.weight", f"transformer.{SELF_Q}.weight"),
        (f"module.{SELF_Q}.weight", f"diffusion_model.{SELF_Q}.weight"),
        (f"net.{SELF_Q}.weight", f"transformer.{SELF_Q}.weight"),
        (f"_orig_mod.{SELF_Q}.weight", f"model.{SELF_Q}.weight"),
        (f"some.wrapper.{SELF_Q}.weight", f"diffusion_model.{SELF_Q}.weight"),
        ("blocks.3.modulation", "diffusion_model.blocks.3.modulation"),
        ("pos_embed", "diffusion_model.pos_embed"),
        ("model.layers.0.q_proj.weight", "layers.0.q_proj.weight"),
        ("h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight",
         "lora_te_text_model_final_layer_norm.weight"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
         "text_encoder.text_model.final_layer_norm.weight"),
        ("text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight",
         "lora_te3_encoder_final_layer_norm.weight"),
    ],
)  # fmt: skip
def test_found_by_its_other_names(stored: str, name: str) -> None:
    """Case 09 and others: the one weight is found, beside weights that differ in the number of a block."""
    others = [stored.replace("0", "1").replace("3", "4") + "x", "time_embed.0.weight"]
    assert StoredNames([*others, stored]).find(name) == stored


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (["a.blocks.0.q.weight", "b.blocks.0.q.weight"], "blocks.0.q.weight"),
        (["transformer.blocks.0.q.weight", "transformer_2.blocks.0.q.weight"], "blocks.0.q.weight"),
        (["blocks.0.a_b.weight", "blocks.0.a.b.weight"], "lora_unet_blocks_0_a_b.weight"),
        (["encoder.layers.0.q.weight", "decoder.layers.0.q.weight"], "model.layers.0.q.weight"),
    ],
)
def test_two_candidates_are_no_answer(stored: list[str], name: str) -> None:
    names = StoredNames(stored)
    assert names.find(name) is None
    assert names.find_all([name]) == sorted(stored)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("transformer.blocks.0.q.weight", "transformer_2.blocks.0.q.weight"),
        ("transformer_2.blocks.0.q.weight", "transformer.blocks.0.q.weight"),
        ("transformer_2.blocks.0.q.weight", "lora_unet_blocks_0_q.weight"),
        ("first_stage_model.mid.attn.q.weight", "unet.mid.attn.q.weight"),
        ("model_ema.mid.attn.q.weight", "unet.mid.attn.q.weight"),
        ("text_encoders.clip_g.transformer.text_model.fc1.weight", "lora_te1_text_model_fc1.weight"),
        ("unet.conv_in.weight", "vae.conv_in.weight"),
        ("weight", "q.weight"),
        ("blocks.0.q.weight", "blocks.0.q.bias"),
        ("blocks.10.q.weight", "lora_unet_blocks_1_q.weight"),
    ],
)
def test_another_component_or_tensor_is_not_meant(stored: str, name: str) -> None:
    """Case 32: a name that tells one component never means a tensor of another."""
    assert StoredNames([stored]).find_all([name]) == []


def test_the_nearer_way_decides() -> None:
    names = StoredNames(["blocks.0.q.weight", "model.blocks.0.q.weight", "ema.copy.blocks.0.q.weight"])
    assert names.find("blocks.0.q.weight") == "blocks.0.q.weight"
    assert names.find("lora_unet_blocks_0_q.weight") is None  # two lack a known prefix or have one
    assert StoredNames(["model.blocks.0.q.weight", "ema.blocks.0.q.weight"]).find("blocks.0.q.weight") == (
        "model.blocks.0.q.weight"
    )


def test_a_bare_parameter_and_a_weight() -> None:
    names = StoredNames(["a.norm.scale", "a.proj.weight"])
    assert names.find("x.a.norm.scale.weight", "x.a.norm.scale") == "a.norm.scale"
    assert names.find("x.a.proj.weight", "x.a.proj") == "a.proj.weight"


def test_a_name_of_prefixes_alone_ends() -> None:
    assert StoredNames(["model." * 1000 + "a.weight"]).find("a.weight") is None


def test_one_leading_part_is_no_better_than_two() -> None:
    """A text model's layers must not go to a vision model only because its name is one part shorter."""
    names = StoredNames(["vision_model.layers.0.q.weight", "language_model.model.layers.0.q.weight"])
    assert names.find("model.layers.0.q.weight") is None
    assert len(names.find_all(["model.layers.0.q.weight"])) == 2
