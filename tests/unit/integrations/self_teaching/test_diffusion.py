"""An adapter of a denoising model of Diffusers teaches its own code on inputs at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import nola_codec
from nola_codec.cli import main
from nola_codec.encoder.report import TaskReport
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.integrations.self_teaching import diffusion, self_tuner
from nola_codec.training import TaskSettings

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = TaskSettings(steps=2)
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "to_add_out", "add_q_proj", "ff.net.2", "proj_mlp")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")
    monkeypatch.setattr(diffusion, "HELD_OUT", 3)
    monkeypatch.setattr(diffusion, "VALIDATION", 2)


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{
        "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": 4,
        "norm_num_groups": 4, "sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **options,
    })  # fmt: skip


def flux(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**{
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4,
        "joint_attention_dim": 12, "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4), **options,
    })  # fmt: skip


def sdxl() -> Any:
    return unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20
    )


def sd3() -> Any:
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=12,
        caption_projection_dim=32, pooled_projection_dim=10, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip


def dit() -> Any:
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=20,
    )  # fmt: skip


def pixart() -> Any:
    torch.manual_seed(0)
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=32, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip


MODELS: dict[str, Callable[[], Any]] = {
    "UNet": unet, "SDXL": sdxl, "Flux transformer": flux, "guided": lambda: flux(guidance_embeds=True),
    "Stable Diffusion 3 transformer": sd3, "DiT": dit, "PixArt transformer": pixart,
}  # fmt: skip


def factors(model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """lora_A (4, in) and lora_B (out, 4) of the attention layers, with falling singular values."""
    rng = np.random.default_rng(0)
    fall = 0.5 ** np.arange(4)
    return {
        name: (
            (fall[:, None] * rng.standard_normal((4, layer.in_features)) / layer.in_features**0.5).astype(np.float32),
            (2 * fall * rng.standard_normal((layer.out_features, 4))).astype(np.float32),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(LAYERS)
    }


def kohya(model: Any, **others: tuple[int, int]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(1)
    pairs = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in factors(model).items()}
    for name, (out, width) in others.items():
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, width), (out, 4)))
        pairs[name] = (a, b)
    for stem, (a, b) in pairs.items():
        tensors |= {
            f"{stem}.lora_down.weight": a,
            f"{stem}.lora_up.weight": b,
            f"{stem}.alpha": np.array(4, np.float32),
        }
    return tensors


def present(model: Any, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    pairs = factors(model)
    tensors = {f"{prefix}{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
    return tensors | {f"{prefix}{name}.lora_B.weight": b for name, (_, b) in pairs.items()}


def save(model: Any, tensors: dict[str, np.ndarray], folder: Path) -> tuple[Path, Path]:
    """The folder of the model, as Diffusers saves it, and the file of the adapter."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder / "model")
    save_file(tensors, folder / "lora.safetensors")
    return folder / "model", folder / "lora.safetensors"


def encode(folders: tuple[Path, Path], size: int, **options: Any) -> TaskReport:
    base, lora = folders
    tuner = self_tuner(base, lora, **{"settings": SETTINGS, **options})
    report = nola_codec.encode(lora, fit="task", tuner=tuner, size=size)
    assert report.task is not None
    assert report.bytes <= size
    return report.task


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_each_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    tuner = self_tuner(*save(model, present(model, ""), tmp_path), settings=TaskSettings(steps=2))
    report = nola_codec.encode(tmp_path / "lora.safetensors", fit="task", tuner=tuner, size=3000)
    task = report.task
    assert task is not None
    # The base model misses about the whole change; what is left out of a file of a fifth of the adapter is small.
    assert 0 == task.adapter < task.file < 0.5 < task.base < 1.5
    kind = {"SDXL": "UNet", "guided": "Flux transformer"}.get(name, name)
    assert task.data.startswith(f"a {kind} of Diffusers, on 4 inputs drawn at random (noised latents of ")
    assert (task.rows, task.unit) == (3, "of the squared change that the adapter makes to the output")


@pytest.mark.slow
def test_diffusers_agrees_that_the_output_is_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "HELD_OUT", 8)
    monkeypatch.setattr(diffusion, "VALIDATION", 4)
    model = flux(attention_head_dim=16, num_attention_heads=8, axes_dims_rope=(4, 4, 8))
    base, lora = save(model, present(model), tmp_path)
    tuner = self_tuner(base, lora, batch=8, settings=TaskSettings(steps=24, every=8))
    task = nola_codec.encode(lora, tmp_path / "a.nola", fit="task", tuner=tuner, size=2000).task
    assert task is not None
    assert 0 == task.adapter < task.file < 0.8 * task.start
    nola_codec.encode(lora, tmp_path / "w.nola", size=2000)
    for name in ("a", "w"):
        nola_codec.decode(tmp_path / f"{name}.nola", tmp_path / f"{name}.safetensors")
    generator = torch.Generator().manual_seed(9)
    inputs = {
        "hidden_states": torch.randn(8, 16, 16, generator=generator), "timestep": torch.arange(8) / 8,
        "encoder_hidden_states": torch.randn(8, 5, 12, generator=generator),
        "pooled_projections": torch.randn(8, 10, generator=generator),
        "img_ids": torch.arange(48).reshape(16, 3) // 12.0, "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip

    def output(name: str) -> torch.Tensor:
        loaded = diffusers.FluxTransformer2DModel.from_pretrained(base)
        loaded.load_lora_adapter(str(tmp_path / name), prefix="transformer", use_safetensors=True)
        with torch.no_grad():
            made: torch.Tensor = loaded(**inputs).sample
        return made

    wanted = output(lora.name)
    errors = [float((output(name) - wanted).square().sum()) for name in ("a.safetensors", "w.safetensors")]
    assert errors[0] < 0.8 * errors[1]


def test_a_pipeline_and_its_text_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = unet()
    tensors = kohya(model, lora_te_text_model_encoder_layers_0_self_attn_q_proj=(16, 16))
    _, lora = save(model, tensors, tmp_path)
    pipeline = tmp_path / "pipeline"
    model.save_pretrained(pipeline / "unet")
    (pipeline / "model_index.json").write_text("{}")
    (pipeline / "scheduler").mkdir()
    schedule = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 100}
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    command = ["encode", str(lora), "-n", "--base", str(pipeline), "--data", "self", "--steps", "2", "--size", "2500B"]
    with pytest.raises(SystemExit):
        main([*command, "--json", "-q"])
    task = json.loads(capsys.readouterr().out)["task"]
    assert task["data"].endswith("The one module of text_encoder keeps the code of its weights.")
    assert 0 < task["file"] < task["base"]
    other = encode((tmp_path / "model", lora), 2500)  # another schedule, other noise
    assert other.base != task["base"]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet()
    base, lora = save(model, present(model, "unet."), tmp_path)
    with pytest.raises(EncodeError, match="leave --prompts out") as caught:
        self_tuner(base, lora, prompts=lora)
    assert caught.value.code == "task-data"
    _, text = save(model, present(model, "text_encoder."), tmp_path / "text")
    with pytest.raises(EncodeError, match="no module of this model") as caught:
        self_tuner(base, text)
    assert caught.value.code == "task-form"
    small = unet(cross_attention_dim=8)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(AdapterError) as wrong:
        self_tuner(tmp_path / "small", lora)
    assert wrong.value.code == "base-mismatch"
    odd = unet(class_embed_type="timestep")
    odd.save_pretrained(tmp_path / "odd")
    with pytest.raises(EncodeError, match="this UNet takes embeddings of the type timestep, which is not drawn here"):
        self_tuner(tmp_path / "odd", lora)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_class_name": "UNet3DConditionModel"}))
    with pytest.raises(EncodeError, match=r"with one model of UNet2DConditionModel, .*; found UNet3DConditionModel"):
        self_tuner(base, lora)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    with pytest.raises(EncodeError, match="found no configuration of one"):
        self_tuner(tmp_path / "empty", lora)
