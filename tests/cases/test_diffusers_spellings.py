"""Case 21: the spellings of keys that Diffusers loads. The right deltas are those that Diffusers itself applies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import deltas, dialect_of, read, write
from nola_codec.adapters.conversion import convert
from nola_codec.errors import AdapterError

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("base") / "unet"
    model.save_pretrained(path)
    return path


@cache
def _loaded(path: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(path)


def load_unet(path: Path) -> UNet2DConditionModel:
    return copy.deepcopy(_loaded(path))


def pair(stem: str, down: str, up: str, *, seed: int = 0, rank: int = 2, out: int = 8, size: int = 8) -> State:
    make = torch.Generator().manual_seed(seed)
    return {
        stem + down: torch.randn(rank, size, generator=make) * 0.3,
        stem + up: torch.randn(out, rank, generator=make) * 0.3,
    }


def weights_after(path: Path, state: State, alphas: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """Load an adapter with Diffusers into the UNet, and return its weights with the adapter fused in."""
    model = load_unet(path)
    StableDiffusionPipeline.load_lora_into_unet(dict(state), dict(alphas) if alphas else None, model)
    assert model.peft_config, "diffusers loaded nothing"
    model.fuse_lora()
    return {k.replace(".base_layer.", "."): v.numpy() for k, v in model.state_dict().items() if ".lora_" not in k}


def saved_by_diffusers(unet: Path, folder: Path, targets: list[str], alpha: float = 3.0) -> Path:
    """Train nothing, but save as the training scripts of Diffusers do: converted keys, and the settings in metadata."""
    model = load_unet(unet)
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    model.add_adapter(config)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, **_collate_lora_metadata({"unet": model}))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("targets", [["to_k", "to_q"], ["to_k", "to_out.0", "conv1"]])
def test_what_diffusers_saves_today_is_merged_as_diffusers_applies_it(
    unet: Path, tmp_path: Path, targets: list[str]
) -> None:
    """Attention layers become ``.lora.down``; other layers keep ``.lora_A``; the scaling 1.5 is in the metadata."""
    source = saved_by_diffusers(unet, tmp_path / "lora", targets)
    keys = set(load_file(source))
    assert any(key.endswith(".lora.down.weight") for key in keys)
    assert any(key.endswith(".lora_A.weight") for key in keys) == ("conv1" in targets)

    nola_codec.encode(source, tmp_path / "a.nola", nmse=0.01)
    written = tmp_path / "again.safetensors"
    nola_codec.decode(tmp_path / "a.nola", written)
    assert set(load_file(written)) == keys
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=unet)

    model = load_unet(unet)
    state, _, metadata = StableDiffusionPipeline.lora_state_dict(str(written), return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, None, model, metadata=metadata)
    model.fuse_lora()
    right = {k.replace(".base_layer.", "."): v for k, v in model.state_dict().items() if ".lora_" not in k}
    before, merged = load_unet(unet).state_dict(), load_unet(tmp_path / "merged").state_dict()
    moved = [key for key in right if not torch.equal(before[key], right[key])]
    assert len(moved) >= 8
    for key in right:
        torch.testing.assert_close(merged[key], right[key], rtol=1e-6, atol=1e-6)


SPELLINGS = {
    "0.22 to 0.24": (f"unet.{ATTENTION}.to_q.lora", "to_q"),
    "0.22, output": (f"unet.{ATTENTION}.to_out.0.lora", "to_out.0"),
    "processor": (f"unet.{ATTENTION}.processor.to_q_lora", "to_q"),
    "processor, output": (f"unet.{ATTENTION}.processor.to_out_lora", "to_out.0"),
    "without processor": (f"unet.{ATTENTION}.to_v_lora", "to_v"),
    "processor and dot": (f"unet.{ATTENTION}.processor.to_k.lora", "to_k"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_of_an_attention_layer_is_the_layer_that_diffusers_takes(
    spelling: str, unet: Path, tmp_path: Path
) -> None:
    stem, module = SPELLINGS[spelling]
    state = pair(stem, ".down.weight", ".up.weight")
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert {k: t.shape for k, t in dialect_of(adapter).tensors(adapter).items()} == {
        k: v.shape for k, v in state.items()
    }
    (delta,) = deltas(adapter)
    assert dialect_of(adapter).path_of(delta.name) == f"unet.{ATTENTION}.{module}"
    right, before = weights_after(unet, state), load_unet(unet).state_dict()
    moved = [key for key in right if not np.array_equal(right[key], before[key].numpy())]
    assert moved == [f"{ATTENTION}.{module}.weight"]
    np.testing.assert_allclose(delta.dense(), right[moved[0]] - before[moved[0]].numpy(), atol=1e-6)

    other = convert(adapter, "diffusers")
    write(other, tmp_path / "b.safetensors")
    again = weights_after(unet, load_file(tmp_path / "b.safetensors"))
    np.testing.assert_allclose(again[moved[0]], right[moved[0]], atol=1e-7)


@pytest.mark.parametrize(
    ("stem", "path"),
    [
        (f"{TEXT}.self_attn.q_proj.lora_linear_layer", f"{TEXT}.self_attn.q_proj"),
        (f"{TEXT}.mlp.fc1.lora_linear_layer", f"{TEXT}.mlp.fc1"),
        (f"{TEXT}.self_attn.to_q_lora", f"{TEXT}.self_attn.q_proj"),
        (f"{TEXT}.self_attn.to_out_lora", f"{TEXT}.self_attn.out_proj"),
        ("text_encoder_2.text_projection.lora", "text_encoder_2.text_projection"),
    ],
)
def test_spellings_in_text_encoders(stem: str, path: str, tmp_path: Path) -> None:
    """The right path is that of Diffusers' own tables."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft

    state = pair(stem, ".down.weight", ".up.weight")
    if "text_projection" not in stem:
        hint = {"x.to_out_lora.down.weight": torch.zeros(1)} if "to_" in stem else {}
        assert f"{path}.lora_A.weight" in convert_state_dict_to_peft({**state, **hint})
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert [dialect_of(adapter).path_of(m.name) for m in adapter.modules] == [path]
    assert set(dialect_of(adapter).tensors(adapter)) == set(state)


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("alpha", [torch.tensor(6.0), torch.tensor(6), torch.tensor([6.0], dtype=torch.float16)])
def test_alphas_beside_down_and_up(alpha: torch.Tensor, with_others: bool, unet: Path, tmp_path: Path) -> None:
    """Diffusers calls the alpha of ``to_q.lora.down`` ``to_q.alpha``; both that and ``to_q.lora.alpha`` are read."""
    q, k = f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_k"
    state = pair(f"{q}.lora", ".down.weight", ".up.weight") | {f"{q}.alpha": alpha.clone()}
    state |= pair(f"{k}.lora", ".down.weight", ".up.weight", seed=1) | {f"{k}.lora.alpha": alpha.clone()}
    conv = f"unet.{ATTENTION}.to_v"
    if with_others:
        state |= pair(conv, ".lora_A.weight", ".lora_B.weight", seed=2) | {f"{conv}.alpha": alpha}
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert {m.scaling for m in adapter.modules} == {3.0}
    write(adapter, tmp_path / "b.safetensors")
    assert _equal(load_file(tmp_path / "b.safetensors"), state)
    factors = {key: value for key, value in state.items() if "alpha" not in key}
    names = [key.removesuffix(".lora_A.weight") for key in factors if key.endswith("lora_A.weight")]
    alphas = {f"{name}.alpha": 6.0 for name in (q, k, *names)}
    right, before = weights_after(unet, factors, alphas), load_unet(unet).state_dict()
    for delta in deltas(adapter):
        key = dialect_of(adapter).path_of(delta.name).removeprefix("unet.") + ".weight"
        np.testing.assert_allclose(delta.dense(), right[key] - before[key].numpy(), atol=2e-6)


def test_a_module_with_two_alphas_is_refused(tmp_path: Path) -> None:
    q = f"unet.{ATTENTION}.to_q"
    state = pair(f"{q}.lora", ".down.weight", ".up.weight")
    save_file(
        state | {f"{q}.alpha": torch.tensor(1.0), f"{q}.lora.alpha": torch.tensor(2.0)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(AdapterError, match="means the same alpha") as caught:
        read(tmp_path / "a.safetensors")
    assert caught.value.code == "duplicate-key"


def test_dora_of_attention_layers_keeps_its_magnitudes(unet: Path, tmp_path: Path) -> None:
    model = load_unet(unet)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False, use_dora=True))
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    state = {f"unet.{key}": value.contiguous() for key, value in state.items()}
    assert any("magnitude" in key for key in state)
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    write(adapter, tmp_path / "b.safetensors")
    assert _equal(load_file(tmp_path / "b.safetensors"), state)
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.01)
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=unet)
    assert caught.value.code == "merge-dora"


def test_bare_names_of_one_component_stay_bare(tmp_path: Path) -> None:
    """Files that `get_peft_model_state_dict` and `convert_state_dict_to_diffusers` made, without a prefix."""
    state = pair(f"{ATTENTION}.to_q.lora", ".down.weight", ".up.weight")
    state |= pair("down_blocks.0.attentions.0.proj_in", ".lora_A.weight", ".lora_B.weight", seed=1)
    save_file(state, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert {dialect_of(adapter).component_of(m.name) for m in adapter.modules} == {""}
    assert set(dialect_of(adapter).tensors(adapter)) == set(state)


def _equal(first: State, second: State) -> bool:
    same = first.keys() == second.keys()
    return same and all(torch.equal(first[k], v) and first[k].dtype == v.dtype for k, v in second.items())
