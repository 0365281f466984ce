"""`Family`: the names of the modules of one family of image or video models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from nola_codec.adapters.families.rule import Match, Rule, RuleTable


@dataclass(frozen=True)
class Family:
    """The names of the modules of a denoising model, and of the text encoders beside it.

    Attributes:
        title: The name in messages.
        component: The component of a Diffusers pipeline that holds the model.
        classes: The names of its classes in Diffusers, as ``_class_name`` in ``config.json``.
        architectures: A pattern that is searched in the metadata that tools write about the base model, in lower case.
        rules: The rules for its modules.
        text_encoders: The component that each text encoder of kohya's names is in, by kohya's prefix.
        loaded_by_diffusers: The components that the pipelines of Diffusers load adapters into.
        trained_as: The layout whose names the tools that write kohya's dialect take for this model.
        widths: The numbers of inputs that the attention of the published models has, to tell families apart.
        readers: Who loads an adapter with the original names.
        down_block_types: For a UNet, the option of this name in its configuration, which tells UNets apart.
    """

    title: str
    component: Literal["unet", "transformer"]
    classes: tuple[str, ...]
    architectures: str
    rules: tuple[Rule, ...]
    text_encoders: Mapping[str, str] = field(default_factory=dict)
    loaded_by_diffusers: tuple[str, ...] = ("transformer",)
    trained_as: Literal["original", "diffusers"] = "original"
    widths: tuple[int, ...] = ()
    readers: str = "ComfyUI and musubi-tuner"
    down_block_types: tuple[str, ...] = ()

    def is_configured_in(self, config: Mapping[str, Any]) -> bool:
        """Return True if ``config.json`` of a base model is that of a model of this family."""
        types = config.get("down_block_types")
        fits = not self.down_block_types or not isinstance(types, list) or tuple(types) == self.down_block_types
        return config.get("_class_name") in self.classes and fits

    def find(self, name: str, *, is_flat: bool) -> Match | None:
        """Return the match of a module of the denoising model by its path, or None.

        Args:
            name: The path without prefixes.
            is_flat: True if underscores stand for dots.
        """
        return self._table.find(name, is_flat=is_flat)

    def is_named_in(self, metadata: Mapping[str, str]) -> bool:
        """Return True if an adapter's metadata says that its base model is of this family."""
        keys = ("modelspec.architecture", "ss_base_model_version", "ss_network_module")
        text = " ".join(str(metadata.get(key, "")) for key in keys).lower()
        return re.search(self.architectures, text) is not None

    @cached_property
    def _table(self) -> RuleTable:
        return RuleTable(self.rules)
