"""Take the name of a module in an adapter apart: the component that a prefix names, and the path of the module."""

from __future__ import annotations

from dataclasses import dataclass

DENOISER = "denoiser"
"""The model that makes the image: a UNet or a transformer. Many prefixes do not say which."""

# kohya's prefixes. The names after them are flattened, or dotted as in some files of OneTrainer (`lora_te1.`).
_KOHYA = {
    "lora_unet": DENOISER, "lora_transformer": DENOISER, "lora_te": "te", "lora_te1": "te1", "lora_te2": "te2",
    "lora_te3": "te3",
}  # fmt: skip
# `lycoris_` is the prefix of SimpleTuner, and Wan's Fun models have two underscores. A longer prefix comes first.
_FLAT = {"lora_unet__": DENOISER, "lycoris_": DENOISER, **{f"{prefix}_": place for prefix, place in _KOHYA.items()}}
_DOTTED = {
    "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER,
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "transformer_2.": "transformer_2",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    # Whole pipelines in one file: Stable Diffusion 1 and 2, SDXL, and the files of ComfyUI.
    "cond_stage_model.transformer.": "te1",
    "cond_stage_model.model.": "te1",
    "conditioner.embedders.0.transformer.": "te1",
    "conditioner.embedders.0.model.": "te2",
    "conditioner.embedders.1.model.": "te2",
    "text_encoders.clip_l.transformer.": "te1",
    "text_encoders.clip_g.transformer.": "te2",
    "text_encoders.t5xxl.transformer.": "te3",
    # OneTrainer's files in the format of the Open Model Initiative.
    "clip_l.": "te1",
    "clip_g.": "te2",
    "t5.": "te3",
    **{f"{prefix}.": place for prefix, place in _KOHYA.items()},
}


@dataclass(frozen=True)
class ModuleName:
    """The name of a module, taken apart.

    Attributes:
        whole: The name as the adapter has it.
        place: `DENOISER`; or a text encoder, as the component of a pipeline or as kohya numbers it (``te2``); or
            ``transformer_2``; or ``""`` if no prefix tells.
        path: The rest of the name.
        is_flat: True if underscores stand for the dots of the path.
    """

    whole: str
    place: str
    path: str
    is_flat: bool

    @property
    def is_of_denoiser(self) -> bool:
        """True if the prefix says that the module is one of the denoising model."""
        return self.place in (DENOISER, "transformer_2")


def split_name(name: str) -> ModuleName:
    """Take a name apart; a name without a known prefix has the place ``""``."""
    if "." not in name:
        for prefix, place in _FLAT.items():
            if name.startswith(prefix):
                return ModuleName(name, place, name.removeprefix(prefix), True)
        return ModuleName(name, "", name, False)
    for prefix, place in _DOTTED.items():
        if name.startswith(prefix):
            return ModuleName(name, place, name.removeprefix(prefix), False)
    return ModuleName(name, "", name, False)
