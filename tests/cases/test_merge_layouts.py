"""Cases 10, 11 and 48: an adapter in one layout of a model is merged into a base model in the other layout.

The right value of a weight is W + delta rounded once, where the deltas are those of the decoded adapter and diffusers'
own converter says which rows go where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from image_lora import Shapes, kohya_state, peft_state
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.errors import AdapterError

Tensors = dict[str, torch.Tensor]
H = 8
FLUX: Shapes = {
    "double_blocks.0.img_attn.qkv": (3 * H, H), "double_blocks.0.txt_attn.proj": (H, H),
    "single_blocks.0.linear1": (7 * H, H), "single_blocks.0.linear2": (H, 5 * H),
    "final_layer.adaLN_modulation.1": (2 * H, H),
}  # fmt: skip
SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
ROWS: Mapping[str, list[tuple[str, int, int]]] = {
    "double_blocks.0.img_attn.qkv": [
        (f"transformer_blocks.0.attn.to_{leaf}", n * H, (n + 1) * H) for n, leaf in enumerate("qkv")
    ],
    "double_blocks.0.txt_attn.proj": [("transformer_blocks.0.attn.to_add_out", 0, H)],
    "single_blocks.0.linear1": [
        (f"single_transformer_blocks.0.{leaf}", n * H, 7 * H if n == 3 else (n + 1) * H)
        for n, leaf in enumerate(SINGLE)
    ],
    "single_blocks.0.linear2": [("single_transformer_blocks.0.proj_out", 0, H)],
    "final_layer.adaLN_modulation.1": [("norm_out.linear", 0, 2 * H)],
}
"""The modules of Diffusers that hold the rows of each module of Flux, from diffusers' converter of checkpoints."""

Deltas = dict[str, torch.Tensor]


def swapped(name: str, delta: torch.Tensor) -> torch.Tensor:
    """The rows in the order of the other layout: scale and shift of the last layer change places."""
    return torch.cat(delta.chunk(2)[::-1]) if name in ("norm_out.linear", "final_layer.adaLN_modulation.1") else delta


def to_diffusers(deltas: Deltas) -> Deltas:
    return {
        path: swapped(path, delta[start:stop]) for name, delta in deltas.items() for path, start, stop in ROWS[name]
    }


def to_original(deltas: Deltas) -> Deltas:
    found = {}
    for name, parts in ROWS.items():
        if any(path in deltas for path, _, _ in parts):
            found[name] = torch.zeros(*FLUX[name], dtype=torch.float64)
            for path, start, stop in parts:
                if path in deltas:
                    found[name][start:stop] = swapped(path, deltas[path])
    return found


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")
    torch.manual_seed(1)


def code(adapter: Tensors, folder: Path, name: str = "a") -> tuple[Path, Deltas]:
    """Encode an adapter; return the file, and the exact deltas that it decodes to, by module."""
    save_file(adapter, folder / f"{name}.safetensors")
    nola_codec.encode(folder / f"{name}.safetensors", folder / f"{name}.nola", nmse=0.01)
    again = load_file(nola_codec.decode(folder / f"{name}.nola", folder / f"{name}-again.safetensors"))
    found = {}
    for key, down in again.items():
        module, _, side = key.partition(".lora_")
        if side in ("down.weight", "A.weight"):
            up = again[f"{module}.lora_{'up' if side == 'down.weight' else 'B'}.weight"]
            scale = float(again.get(f"{module}.alpha", torch.tensor(float(len(down))))) / len(down)
            found[module] = (up.flatten(1).double() @ down.flatten(1).double()) * scale
    return folder / f"{name}.nola", found


def require_merged(found: Tensors, base: Tensors, deltas: Deltas) -> None:
    """Assert that each weight is W + delta, rounded once, to the bit, and that all others are as they were."""
    assert found.keys() == base.keys()
    for name, weight in base.items():
        delta = deltas.pop(name.removesuffix(".weight"), None)
        wanted = weight if delta is None else (weight.double() + delta.reshape(weight.shape)).to(weight.dtype)
        assert torch.equal(found[name], wanted), name
    assert not deltas


def weights_of(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> Tensors:
    return {f"{prefix}{name}.weight": torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}


def component(folder: Path, weights: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"_class_name": "Model"}))
    return folder


def diffusers_shapes() -> dict[str, tuple[int, ...]]:
    return {path: (stop - start, FLUX[name][1]) for name, parts in ROWS.items() for path, start, stop in parts}


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", ""])
@pytest.mark.parametrize("place", ["component", "pipeline"])
def test_original_names_on_a_model_of_diffusers(prefix: str, place: str, tmp_path: Path) -> None:
    """Case 48: rows of fused q, k, v and mlp go to the modules of Diffusers, and the undo file takes them back."""
    is_flat = prefix.startswith("lora")
    names = {name: prefix + (name.replace(".", "_") if is_flat else name) for name in FLUX}
    shapes = {names[name]: shape for name, shape in FLUX.items()}
    file, found = code(kohya_state(shapes, alpha=1.5) if is_flat else peft_state(shapes), tmp_path)
    weights = weights_of(diffusers_shapes())
    base = component(tmp_path / "pipe" / "transformer", weights)
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    deltas = to_diffusers({name: found[names[name]] for name in FLUX})
    if place == "pipeline":
        nola_codec.decode(file, tmp_path / "out", base=tmp_path / "pipe")
        merged = tmp_path / "out" / "transformer"
    else:
        nola_codec.merge([file], base, tmp_path / "out", keep_undo=True)
        merged = tmp_path / "out"
        nola_codec.unmerge([file], merged, tmp_path / "back")
        stored = [each / "diffusion_pytorch_model.safetensors" for each in (base, tmp_path / "back")]
        assert stored[0].read_bytes() == stored[1].read_bytes()
    require_merged(load_file(merged / "diffusion_pytorch_model.safetensors"), weights, deltas)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_of_diffusers_on_a_lone_original_file(prefix: str, tmp_path: Path) -> None:
    """Case 48, the reverse: q and v without k are rows of one weight; the file of ComfyUI has a prefix."""
    shapes = {name: shape for name, shape in diffusers_shapes().items() if not name.endswith("to_k")}
    file, found = code(peft_state({f"transformer.{name}": shape for name, shape in shapes.items()}), tmp_path)
    base = weights_of(FLUX, prefix)
    save_file(base, tmp_path / "base.safetensors")
    nola_codec.decode(file, tmp_path / "out.safetensors", base=tmp_path / "base.safetensors")
    deltas = to_original({name.removeprefix("transformer."): delta for name, delta in found.items()})
    wanted = {prefix + name: delta for name, delta in deltas.items()}
    require_merged(load_file(tmp_path / "out.safetensors"), base, wanted)


def test_a_merge_is_that_of_the_converted_adapter(tmp_path: Path) -> None:
    """The bits are the same as those of the adapter that ``--format diffusers`` writes, dense."""
    shapes = {"lora_unet_" + name.replace(".", "_"): shape for name, shape in FLUX.items()}
    file, _ = code(kohya_state(shapes), tmp_path)
    weights = weights_of(diffusers_shapes())
    base = component(tmp_path / "base", weights)
    nola_codec.decode(file, tmp_path / "out", base=base)
    again = load_file(nola_codec.decode(file, tmp_path / "d.safetensors", format="diffusers"))
    deltas = {
        name: again[f"transformer.{name}.lora_B.weight"].double() @ again[f"transformer.{name}.lora_A.weight"].double()
        for name in diffusers_shapes()
    }
    require_merged(load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors"), weights, deltas)


SDXL: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q", (H, H)),
    "mid_block.resnets.1.conv1": ("middle_block.2.in_layers.2", (H, H, 3, 3)),
    "up_blocks.0.upsamplers.0.conv": ("output_blocks.2.2.conv", (H, H, 3, 3)),
    "up_blocks.1.attentions.2.proj_out": ("output_blocks.5.1.proj_out", (H, H)),
    "add_embedding.linear_1": ("label_emb.0.0", (H, 4)),
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_sdxl_in_either_layout(reverse: bool, tmp_path: Path) -> None:
    """Case 10: sd-scripts' names on a UNet of Diffusers, and Diffusers' names on a checkpoint of SDXL."""
    if not reverse:
        shapes = {"lora_unet_" + original.replace(".", "_"): shape for original, shape in SDXL.values()}
        names = {"lora_unet_" + original.replace(".", "_"): path for path, (original, _) in SDXL.items()}
        file, found = code(kohya_state(shapes), tmp_path)
        weights = weights_of({path: shape for path, (_, shape) in SDXL.items()})
        nola_codec.decode(file, tmp_path / "out", base=component(tmp_path / "base", weights))
        merged = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    else:
        file, found = code(peft_state({f"unet.{path}": shape for path, (_, shape) in SDXL.items()}), tmp_path)
        names = {f"unet.{path}": f"model.diffusion_model.{original}" for path, (original, _) in SDXL.items()}
        weights = weights_of(dict(SDXL.values()), "model.diffusion_model.")
        save_file(weights, tmp_path / "base.safetensors")
        nola_codec.decode(file, tmp_path / "out.safetensors", base=tmp_path / "base.safetensors")
        merged = load_file(tmp_path / "out.safetensors")
    require_merged(merged, weights, {names[name]: delta for name, delta in found.items()})


def test_unet_and_both_text_encoders_in_one_file(tmp_path: Path) -> None:
    """Case 48: a LoRA of SDXL changes the UNet, CLIP, and open_clip's fused projection, all in one checkpoint."""
    layer = "text_model_encoder_layers_0"
    shapes: dict[str, tuple[int, ...]] = {
        "lora_unet_down_blocks_1_attentions_0_proj_in": (H, H), f"lora_te1_{layer}_self_attn_q_proj": (H, H),
        f"lora_te2_{layer}_self_attn_k_proj": (H, H), f"lora_te2_{layer}_mlp_fc1": (2 * H, H),
    }  # fmt: skip
    file, found = code(kohya_state(shapes), tmp_path)
    second = "conditioner.embedders.1.model.transformer.resblocks.0"
    first = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn"
    base = weights_of({
        "model.diffusion_model.input_blocks.4.1.proj_in": (H, H), f"{first}.q_proj": (H, H), f"{first}.k_proj": (H, H),
        f"{second}.mlp.c_fc": (2 * H, H),
    })  # fmt: skip
    base[f"{second}.attn.in_proj_weight"] = torch.randn(3 * H, H).to(torch.bfloat16)
    save_file(base, tmp_path / "base.safetensors")
    nola_codec.decode(file, tmp_path / "out.safetensors", base=tmp_path / "base.safetensors")
    fused = torch.zeros(3 * H, H, dtype=torch.float64)
    fused[H : 2 * H] = found[f"lora_te2_{layer}_self_attn_k_proj"]
    deltas = {
        "model.diffusion_model.input_blocks.4.1.proj_in": found["lora_unet_down_blocks_1_attentions_0_proj_in"],
        f"{first}.q_proj": found[f"lora_te1_{layer}_self_attn_q_proj"],
        f"{second}.mlp.c_fc": found[f"lora_te2_{layer}_mlp_fc1"],
        f"{second}.attn.in_proj_weight": fused,
    }
    require_merged(load_file(tmp_path / "out.safetensors"), base, deltas)


def test_names_of_clip_without_its_inner_model(tmp_path: Path) -> None:
    """Transformers 5 stores ``encoder.layers`` for what kohya calls ``text_model_encoder_layers``."""
    file, found = code(kohya_state({"lora_te_text_model_encoder_layers_0_mlp_fc1": (2 * H, H)}), tmp_path)
    base = weights_of({"encoder.layers.0.mlp.fc1": (2 * H, H)})
    nola_codec.decode(file, tmp_path / "out", base=component(tmp_path / "base", base))
    deltas = {"encoder.layers.0.mlp.fc1": found["lora_te_text_model_encoder_layers_0_mlp_fc1"]}
    require_merged(load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors"), base, deltas)


def test_one_name_that_flattens_to_two_models(tmp_path: Path) -> None:
    """Case 11: the base tells HunyuanVideo and Flux apart."""
    shapes = {"lora_unet_double_blocks_0_img_attn_qkv": (3 * H, H)}
    file, found = code(kohya_state(shapes), tmp_path)
    for number, name in enumerate(("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv")):
        base = weights_of({name: (3 * H, H)})
        save_file(base, tmp_path / f"{number}.safetensors")
        nola_codec.decode(file, tmp_path / f"out{number}.safetensors", base=tmp_path / f"{number}.safetensors")
        wanted = {name: found["lora_unet_double_blocks_0_img_attn_qkv"]}
        require_merged(load_file(tmp_path / f"out{number}.safetensors"), base, wanted)


@pytest.mark.parametrize(
    "base",
    [
        {"transformer_blocks.0.attn.to_q": (H, H), "transformer_blocks.0.attn.to_k": (H, H)},  # v is missing
        {f"transformer_blocks.0.attn.to_{leaf}": (H, 2 * H) for leaf in "qkv"},  # another number of inputs
        {f"transformer_blocks.0.attn.to_{leaf}": (rows, H) for leaf, rows in zip("qkv", (16, 4, 4), strict=True)},
    ],
)
def test_a_base_that_lacks_a_part_is_refused(base: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """Nothing is merged by halves."""
    file, _ = code(peft_state({"diffusion_model.double_blocks.0.img_attn.qkv": (3 * H, H)}), tmp_path)
    save_file(weights_of(base), tmp_path / "base.safetensors")
    with pytest.raises(AdapterError) as refused:
        nola_codec.decode(file, tmp_path / "out.safetensors", base=tmp_path / "base.safetensors")
    assert refused.value.code == "base-mismatch"
    assert not (tmp_path / "out.safetensors").exists()


def test_wan_changes_its_affine_norm(tmp_path: Path) -> None:
    """``norm3`` of Wan is ``norm2`` of Diffusers, which has a ``norm3`` too; it has no weights."""
    state = kohya_state({"diffusion_model.blocks.0.self_attn.q": (H, H)})
    state |= {"diffusion_model.blocks.0.norm3.diff": torch.randn(H)}
    save_file(state, tmp_path / "a.safetensors")
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.01)
    base = weights_of({"blocks.0.attn1.to_q": (H, H)}) | {"blocks.0.norm2.weight": torch.randn(H)}
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "out", base=component(tmp_path / "base", base))
    merged = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    again: Any = load_file(nola_codec.decode(tmp_path / "a.nola", tmp_path / "again.safetensors"))
    wanted = base["blocks.0.norm2.weight"].double() + again["diffusion_model.blocks.0.norm3.diff"].double()
    assert torch.equal(merged["blocks.0.norm2.weight"], wanted.float())


@pytest.mark.parametrize("kind", ["file", "component", "pipeline"])
def test_a_base_tells_the_family_of_a_conversion(kind: str, tmp_path: Path) -> None:
    """``--base`` of a conversion may be a lone file, a component or a pipeline."""
    file, _ = code(peft_state({"transformer.transformer_blocks.0.attn.to_q": (H, H)}), tmp_path)
    with pytest.raises(AdapterError, match="--base"):
        nola_codec.decode(file, tmp_path / "bare.safetensors", format="kohya")
    if kind == "file":
        base = tmp_path / "base.safetensors"
        save_file(weights_of({**FLUX, "double_blocks.0.img_mod.lin": (6 * H, H)}, "model.diffusion_model."), base)
    else:
        base = component(tmp_path / "pipe" / "transformer", weights_of(diffusers_shapes()))
        (base / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
        if kind == "pipeline":
            base = base.parent
            (base / "model_index.json").write_text("{}")
    written = nola_codec.decode(file, tmp_path / "kohya.safetensors", format="kohya", base=base)
    assert "lora_unet_double_blocks_0_img_attn_qkv.alpha" in load_file(written)
    assert nola_codec.compare(file, written).nmse == 0


def test_compare_works_across_layouts(tmp_path: Path) -> None:
    """The deltas of a fused module are compared with those of its parts."""
    shapes = {"lora_unet_" + name.replace(".", "_"): shape for name, shape in FLUX.items()}
    file, _ = code(kohya_state(shapes), tmp_path)
    written = nola_codec.decode(file, tmp_path / "d.safetensors", format="diffusers")
    found = nola_codec.compare(file, written)
    assert found.nmse == 0
    assert len(found.tensors) == len(diffusers_shapes())
    assert not found.only_in_a + found.only_in_b
