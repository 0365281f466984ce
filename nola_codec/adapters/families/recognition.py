"""Find the family of an adapter from the names and shapes of its modules, its metadata and its base model.

No family is guessed. Where several families have modules of these names, they count as one as long as the result is the
same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nola_codec.adapters.families.catalog import FAMILIES
from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.names import ModuleName
from nola_codec.adapters.families.rule import Match
from nola_codec.adapters.families.text_encoders import find_in_text_encoder
from nola_codec.errors import AdapterError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Hints:
    """What is known about the base model of an adapter.

    Attributes:
        metadata: The metadata of the adapter's file.
        config: ``config.json`` of the base model, or what is known of it. ``_class_name`` is its class.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_class(self) -> str:
        """The class of the base model in Diffusers or Transformers; ``""`` if it is not known."""
        return str(self.config.get("_class_name", ""))


@dataclass(frozen=True)
class NamedModule:
    """A module of an adapter.

    Attributes:
        key: The name in the adapter.
        name: The name, taken apart.
        out, inputs: The shape of the delta, with kernels flattened.
    """

    key: str
    name: ModuleName
    out: int
    inputs: int

    @property
    def width(self) -> int:
        """The size of the hidden state, if the module maps it to itself or to something larger."""
        return min(self.out, self.inputs)


def match_denoiser(family: Family, module: NamedModule) -> Match | None:
    """Return the match of a module of the denoising model, if a family has one of its name and shape."""
    match = family.find(module.name.path, is_flat=module.name.is_flat)
    if match is None or (match.part is None and match.rule.row_counts(module.out, module.inputs) is None):
        return None
    return match


def match_text(module: NamedModule) -> tuple[str, Match] | None:
    """Return ``"clip"`` or ``"t5"`` and the match of a module of a text encoder, or None."""
    return find_in_text_encoder(module.name.path, is_flat=module.name.is_flat)


def candidates(modules: Sequence[NamedModule], hints: Hints) -> tuple[Family, ...]:
    """Return the families that have all of these modules, or those of the base model's class if it is known.

    Args:
        modules: Modules of one denoising model.
        hints: What is known about the base model.

    Raises:
        AdapterError: ``base-mismatch``: the class of the base model is known, and it has no such module.
    """
    of_class = tuple(family for family in FAMILIES if family.is_configured_in(hints.config))
    fitting = [
        family for family in of_class or FAMILIES if all(match_denoiser(family, module) for module in modules)
    ]  # fmt: skip
    if of_class and not fitting:
        first = next(m for m in modules if not any(match_denoiser(family, m) for family in of_class))
        message = f"the base model is a {hints.model_class} ({of_class[0].title}), which has no such module"
        raise AdapterError(message, code="base-mismatch", where=first.key)
    return tuple(fitting)


def agreed_result(
    families: Sequence[Family],
    modules: Sequence[NamedModule],
    hints: Hints,
    result: Callable[[Family], Result],
) -> Result:
    """Return the result that is the same for all families, or else for the one family that the evidence names.

    The evidence is the metadata, and then the number of inputs of the modules, if one family alone has it.

    Args:
        families: The families that have all of the modules; at least one.
        modules: The modules of the denoising model.
        hints: What is known about the base model.
        result: The result for one family. Results are compared with ``==``.

    Raises:
        AdapterError: ``needs-base``: several families have different results.
    """
    tried = [(family, result(family)) for family in families]
    named = [each for each in tried if each[0].is_named_in(hints.metadata)]
    inputs = {module.inputs for module in modules}
    wide = [each for each in tried if inputs & set(each[0].widths)]
    for group in (tried, named, wide):
        if group and all(each[1] == group[0][1] for each in group):
            return group[0][1]
    titles = ", ".join(family.title for family in families)
    message = (
        f"models of several families have modules of these names ({titles}), and they have other names for them in "
        "the target. Give the base model with --base: a directory of Diffusers, or the original file"
    )
    raise AdapterError(message, code="needs-base", where=modules[0].key)
