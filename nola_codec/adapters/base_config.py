"""Read what a conversion needs to know about a base model: ``config.json``, or what names of weights tell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nola_codec.adapters.families.catalog import FAMILIES
from nola_codec.adapters.families.names import split_name
from nola_codec.errors import AdapterError
from nola_codec.stores.files import read_json
from nola_codec.stores.safetensors_io import SafetensorsFile

_PIPELINE = "model_index.json"
_DENOISERS = ("unet", "transformer")


def read_base_config(base: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return ``config.json`` of a base model.

    Args:
        base: A model directory; a pipeline of Diffusers, whose UNet or transformer counts; or a lone safetensors file
            of an image or video model, whose weights tell its class.

    Raises:
        AdapterError: ``needs-base``: the names of the weights do not tell the model's family; and those of `read_json`
            and `SafetensorsFile`.
    """
    path = Path(base)
    if path.is_file():
        with SafetensorsFile(path) as file:
            return _config_of_names(file.tensors, str(path))
    if (path / _PIPELINE).is_file():
        path = next((path / name for name in _DENOISERS if (path / name).is_dir()), path)
    return read_json(path / "config.json")


def _config_of_names(weights: Iterable[str], where: str) -> Mapping[str, Any]:
    modules = [split_name(name.rpartition(".")[0]) for name in weights]
    found = {
        family.title: sum(
            family.find(m.path, is_flat=False) is not None for m in modules if m.is_of_denoiser or not m.place
        )
        for family in FAMILIES
    }
    most = max(found.values())
    best = [family for family in FAMILIES if found[family.title] == most]
    if not most or len(best) > 1:
        known = " or ".join(family.title for family in best) if most else "none that is known here"
        message = f"the names of the weights do not tell which model it is ({known}); give a directory of Diffusers"
        raise AdapterError(message, code="needs-base", where=where)
    types = {"down_block_types": list(best[0].down_block_types)} if best[0].down_block_types else {}
    return {"_class_name": best[0].classes[0], **types}
