"""The table of all families."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.flux import CHROMA, FLUX, FLUX_2
from nola_codec.adapters.families.hunyuan_video import HUNYUAN_VIDEO
from nola_codec.adapters.families.others import HIDREAM, LTX_2, LTX_VIDEO, LUMINA_2, QWEN_IMAGE, Z_IMAGE
from nola_codec.adapters.families.sd3 import SD3
from nola_codec.adapters.families.unet import SDXL, SDXL_REFINER, STABLE_DIFFUSION
from nola_codec.adapters.families.wan import WAN

FAMILIES: tuple[Family, ...] = (
    STABLE_DIFFUSION, SDXL, SDXL_REFINER, FLUX, CHROMA, FLUX_2, SD3, WAN, HUNYUAN_VIDEO, QWEN_IMAGE, LTX_VIDEO,
    LTX_2, LUMINA_2, Z_IMAGE, HIDREAM,
)  # fmt: skip
"""All families, in the order of messages."""
