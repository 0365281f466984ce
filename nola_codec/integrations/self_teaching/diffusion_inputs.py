"""Inputs of the denoising models of Diffusers, drawn at random: noised latents, times, and embeddings of text.

The latents are images at random, noised as much as the time says. Embeddings of text have variance 1. A model sees
latents of a small side, since its layers are the same for all sides, and small latents cost less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.errors import EncodeError
from nola_codec.integrations.self_teaching.noise import draw_images

if TYPE_CHECKING:
    import torch

SIDE = 16
"""The side of the latents, where the model has no smaller one."""
TOKENS = 77
"""The number of tokens of a text."""
_POOLED = 1280
"""The numbers of the pooled text of SDXL."""


class Inputs(ABC):
    """Draws the inputs of one model.

    Attributes:
        name: The name of the kind of model, for the report.
        contents: What is drawn, for the report.
    """

    name = "model"

    def __init__(self, model: torch.nn.Module, schedule: Mapping[str, Any]) -> None:
        """Read what a model takes.

        Args:
            model: The model; its configuration says what it takes.
            schedule: The configuration of the pipeline's scheduler; empty if it is not known.

        Raises:
            EncodeError: ``base-model``: the model takes what is not drawn here.
        """
        self.config: Any = model.config
        self.device = next(model.parameters()).device
        self._schedule = schedule
        sample = getattr(self.config, "sample_size", None)
        self.side = min(SIDE, sample) if isinstance(sample, int) else SIDE
        self.contents = f"noised latents of {self.side}x{self.side}, times, {self.conditions}"
        self.check()

    conditions = "text embeddings"
    """What the model is told besides, for the report."""

    def check(self) -> None:
        """Raise EncodeError ``base-model`` for a model that takes what is not drawn here; by default none."""
        return

    def draw(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the keywords of one call of the model. Each number stands for one row, wherever it is drawn."""
        import torch

        rows = [self.draw_row(torch.Generator().manual_seed(number % (1 << 63))) for number in numbers]
        return {name: _stack([row[name] for row in rows], self.device) for name in rows[0]} | self.draw_shared()

    @abstractmethod
    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        """Return the inputs of one row, each with a first dimension of 1; dictionaries of tensors may be among them."""

    def draw_shared(self) -> dict[str, Any]:
        """Return the inputs that all rows share."""
        return {}

    def refuse(self, what: str) -> EncodeError:
        """Return the error for a model that takes something else."""
        message = f"this {self.name} takes {what}, which is not drawn here; give encode a TaskTuner (docs/training.md)"
        return EncodeError(message, code="base-model")

    def noised(self, channels: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (1, channels, side, side) with noise, and their time (1,), int64, by the rule of DDPM."""
        import torch

        betas = self._betas()
        time = torch.randint(0, len(betas), (1,), generator=generator)
        kept = torch.cumprod(1 - betas, 0)[time].float().reshape(1, 1, 1, 1)
        shape = (1, channels, self.side, self.side)
        clean = draw_images(shape, generator)
        return kept.sqrt() * clean + (1 - kept).sqrt() * torch.randn(shape, generator=generator), time

    def flowing(self, channels: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (1, channels, side, side) with noise, and their share of noise (1,), by the rule of flows."""
        import torch

        share = torch.sigmoid(torch.randn((1,), generator=generator))
        shape = (1, channels, self.side, self.side)
        clean = draw_images(shape, generator)
        mixed = (1 - share) * clean + share * torch.randn(shape, generator=generator)
        return mixed, share

    def _betas(self) -> torch.Tensor:
        """Return the variances of the noise of all steps, float64; by default those of Stable Diffusion."""
        import torch

        known = self._schedule if "beta_start" in self._schedule else {}
        first, last = float(known.get("beta_start", 0.00085)), float(known.get("beta_end", 0.012))
        count = int(known.get("num_train_timesteps", 1000))
        if not 0 < first <= last < 1 or not 0 < count <= 1 << 16:
            raise self.refuse(f"noise from {first} to {last} in {count} steps")
        if known.get("beta_schedule", "scaled_linear") == "scaled_linear":
            return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2
        return torch.linspace(first, last, count, dtype=torch.float64)


class _UNetInputs(Inputs):
    name = "UNet"

    def check(self) -> None:
        config = self.config
        if not isinstance(config.cross_attention_dim, int):
            raise self.refuse("several embeddings of text")
        if config.encoder_hid_dim_type not in (None, "text_proj"):
            raise self.refuse(f"embeddings of the type {config.encoder_hid_dim_type}")
        if config.class_embed_type is not None or config.addition_embed_type not in (None, "text_time"):
            raise self.refuse(f"embeddings of the type {config.class_embed_type or config.addition_embed_type}")

    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        import torch

        config = self.config
        latents, time = self.noised(config.in_channels, generator)
        width = config.encoder_hid_dim if config.encoder_hid_dim_type else config.cross_attention_dim
        row: dict[str, Any] = {"sample": latents, "timestep": time}
        row["encoder_hidden_states"] = torch.randn((1, TOKENS, width), generator=generator)
        if config.num_class_embeds is not None:
            row["class_labels"] = torch.randint(0, config.num_class_embeds, (1,), generator=generator)
        if config.addition_embed_type == "text_time":
            whole, step = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
            count = 5 if whole == _POOLED + 5 * step else 6
            side = 8.0 * self.side
            times = torch.tensor([[side, side, 0.0, 0.0, *([side, side] if count == 6 else [6.0])]])
            pooled = torch.randn((1, whole - count * step), generator=generator)
            row["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": times}
        return row


class _FluxInputs(Inputs):
    name = "Flux transformer"

    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        import torch

        config = self.config
        latents, share = self.flowing(config.in_channels // 4, generator)
        packed = torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)  # (1, places, in_channels)
        row = {
            "hidden_states": packed,
            "timestep": share,
            "encoder_hidden_states": torch.randn((1, TOKENS, config.joint_attention_dim), generator=generator),
            "pooled_projections": torch.randn((1, config.pooled_projection_dim), generator=generator),
        }
        if config.guidance_embeds:
            row["guidance"] = 1 + 4 * torch.rand((1,), generator=generator)
        return row

    def draw_shared(self) -> dict[str, Any]:
        import torch

        side = self.side // 2
        places = torch.zeros(side, side, 3)
        places[..., 1] += torch.arange(side)[:, None]
        places[..., 2] += torch.arange(side)[None]
        return {"img_ids": places.reshape(-1, 3).to(self.device), "txt_ids": torch.zeros(TOKENS, 3).to(self.device)}


class _StableDiffusion3Inputs(Inputs):
    name = "Stable Diffusion 3 transformer"

    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        import torch

        config = self.config
        latents, share = self.flowing(config.in_channels, generator)
        return {
            "hidden_states": latents,
            "timestep": 1000 * share,
            "encoder_hidden_states": torch.randn((1, TOKENS, config.joint_attention_dim), generator=generator),
            "pooled_projections": torch.randn((1, config.pooled_projection_dim), generator=generator),
        }


class _DiTInputs(Inputs):
    name = "DiT"
    conditions = "classes"

    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        import torch

        latents, time = self.noised(self.config.in_channels, generator)
        classes = torch.randint(0, self.config.num_embeds_ada_norm, (1,), generator=generator)
        return {"hidden_states": latents, "timestep": time, "class_labels": classes}


class _PixArtInputs(Inputs):
    name = "PixArt transformer"

    def check(self) -> None:
        if self.config.caption_channels is None:
            raise self.refuse("no captions")

    def draw_row(self, generator: torch.Generator) -> dict[str, Any]:
        import torch

        latents, time = self.noised(self.config.in_channels, generator)
        row: dict[str, Any] = {"hidden_states": latents, "timestep": time}
        row["encoder_hidden_states"] = torch.randn((1, TOKENS, self.config.caption_channels), generator=generator)
        side = 8.0 * self.side
        row["added_cond_kwargs"] = {
            "resolution": torch.tensor([[side, side]]), "aspect_ratio": torch.tensor([[1.0]]),
        }  # fmt: skip
        return row


MODELS: Mapping[str, type[Inputs]] = {
    "UNet2DConditionModel": _UNetInputs,
    "FluxTransformer2DModel": _FluxInputs,
    "SD3Transformer2DModel": _StableDiffusion3Inputs,
    "DiTTransformer2DModel": _DiTInputs,
    "PixArtTransformer2DModel": _PixArtInputs,
}
"""The inputs of each model, by the name of its class."""


def _stack(rows: Sequence[Any], device: torch.device) -> Any:
    """Join the rows of one input."""
    import torch

    if isinstance(rows[0], dict):
        return {name: _stack([row[name] for row in rows], device) for name in rows[0]}
    return torch.cat(list(rows)).to(device)
