"""Case 11 and its kind: the original names of transformers for images and video, and those of Diffusers.

The names and deltas that a conversion makes are those of diffusers' own converters: of its converter of adapters, where
it has one, and else of its converter of checkpoints, which is given W and W + delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_lora import (
    convert_file,
    file_deltas,
    fused_change,
    kohya_state,
    load,
    peft_state,
    probe,
    require_equal,
    state_deltas,
    without_component,
)
from safetensors.torch import save_file

from nola_codec.adapters import read
from nola_codec.errors import AdapterError

Shapes = dict[str, tuple[int, ...]]
# diffusers' converters of Flux and HunyuanVideo know no other size.
WIDE = 3072


def flux_names(h: int, blocks: int = 1, *, outside: bool = True) -> Shapes:
    """Return the linear modules of BFL's Flux."""
    found: Shapes = {}
    for n in range(blocks):
        for stream in ("img", "txt"):
            before = f"double_blocks.{n}.{stream}"
            found |= {f"{before}_attn.qkv": (3 * h, h), f"{before}_attn.proj": (h, h), f"{before}_mod.lin": (6 * h, h)}
            found |= {f"{before}_mlp.0": (4 * h, h), f"{before}_mlp.2": (h, 4 * h)}
        found |= {f"single_blocks.{n}.linear1": (7 * h, h), f"single_blocks.{n}.linear2": (h, 5 * h)}
        found[f"single_blocks.{n}.modulation.lin"] = (3 * h, h)
    if outside:
        found |= {"img_in": (h, 4), "txt_in": (h, 6), "final_layer.linear": (4, h)}
        found["final_layer.adaLN_modulation.1"] = (2 * h, h)
        for name, inputs in (("time_in", 256), ("vector_in", 8), ("guidance_in", 256)):
            found |= {f"{name}.in_layer": (h, inputs), f"{name}.out_layer": (h, h)}
    return found


def hunyuan_names(h: int) -> Shapes:
    """Return the linear modules of HunyuanVideo, as its own code and musubi-tuner name them."""
    found: Shapes = {}
    for stream in ("img", "txt"):
        before = f"double_blocks.0.{stream}"
        found |= {f"{before}_attn_qkv": (3 * h, h), f"{before}_attn_proj": (h, h), f"{before}_mod.linear": (6 * h, h)}
        found |= {f"{before}_mlp.fc1": (4 * h, h), f"{before}_mlp.fc2": (h, 4 * h)}
    found |= {"single_blocks.0.linear1": (7 * h, h), "single_blocks.0.linear2": (h, 5 * h)}
    found |= {"single_blocks.0.modulation.linear": (3 * h, h), "final_layer.linear": (16, h)}
    refiner = "txt_in.individual_token_refiner.blocks.0"
    found |= {f"{refiner}.self_attn_qkv": (3 * h, h), f"{refiner}.self_attn_proj": (h, h)}
    found |= {f"{refiner}.mlp.fc1": (4 * h, h), f"{refiner}.mlp.fc2": (h, 4 * h)}
    found |= {f"{refiner}.adaLN_modulation.1": (2 * h, h), "final_layer.adaLN_modulation.1": (2 * h, h)}
    found |= {"txt_in.input_embedder": (h, 8), "txt_in.c_embedder.linear_1": (h, 8)}
    found |= {"txt_in.c_embedder.linear_2": (h, h), "txt_in.t_embedder.mlp.0": (h, 256)}
    found |= {"txt_in.t_embedder.mlp.2": (h, h), "vector_in.in_layer": (h, 8), "vector_in.out_layer": (h, h)}
    for name in ("time_in", "guidance_in"):
        found |= {f"{name}.mlp.0": (h, 256), f"{name}.mlp.2": (h, h)}
    return found


def wan_names(h: int, *, with_image: bool = False) -> Shapes:
    """Return the linear modules of Wan."""
    found: Shapes = {}
    for attention in ("self_attn", "cross_attn"):
        found |= {f"blocks.0.{attention}.{leaf}": (h, h) for leaf in "qkvo"}
    found |= {"blocks.0.ffn.0": (2 * h, h), "blocks.0.ffn.2": (h, 2 * h), "head.head": (16, h)}
    found |= {"text_embedding.0": (h, 8), "text_embedding.2": (h, h), "time_embedding.0": (h, 256)}
    found |= {"time_embedding.2": (h, h), "time_projection.1": (6 * h, h)}
    if with_image:
        found |= {"blocks.0.cross_attn.k_img": (h, h), "blocks.0.cross_attn.v_img": (h, h)}
        found |= {"img_emb.proj.1": (8, 8), "img_emb.proj.3": (h, 8)}
    return found


def sd3_names(h: int, layers: int = 2) -> Shapes:
    """Return the modules of MMDiT; the context of the last block does less, and the first has a second attention."""
    found: Shapes = {"x_embedder.proj": (h, 4, 1, 1), "context_embedder": (h, 8), "final_layer.linear": (4, h)}
    found["final_layer.adaLN_modulation.1"] = (2 * h, h)
    for name, inputs in (("t_embedder", 256), ("y_embedder", 12)):
        found |= {f"{name}.mlp.0": (h, inputs), f"{name}.mlp.2": (h, h)}
    for n in range(layers):
        for side in ("x_block", "context_block"):
            before, is_last = f"joint_blocks.{n}.{side}", side == "context_block" and n == layers - 1
            found[f"{before}.attn.qkv"] = (3 * h, h)
            found[f"{before}.adaLN_modulation.1"] = (
                (2 if is_last else 9 if side == "x_block" and n == 0 else 6) * h,
                h,
            )
            if not is_last:
                found |= {f"{before}.attn.proj": (h, h), f"{before}.mlp.fc1": (4 * h, h)}
                found[f"{before}.mlp.fc2"] = (h, 4 * h)
    return found | {"joint_blocks.0.x_block.attn2.qkv": (3 * h, h), "joint_blocks.0.x_block.attn2.proj": (h, h)}


def qwen_names(h: int) -> Shapes:
    """Return the linear modules of Qwen-Image, which both layouts call alike."""
    leaves = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    found: Shapes = {f"transformer_blocks.0.attn.{leaf}": (h, h) for leaf in leaves}
    for stream in ("img", "txt"):
        before = f"transformer_blocks.0.{stream}"
        found |= {f"{before}_mod.1": (6 * h, h), f"{before}_mlp.net.0.proj": (4 * h, h)}
        found[f"{before}_mlp.net.2"] = (h, 4 * h)
    found |= {"img_in": (h, 4), "txt_in": (h, 8), "proj_out": (4, h), "norm_out.linear": (2 * h, h)}
    return found | {f"time_text_embed.timestep_embedder.linear_{n}": (h, h if n == 2 else 256) for n in (1, 2)}


def prefixed(shapes: Shapes, prefix: str) -> Shapes:
    """Return names with a prefix; kohya's make them flat."""
    is_flat = not prefix.endswith(".")
    return {prefix + (name.replace(".", "_") if is_flat else name): shape for name, shape in shapes.items()}


def flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=8, axes_dims_rope=[2, 2, 0], guidance_embeds=True,
    )  # fmt: skip


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=12, out_channels=4,
        dual_attention_layers=(0,), qk_norm=None,
    )  # fmt: skip


def wan() -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=256,
        ffn_dim=48, num_layers=1, image_dim=8, added_kv_proj_dim=24, rope_max_seq_len=8,
    )  # fmt: skip


def hunyuan() -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=8,
        pooled_projection_dim=8, rope_axes_dim=(2, 2, 0),
    )  # fmt: skip


def qwen() -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(2, 2, 0),
    )  # fmt: skip


MODELS: Mapping[str, tuple[Callable[[], Any], Shapes]] = {
    "flux": (flux, flux_names(8, 2)),
    "sd3": (sd3, sd3_names(8)),
    "wan": (wan, wan_names(24, with_image=True)),
    "hunyuan": (hunyuan, hunyuan_names(8)),
    "qwen": (qwen, qwen_names(8)),
}


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("family", MODELS)
def test_a_converted_file_changes_the_model_of_diffusers(family: str, prefix: str, tmp_path: Path) -> None:
    """Case 11: all modules of the original find their place in the real class, and change it by their deltas."""
    make, shapes = MODELS[family]
    torch.manual_seed(0)
    model = make()
    source = prefixed(shapes, prefix)
    # ComfyUI's names have lora_A or lora_down, and no alpha or one.
    state = kohya_state(source, alpha=0.6) if prefix == "lora_unet_" else peft_state(source)
    path = convert_file(state, "diffusers", tmp_path)
    assert read(path).dialect == "diffusers"
    wanted = without_component(file_deltas(path), "transformer")
    changes = fused_change(model, lambda: model.load_lora_adapter(path, use_safetensors=True))
    require_equal(changes, wanted)
    original = file_deltas(tmp_path / "source.safetensors")
    assert energy(wanted) == pytest.approx(energy(original), rel=1e-9)


def energy(deltas: Mapping[str, Any]) -> float:
    """The sum of all squares, which no exchange of rows changes."""
    return sum(float(np.square(delta).sum()) for delta in deltas.values())


def flux_pipeline(state: dict[str, torch.Tensor]) -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline.lora_state_dict(state)


def hunyuan_pipeline(state: dict[str, torch.Tensor]) -> Any:
    from diffusers import HunyuanVideoPipeline

    return HunyuanVideoPipeline.lora_state_dict(state)


def wan_pipeline(state: dict[str, torch.Tensor]) -> Any:
    from diffusers import WanPipeline

    return WanPipeline.lora_state_dict(state)


def qwen_pipeline(state: dict[str, torch.Tensor]) -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline.lora_state_dict(state)


WAN_BLOCKS = {name: shape for name, shape in wan_names(12, with_image=True).items() if name.startswith("blocks")}
# diffusers cuts lora_A of two modules into pieces, as if it were lora_B. Its converter of checkpoints is right there.
HUNYUAN = {
    name: shape for name, shape in hunyuan_names(WIDE).items()
    if not name.endswith(("self_attn_qkv", "final_layer.adaLN_modulation.1"))
}  # fmt: skip
CONVERTERS: Mapping[str, tuple[Callable[[dict[str, torch.Tensor]], Any], Shapes]] = {
    "flux, kohya": (flux_pipeline, prefixed(flux_names(WIDE, outside=False), "lora_unet_")),
    "flux, ComfyUI": (flux_pipeline, prefixed(flux_names(WIDE, outside=False), "diffusion_model.")),
    "hunyuan, peft": (hunyuan_pipeline, prefixed(HUNYUAN, "diffusion_model.")),
    "wan, kohya": (wan_pipeline, prefixed(WAN_BLOCKS, "lora_unet_")),
    "wan, peft": (wan_pipeline, prefixed(wan_names(12, with_image=True), "diffusion_model.")),
    "qwen, kohya": (qwen_pipeline, prefixed(qwen_names(8), "lora_unet_")),
    "qwen, peft": (qwen_pipeline, prefixed(qwen_names(8), "diffusion_model.")),
}


@pytest.mark.parametrize("case", CONVERTERS)
def test_deltas_are_those_of_diffusers_converter(case: str, tmp_path: Path) -> None:
    """Names and numbers agree with those that `lora_state_dict` makes of the original file, to 1e-6."""
    convert, shapes = CONVERTERS[case]
    state = peft_state(shapes, rank=1) if "peft" in case else kohya_state(shapes, rank=1, alpha=0.3)
    found = file_deltas(convert_file(state, "diffusers", tmp_path))
    result = convert({key: value.clone() for key, value in state.items()})
    require_equal(found, state_deltas(result[0] if isinstance(result, tuple) else result))


def test_flux_outside_its_blocks_is_that_of_diffusers_converter_of_checkpoints(tmp_path: Path) -> None:
    """diffusers' converter of adapters gives these modules no component, and no alpha to the last one."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert

    both = ("query", "key")
    norms = [f"double_blocks.0.{stream}_attn.norm.{n}_norm.scale" for stream in ("img", "txt") for n in both]
    norms += [f"single_blocks.0.norm.{n}_norm.scale" for n in both]
    check_checkpoint(flux_names(WIDE), convert, tmp_path, drop=("double_blocks", "single_blocks"), norms=norms)


def test_sd3_is_that_of_diffusers_converter_of_checkpoints(tmp_path: Path) -> None:
    """diffusers has no converter for adapters of SD3 in the original layout."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as convert

    check_checkpoint(sd3_names(8), convert, tmp_path, norms=["pos_embed"])


def test_hunyuan_outside_its_blocks_is_that_of_diffusers_converter_of_checkpoints(tmp_path: Path) -> None:
    """The token refiner and the last layer, whose scale and shift change places."""
    from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers as convert

    shapes = {name: shape for name, shape in hunyuan_names(8).items() if "_blocks." not in name}
    check_checkpoint(shapes, convert, tmp_path, norms=[])


def check_checkpoint(
    shapes: Shapes,
    convert: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    folder: Path,
    *,
    norms: list[str],
    drop: tuple[str, ...] = (),
) -> None:
    """Assert that the deltas as weights, converted by diffusers, are our converted deltas.

    Args:
        shapes: All modules of the original.
        convert: diffusers' converter of checkpoints.
        folder: A folder for files.
        norms: The names of further tensors that the converter needs.
        drop: Beginnings of modules that the adapter leaves out.
    """
    own = {name: shape for name, shape in shapes.items() if not drop or not name.startswith(drop)}
    state = kohya_state(prefixed(own, "lora_unet_"), rank=1)
    path = convert_file(state, "diffusers", folder)
    checkpoint = {f"{name}.weight": torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    checkpoint |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    checkpoint |= {name: torch.zeros(2) for name in norms}
    for name, shape in own.items():
        up, down = (state[f"{name_}.lora_{side}.weight"].flatten(1) for name_ in prefixed({name: shape}, "lora_unet_")
                    for side in ("up", "down"))  # fmt: skip
        checkpoint[f"{name}.weight"] = (up.double() @ down.double()).reshape(shape)
    changed = {
        name.removesuffix(".weight"): value.flatten(1).numpy() @ probe(value.flatten(1).shape[1])
        for name, value in convert(checkpoint).items() if name.endswith(".weight") and value.dtype == torch.float64
    }  # fmt: skip
    require_equal(without_component(file_deltas(path), "transformer"), changed)


@pytest.mark.parametrize("family", MODELS)
def test_there_and_back(family: str, tmp_path: Path) -> None:
    """An adapter of the modules of Diffusers becomes one under kohya's names, and comes back the same.

    Fused modules have the ranks of their parts together, and parts that are missing stay zero.
    """
    make, shapes = MODELS[family]
    model = make()
    paths = {
        f"transformer.{name}": tuple(layer.weight.shape)
        for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }  # fmt: skip
    # One of q, k and v is missing.
    paths = {name: shape for name, shape in paths.items() if not name.endswith(".to_k")}
    state = peft_state(paths)
    base = {"_class_name": type(model).__name__}
    path = convert_file(state, "kohya", tmp_path, base=base)
    assert {key.partition(".")[0] for key in load(path)} <= set(prefixed(shapes, "lora_unet_"))
    again = file_deltas(convert_file(load(path), "diffusers", tmp_path / "again", base=base))
    wanted = state_deltas(state)
    assert set(wanted) <= set(again)
    require_equal({name: again[name] for name in wanted}, wanted)
    assert all(not again[name].any() for name in set(again) - set(wanted))


def test_a_joined_module_is_split_into_modules_of_their_own_ranks(tmp_path: Path) -> None:
    """q, k and v of the ranks 1, 2 and 3 make one module of rank 6, and come back with their ranks."""
    names = [f"transformer.transformer_blocks.0.attn.to_{leaf}" for leaf in "qkv"]
    state: dict[str, torch.Tensor] = {}
    for rank, name in enumerate(names, 1):
        state |= peft_state({name: (8, 8)}, rank=rank, seed=rank)
    base = {"_class_name": "FluxTransformer2DModel"}
    path = convert_file(state, "kohya", tmp_path, base=base)
    assert load(path)["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 8)
    again = load(convert_file(load(path), "diffusers", tmp_path / "again"))
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_names_that_flatten_alike_are_not_guessed(tmp_path: Path) -> None:
    """Case 11: a name of Flux and of HunyuanVideo is converted where both mean the same, and else needs the base."""
    alike = kohya_state({"lora_unet_double_blocks_0_img_attn_qkv": (24, 8)})
    found = file_deltas(convert_file(alike, "diffusers", tmp_path / "alike"))
    assert sorted(found) == [f"transformer.transformer_blocks.0.attn.to_{leaf}" for leaf in "kqv"]
    source = peft_state({"transformer.transformer_blocks.0.attn.to_q": (8, 8)})
    with pytest.raises(AdapterError) as refused:
        convert_file(source, "kohya", tmp_path / "unknown")
    assert refused.value.code == "needs-base"
    for family, name in (
        ("Flux", "double_blocks_0_img_attn_qkv"), ("HunyuanVideo", "double_blocks_0_img_attn_qkv"),
        ("SD3", "joint_blocks_0_x_block_attn_qkv"), ("QwenImage", "transformer_blocks_0_attn_to_q"),
    ):  # fmt: skip
        base = {"_class_name": f"{family}Transformer{'3D' if family == 'HunyuanVideo' else '2D'}Model"}
        assert f"lora_unet_{name}.alpha" in load(convert_file(source, "kohya", tmp_path / family, base=base))
    named = convert_file(source, "kohya", tmp_path / "named", metadata={"modelspec.architecture": "flux-1-dev/lora"})
    assert "lora_unet_double_blocks_0_img_attn_qkv.alpha" in load(named)


def test_a_scaling_needs_no_metadata_where_a_factor_holds_it_exactly(tmp_path: Path) -> None:
    """diffusers before 0.34, and `load_lora_adapter` without ``use_safetensors``, read no metadata."""
    path = convert_file(kohya_state(prefixed(qwen_names(8), "lora_unet_"), alpha=0.5), "diffusers", tmp_path)
    model = qwen()
    require_equal(
        fused_change(model, lambda: model.load_lora_adapter(load(path))),
        without_component(file_deltas(path), "transformer"),
    )


def test_what_diffusers_does_not_load_is_refused(tmp_path: Path) -> None:
    """diffusers loads no adapter of T5; the message says so, and who loads the original."""
    state = kohya_state(prefixed(flux_names(8, outside=False), "lora_unet_"))
    state |= kohya_state({"lora_te3_encoder_block_0_layer_0_SelfAttention_q": (8, 8)})
    with pytest.raises(AdapterError, match=r"text_encoder_2 of Flux 1; ComfyUI and sd-scripts load the original"):
        convert_file(state, "diffusers", tmp_path)


@pytest.mark.parametrize(
    ("component", "names", "prefix"),
    [
        ("unet", ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"], "UNet2DConditionModel"),
        ("transformer", ["transformer_blocks.0.attn.to_q"], "FluxTransformer2DModel"),
        # A model that no table knows: the class alone tells the component.
        ("transformer", ["my_blocks.0.to_q"], "CogVideoXTransformer3DModel"),
    ],
)
def test_a_peft_adapter_gets_its_component(component: str, names: list[str], prefix: str, tmp_path: Path) -> None:
    """``auto_mapping`` in the configuration of PEFT names the class of the base model."""
    import json

    from nola_codec.adapters import write
    from nola_codec.adapters.conversion import convert

    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(peft_state({f"base_model.model.{name}": (8, 8) for name in names}), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}
    config["auto_mapping"] = {"base_model_class": prefix, "parent_library": "diffusers.models"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    path = write(convert(read(folder), "diffusers"), tmp_path / "out.safetensors")
    assert sorted(file_deltas(path)) == [f"{component}.{name}" for name in names]


@pytest.mark.parametrize("target", ["diffusers", "kohya"])
def test_language_models_have_no_place_in_a_pipeline(target: str, tmp_path: Path) -> None:
    """GPT-2's ``transformer.h`` is no component of a pipeline."""
    from nola_codec.adapters.conversion import convert

    save_file(peft_state({"transformer.h.0.attn.c_attn": (24, 8)}), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    state = peft_state({"base_model.model.transformer.h.0.attn.c_attn": (24, 8)})
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"component of an image model|components of a pipeline"):
        convert(read(tmp_path), target)
