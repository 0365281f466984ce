"""Case 11 and its kind: further models, prefixes and tools; what no table knows is refused and not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_lora import convert_file, file_deltas, kohya_state, load, peft_state, require_equal, state_deltas
from safetensors.torch import save_file

import nola_codec
from nola_codec.adapters import read
from nola_codec.errors import AdapterError

State = dict[str, torch.Tensor]


def mapped_by(pipeline: str, state: State) -> dict[str, Any]:
    """Return the deltas that the converter of a pipeline of diffusers makes of a file."""
    import diffusers

    found = getattr(diffusers, pipeline).lora_state_dict({key: value.clone() for key, value in state.items()})
    return state_deltas(found[0] if isinstance(found, tuple) else found)


H = 8
FLUX_2 = {"double_blocks.0.img_attn.qkv": (3 * H, H), "single_blocks.0.linear1": (9 * H, H)}
SHAPES_TELL = {
    "Flux 2, whose first layer is wider than that of Flux 1": (
        "Flux2Pipeline", peft_state({f"diffusion_model.{name}": shape for name, shape in FLUX_2.items()})),
    "Z-Image, whose q, k and v are equal": (
        "ZImagePipeline", kohya_state({"lora_unet_layers_0_attention_qkv": (3 * H, H)})),
    "LTX-2, with sound": ("LTX2Pipeline", peft_state({
        "diffusion_model.transformer_blocks.0.attn1.to_q": (H, H),
        "diffusion_model.transformer_blocks.0.audio_to_video_attn.to_k": (H, 4),
        "diffusion_model.transformer_blocks.0.audio_ff.net.0.proj": (16, 4),
        "diffusion_model.audio_patchify_proj": (4, 6),
        "diffusion_model.audio_adaln_single.emb.timestep_embedder.linear_1": (4, 6),
        "diffusion_model.av_ca_a2v_gate_adaln_single.linear": (H, H),
    })),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES_TELL)
def test_names_and_shapes_tell_the_model(case: str, tmp_path: Path) -> None:
    """The names are those that diffusers' own converter makes for the model, and no base is needed."""
    pipeline, state = SHAPES_TELL[case]
    require_equal(file_deltas(convert_file(state, "diffusers", tmp_path)), mapped_by(pipeline, state))


def test_shapes_that_fit_several_models_need_the_base(tmp_path: Path) -> None:
    """Attention of one shape is that of Lumina 2, where k and v have fewer rows; other names do not tell."""
    found = file_deltas(convert_file(peft_state({"diffusion_model.layers.0.attention.qkv": (14, H)}), "diffusers",
                                     tmp_path / "lumina"))  # fmt: skip
    assert {name: len(delta) for name, delta in found.items()} == {
        "transformer.layers.0.attn.to_q": 8, "transformer.layers.0.attn.to_k": 3, "transformer.layers.0.attn.to_v": 3,
    }  # fmt: skip
    state = peft_state({"transformer.layers.0.feed_forward.w1": (16, H)})
    with pytest.raises(AdapterError) as refused:
        convert_file(state, "diffusers", tmp_path / "both")
    assert refused.value.code == "needs-base"


def test_vace_has_the_names_of_diffusers_converter_of_checkpoints(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert_checkpoint

    names = [f"vace_blocks.0.{leaf}" for leaf in ("self_attn.q", "cross_attn.o", "ffn.0", "before_proj", "after_proj")]
    state = peft_state({f"diffusion_model.{name}": (H, H) for name in names})
    wanted = convert_checkpoint({f"{name}.weight": torch.tensor(n) for n, name in enumerate(names)})
    found = load(convert_file(state, "diffusers", tmp_path))
    for path, number in wanted.items():
        factor = found[f"transformer.{path.removesuffix('.weight')}.lora_A.weight"]
        assert torch.equal(factor, state[f"diffusion_model.{names[int(number)]}.lora_A.weight"])
    assert len(found) == 2 * len(names)


DOTTED = {
    # OneTrainer, with dots after kohya's prefixes and in the format of the Open Model Initiative; Wan's Fun models.
    "lora_unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q":
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q":
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_te1.text_model.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "clip_l.text_model.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "clip_g.text_model.encoder.layers.0.mlp.fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    "transformer.double_blocks.1.img_attn.qkv.1": "transformer.transformer_blocks.1.attn.to_k",
    "transformer.single_blocks.1.linear1.3": "transformer.single_transformer_blocks.1.proj_mlp",
    "lora_unet__blocks_0_self_attn_q": "transformer.blocks.0.attn1.to_q",
}  # fmt: skip


@pytest.mark.parametrize("name", DOTTED)
def test_prefixes_of_other_tools(name: str, tmp_path: Path) -> None:
    path = convert_file(kohya_state({name: (H, H)}), "diffusers", tmp_path)
    assert list(file_deltas(path)) == [DOTTED[name]]


@pytest.mark.parametrize(
    ("state", "target"),
    [
        # HunyuanVideo 1.5 calls it `img_attn_q`, and a flattened name could also mean `img_attn.q`.
        (kohya_state({"lora_unet_double_blocks_0_img_attn_q": (H, H)}), "peft"),
        (kohya_state({"lora_unet_double_blocks_0_img_attn_q": (H, H)}), "diffusers"),
        (kohya_state({"lora_prior_unet_down_blocks_0_1_attention_attn_in_proj": (H, H)}), "diffusers"),
        # These begin like a file of ComfyUI, so no model of Diffusers has such modules.
        (peft_state({"diffusion_model.my_blocks.0.qkv": (24, H)}), "diffusers"),
        (peft_state({"diffusion_model.my_blocks.0.qkv": (24, H)}), "peft"),
        (peft_state({"diffusion_model.my_blocks.0.qkv": (24, H)}), "kohya"),
    ],
)
def test_models_that_no_table_knows_are_refused(state: State, target: str, tmp_path: Path) -> None:
    """A file under names that its readers do not look for would load nothing, in silence."""
    with pytest.raises(AdapterError, match="no image or video model that is known here") as refused:
        convert_file(state, target, tmp_path)
    assert refused.value.code == "not-expressible"


def test_changes_of_norms_and_modulations_are_merged_in_both_layouts(tmp_path: Path) -> None:
    """Case 03: a file of Wan with ``.diff`` of norms changes the weights that diffusers makes of them."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert_checkpoint

    shapes: dict[str, tuple[int, ...]] = {"blocks.0.self_attn.q.weight": (H, H), "blocks.0.self_attn.q.bias": (H,)}
    shapes |= {"blocks.0.norm3.weight": (H,), "blocks.0.norm3.bias": (H,), "blocks.0.self_attn.norm_q.weight": (H,)}
    shapes |= {"blocks.0.cross_attn.norm_k_img.weight": (H,), "blocks.0.modulation": (1, 6, H)}
    shapes |= {"head.head.weight": (4, H), "head.head.bias": (4,)}
    ends = {".weight": ".diff", ".bias": ".diff_b"}
    change = {name: torch.randn(shape, dtype=torch.float32) for name, shape in shapes.items()}
    state: State = {}
    for name, value in change.items():
        path, dot, end = name.rpartition(".")
        key = f"{path}.diff_m" if end == "modulation" else path + ends[dot + end]
        state[f"diffusion_model.{key}"] = value
    base = {name: torch.randn(value.shape) for name, value in change.items()}
    save_file(state, tmp_path / "a.safetensors")
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", num_basis=16, bits=8)
    back = load(nola_codec.decode(tmp_path / "a.nola", tmp_path / "back.safetensors"))
    wanted = {name: base[name].double() + back[key] for name, key in zip(change, state, strict=True)}
    save_file(convert_checkpoint(dict(base)), tmp_path / "base.safetensors")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged, right = load(tmp_path / "merged.safetensors"), convert_checkpoint(dict(wanted))
    assert merged.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(merged[name], value.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrapper", ["model.", "module.", "net.", "model.model."])
def test_a_wrapper_around_the_base_hides_no_layout(wrapper: str, tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_k"
    save_file(peft_state({name: (H, H)}), tmp_path / "a.safetensors")
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", num_basis=16, bits=8)
    back = load(nola_codec.decode(tmp_path / "a.nola", tmp_path / "back.safetensors"))
    weight = f"{wrapper}double_blocks.0.img_attn_qkv.weight"
    save_file({weight: torch.zeros(3 * H, H)}, tmp_path / "base.safetensors")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged = load(tmp_path / "merged.safetensors")[weight]
    delta = back[f"{name}.lora_B.weight"] @ back[f"{name}.lora_A.weight"]
    torch.testing.assert_close(merged, torch.cat([torch.zeros(H, H), delta, torch.zeros(H, H)]))


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
def test_modules_without_an_alpha_and_with_the_alpha_0_are_told(spelling: str, tmp_path: Path) -> None:
    """Tools differ there: a scale that is taken by a rule beside alphas is said."""
    names = [f"lora_unet_mid_block_attentions_0_transformer_blocks_{n}_attn1_to_q" for n in range(3)]
    if spelling == "diffusers":
        names = [f"diffusion_model.blocks.{n}.self_attn.q" for n in range(3)]
    state = kohya_state(dict.fromkeys(names, (H, H)), alpha=1.0)
    del state[f"{names[1]}.alpha"]
    state[f"{names[2]}.alpha"] = torch.tensor(0.0)
    if spelling == "diffusers":
        state = {k.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): v for k, v in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert [m.scaling for m in adapter.modules] == [0.5, 1.0, 0.0]
    assert any(names[1] in note and "no alpha" in note for note in adapter.notes)
    assert any(names[2] in note and "alpha 0" in note for note in adapter.notes)


LOHA = {
    f"lora_unet_mid_block_proj.hada_w{n}_{side}": torch.randn((H, 2) if side == "a" else (2, H))
    for n in (1, 2) for side in "ab"
}  # fmt: skip


@pytest.mark.parametrize(("alpha", "scaling", "origin"), [(1.0, 0.5, "tensor"), (None, 1.0, "dialect")])
def test_the_report_has_the_scaling_of_a_loha(alpha: float | None, scaling: float, origin: str, tmp_path: Path) -> None:
    """The scaling is alpha / r of the whole delta. The parts have none, so `inspect` shows no number for them."""
    state = LOHA | ({} if alpha is None else {"lora_unet_mid_block_proj.alpha": torch.tensor(alpha)})
    save_file(state, tmp_path / "a.safetensors")
    report = nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", num_basis=16, bits=8)
    assert (report.scalings, report.scale_origin) == ((scaling,), origin)
    facts = nola_codec.inspect(tmp_path / "a.nola")
    assert (facts.scalings, facts.scale_origin) == ((), "")
    assert "scaling" not in str(facts)


def test_metadata_that_leaves_out_a_component_is_told(tmp_path: Path) -> None:
    """The scaling of the text encoder is a rule's, and the metadata is named for the UNet alone."""
    state = peft_state({"unet.mid_block.attentions.0.proj_in": (H, H)})
    state |= peft_state({"text_encoder.text_model.encoder.layers.0.mlp.fc1": (16, H)})
    text = '{"unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": ["proj_in"]}'
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
    adapter = read(tmp_path / "a.safetensors")
    assert {m.name.partition(".")[0]: m.scaling for m in adapter.modules} == {"unet": 4.0, "text_encoder": 1.0}
    assert any("says nothing of text_encoder" in note for note in adapter.notes)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("diff_b", "diffusers"), ("diff_b", "kohya"), ("diff_b", "peft"), ("LoHa", "diffusers"), ("LoHa", "peft")],
)
def test_what_no_conversion_takes_along_is_refused_with_the_way_out(kind: str, target: str, tmp_path: Path) -> None:
    state = peft_state({"diffusion_model.blocks.0.self_attn.q": (H, H)})
    state |= {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.randn(H)}
    with pytest.raises(AdapterError, match="Without --format it comes back as it was") as refused:
        convert_file(LOHA if kind == "LoHa" else state, target, tmp_path)
    assert refused.value.code == "not-expressible"


def test_a_comparison_across_layouts_keeps_what_the_adapters_say(tmp_path: Path) -> None:
    """Parts of a joined module that are zero are no difference, and the origins are those of the files."""
    state = peft_state({"transformer.transformer_blocks.0.attn.to_q": (H, H)})
    joined = convert_file(state, "kohya", tmp_path, base={"_class_name": "FluxTransformer2DModel"})
    found = nola_codec.compare(joined, tmp_path / "source.safetensors")
    assert found.nmse == 0.0
    assert found.same_structure
    assert found.scale_origins == ("tensor", "dialect")
    other = kohya_state({"lora_unet_double_blocks_0_img_attn_qkv": (3 * H, H)})
    save_file(other, tmp_path / "whole.safetensors")
    found = nola_codec.compare(tmp_path / "whole.safetensors", tmp_path / "source.safetensors")
    assert len(found.only_in_a) == 2


WIDE = 3072  # diffusers' converter of checkpoints of Flux knows no other size
XLABS = {
    "double_blocks.0.processor.qkv_lora1": (3 * WIDE, WIDE), "double_blocks.0.processor.proj_lora1": (WIDE, WIDE),
    "double_blocks.0.processor.qkv_lora2": (3 * WIDE, WIDE), "double_blocks.0.processor.proj_lora2": (WIDE, WIDE),
    "single_blocks.0.processor.qkv_lora": (3 * WIDE, WIDE), "single_blocks.0.processor.proj_lora": (WIDE, 5 * WIDE),
}  # fmt: skip


def xlabs_state(width: int = WIDE) -> State:
    state = peft_state(
        {name: (out * width // WIDE, size * width // WIDE) for name, (out, size) in XLABS.items()}, rank=1
    )
    return {
        k.replace("lora_A.weight", "down.weight").replace("lora_B.weight", "up.weight"): v for k, v in state.items()
    }


def test_processors_of_xlabs_are_converted_as_diffusers_does(tmp_path: Path) -> None:
    """Case 11: XLabs' processors fuse q, k and v, and in kohya's file they are rows of BFL's weights."""
    state = xlabs_state()
    wanted = mapped_by("FluxPipeline", state)
    require_equal(file_deltas(convert_file(state, "diffusers", tmp_path / "a")), wanted)
    kohya = convert_file(state, "kohya", tmp_path / "b")
    assert {key.partition(".")[0] for key in load(kohya)} == {
        f"lora_unet_{name}" for name in (
            "double_blocks_0_img_attn_qkv", "double_blocks_0_txt_attn_qkv", "double_blocks_0_img_attn_proj",
            "double_blocks_0_txt_attn_proj", "single_blocks_0_linear1", "single_blocks_0_linear2",
        )
    }  # fmt: skip
    again = file_deltas(convert_file(load(kohya), "diffusers", tmp_path / "c"))
    require_equal({name: again[name] for name in wanted}, wanted)
    assert not any(again[name].any() for name in set(again) - set(wanted))


def test_processors_of_xlabs_are_merged_into_bfl_s_weights(tmp_path: Path) -> None:
    save_file(xlabs_state(H), tmp_path / "a.safetensors")
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", num_basis=16, bits=8)
    back = load(nola_codec.decode(tmp_path / "a.nola", tmp_path / "back.safetensors"))
    shapes = {"double_blocks.0.img_attn.qkv": (3 * H, H), "double_blocks.0.img_attn.proj": (H, H),
              "double_blocks.0.txt_attn.qkv": (3 * H, H), "double_blocks.0.txt_attn.proj": (H, H),
              "single_blocks.0.linear1": (7 * H, H), "single_blocks.0.linear2": (H, 5 * H)}  # fmt: skip
    save_file({f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "base.safetensors")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged = load(tmp_path / "merged.safetensors")
    ends = ("double_blocks.0.processor.qkv_lora1", "double_blocks.0.processor.proj_lora1",
            "double_blocks.0.processor.qkv_lora2", "double_blocks.0.processor.proj_lora2",
            "single_blocks.0.processor.qkv_lora", "single_blocks.0.processor.proj_lora")  # fmt: skip
    for name, source in zip(shapes, ends, strict=True):
        delta = back[f"{source}.up.weight"] @ back[f"{source}.down.weight"]
        rows = len(delta)
        torch.testing.assert_close(merged[f"{name}.weight"][:rows], delta)
        assert not merged[f"{name}.weight"][rows:].any()


@pytest.mark.parametrize("leaf", ["layers.0.attention.to_q", "layers.0.attn.to_q", "layers.0.feed_forward.w1"])
def test_layers_of_a_transformer_of_diffusers_are_no_language_model(leaf: str, tmp_path: Path) -> None:
    """Z-Image and Lumina 2: the scale is defined by diffusers, and none is assumed."""
    save_file(peft_state({f"transformer.{leaf}": (H, H)}), tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert (adapter.dialect, adapter.scale_origin, adapter.notes) == ("diffusers", "dialect", ())
