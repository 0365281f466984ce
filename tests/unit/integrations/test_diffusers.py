"""Files in live pipelines and models of Diffusers: the bits of the decoded file, of any dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

import nola_codec
import nola_codec.numpy
from nola_codec.errors import AdapterError

diffusers = pytest.importorskip("diffusers")
from nola_codec.integrations import diffusers as nola_diffusers  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}
MODULES = {
    f"down_blocks.0.attentions.0.transformer_blocks.0.{name}": shape
    for name, shape in {"attn1.to_q": (8, 8), "attn2.to_k": (8, 6), "ff.net.2": (8, 32)}.items()
}
TEXT = {"text_model.encoder.layers.0.self_attn.q_proj": (8, 8)}


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1, cross_attention_dim=6, attention_head_dim=4, norm_num_groups=4, sample_size=8,
    )  # fmt: skip


def pipeline() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=CLIPTextModel(config), tokenizer=None, unet=unet(), safety_checker=None,
        scheduler=diffusers.DDIMScheduler(), feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def factors(modules: dict[str, tuple[int, int]], rank: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.standard_normal((rank, shape[1])).astype(np.float32),
            rng.standard_normal((shape[0], rank)).astype(np.float32),
        )
        for name, shape in modules.items()
    }


def kohya(alpha: float = 2.0, **others: dict[str, tuple[int, int]]) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    for prefix, modules in {"lora_unet": MODULES, **others}.items():
        for name, (a, b) in factors(modules).items():
            stem = f"{prefix}_{name.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": np.float32(alpha)}
    return nola_codec.numpy.save(tensors, **RATE)


def present(**options: Any) -> bytes:
    pairs = factors(MODULES)
    tensors = {f"unet.{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
    tensors |= {f"unet.{name}.lora_B.weight": b for name, (_, b) in pairs.items()}
    return nola_codec.numpy.save(tensors, **RATE, **options)


def output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    sample, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 6, generator=generator)
    with torch.no_grad():
        found: torch.Tensor = model(sample, 3, text).sample
    return found


def text_output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(6)[None]).last_hidden_state
    return found


@pytest.mark.parametrize("alpha", [6, 9])  # a scaling that could be multiplied into lora_B, and one that could not
@pytest.mark.parametrize("option", ["lora_bias", "use_dora"])
def test_tensors_beside_the_factors(option: str, alpha: int, tmp_path: Path) -> None:
    """A bias of lora_B is scaled too, and metadata must say that it is there."""
    model = unet()
    model.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=["to_q"], **{option: True}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_lora_adapter(tmp_path / "saved")
    file, _ = nola_codec.encode_bytes(tmp_path / "saved" / "pytorch_lora_weights.safetensors", nmse=1e-3)
    loaded, peer = unet(), unet()
    nola_diffusers.load(loaded, file)
    nola_codec.decode(file, tmp_path / "decoded.safetensors")
    peer.load_lora_adapter(str(tmp_path / "decoded.safetensors"), prefix=None, use_safetensors=True)
    assert torch.equal(output(loaded), output(peer))  # a file of one model, whose names have no component
    converted, _ = nola_codec.encode_bytes(model, nmse=1e-3)  # names of PEFT
    again = unet()
    nola_diffusers.load(again, converted)
    assert (output(again) - output(model)).norm() < 0.1 * (output(model) - output(unet())).norm()
    lost, effect = output(loaded) - output(model), output(model) - output(unet())
    assert lost.norm() < 0.1 * effect.norm()


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_a_model_gets_the_bits_of_the_decoded_file(dialect: str, tmp_path: Path) -> None:
    data = kohya() if dialect == "kohya" else present(scale=0.7)
    nola_codec.decode(data, tmp_path / "decoded", format="diffusers")
    peer, model = unet(), unet()
    before = output(model)
    peer.load_lora_adapter(str(tmp_path / "decoded"), prefix="unet", adapter_name="a", use_safetensors=True)
    nola_diffusers.load(model, data, adapter_name="a")
    assert torch.equal(output(model), output(peer))
    assert not torch.equal(output(model), before)
    scaling = model.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.scaling["a"]
    assert scaling == pytest.approx(2 / 3 if dialect == "kohya" else 0.7)
    with pytest.raises(AdapterError, match="unet has an adapter 'a'; replace=True replaces it") as caught:
        nola_diffusers.load(model, data, adapter_name="a")
    assert caught.value.code == "adapter-exists"
    other = kohya(alpha=5.0)
    nola_diffusers.load(model, other, adapter_name="a", replace=True)
    again = unet()
    nola_diffusers.load(again, other, adapter_name="a")
    assert torch.equal(output(model), output(again))
    nola_diffusers.load(model, data, adapter_name="b")
    assert set(model.peft_config) == {"a", "b"}


def test_a_pipeline_gets_all_components(tmp_path: Path) -> None:
    data = kohya(lora_te=TEXT)
    nola_codec.decode(data, tmp_path / "decoded", format="diffusers")
    peer, pipe = pipeline(), pipeline()
    before = text_output(pipe.text_encoder)
    peer.load_lora_weights(str(tmp_path / "decoded"), weight_name="pytorch_lora_weights.safetensors", adapter_name="a")
    nola_diffusers.load(pipe, data, adapter_name="a")
    assert torch.equal(output(pipe.unet), output(peer.unet))
    assert torch.equal(text_output(pipe.text_encoder), text_output(peer.text_encoder))
    assert not torch.equal(text_output(pipe.text_encoder), before)
    nola_diffusers.load(pipe, data, adapter_name="a", replace=True)
    assert torch.equal(text_output(pipe.text_encoder), text_output(peer.text_encoder))


def test_what_does_not_fit(tmp_path: Path) -> None:
    wide = {name: (shape[0] + 1, shape[1]) for name, shape in MODULES.items()}
    pairs = factors(wide)
    tensors = {f"unet.{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
    tensors |= {f"unet.{name}.lora_B.weight": b for name, (_, b) in pairs.items()}
    wrong = nola_codec.numpy.save(tensors, scale=1.0, **RATE)
    path = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"
    far = {f"{path}.lora_A.weight": np.ones((2, 8), np.float32), f"{path}.lora_B.weight": np.ones((8, 2), np.float32)}
    elsewhere = nola_codec.numpy.save(far, scale=1.0, **RATE)
    both = kohya(lora_te=TEXT)
    pipe = pipeline()
    pipe.text_encoder = None
    model = unet()
    names = [name for name, _ in model.named_modules()]
    for target, data, code, words in (
        (model, wrong, "base-mismatch", "it does not fit the model: .*size mismatch"),
        (model, elsewhere, "base-mismatch", "it does not fit the model"),
        (model, both, "base-mismatch", r"several components \(.*\); give the pipeline"),
        (pipe, both, "base-mismatch", "modules of text_encoder, and StableDiffusionPipeline has no such component"),
        (torch.nn.Linear(2, 2), both, "source-type", "found Linear"),
    ):
        with pytest.raises(AdapterError, match=words) as caught:
            nola_diffusers.load(target, data)
        assert caught.value.code == code
    assert [name for name, _ in model.named_modules()] == names
    assert not getattr(model, "peft_config", None)
