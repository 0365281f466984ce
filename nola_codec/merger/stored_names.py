"""Find a tensor of a base model by the name that an adapter, or a checkpoint of another kind, gives it.

One weight has many names. It is ``down_blocks.0.attn.to_q.weight`` in a UNet's directory, ``unet.down_blocks...`` or
``lora_unet_down_blocks_0_attn_to_q`` in an adapter, and ``model.diffusion_model...`` in a lone checkpoint of a whole
pipeline. So two names mean the same tensor if they are equal

1. as they are;
2. after dots have become underscores, in all or in a part of the name (kohya flattens names in this way);
3. after outer prefixes that are known (`OUTER_PREFIXES`) were taken away from either;
4. after one or two leading parts of any name were taken away from either, such as ``transformer`` of
   ``transformer.h.0.attn`` in GPT-2.

The first of these ways that finds something decides. It must find one tensor: nobody can choose between two. A name
that tells the component of a pipeline never means a tensor whose own prefix tells another component.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

DENOISERS = frozenset({"unet", "transformer", "prior"})
"""The components that are denoising models. Tools call such a model "unet" or "transformer", whichever it is."""

_ANY: frozenset[str] = frozenset()

OUTER_PREFIXES: Mapping[str, frozenset[str]] = {
    "model.diffusion_model": DENOISERS,
    "diffusion_model": DENOISERS,
    "unet": DENOISERS,
    "transformer": DENOISERS,
    "prior": DENOISERS,
    "transformer_2": frozenset({"transformer_2"}),
    "controlnet": frozenset({"controlnet"}),
    "control_model": frozenset({"controlnet"}),
    "text_encoder": frozenset({"text_encoder"}),
    "text_encoder_2": frozenset({"text_encoder_2"}),
    "text_encoder_3": frozenset({"text_encoder_3"}),
    # Stable Diffusion 1 and 2, SDXL, and the all-in-one files of SD3 and Flux.
    "cond_stage_model.transformer": frozenset({"text_encoder"}),
    "cond_stage_model": frozenset({"text_encoder"}),
    "conditioner.embedders.0.transformer": frozenset({"text_encoder"}),
    "conditioner.embedders.0": frozenset({"text_encoder"}),
    "conditioner.embedders.1": frozenset({"text_encoder_2"}),
    "text_encoders.clip_l.transformer": frozenset({"text_encoder"}),
    "text_encoders.clip_g.transformer": frozenset({"text_encoder_2"}),
    "text_encoders.t5xxl.transformer": frozenset({"text_encoder_2", "text_encoder_3"}),
    "first_stage_model": frozenset({"vae"}),
    "vae": frozenset({"vae"}),
    "model_ema": frozenset({"ema"}),
    "model": _ANY,
    "module": _ANY,
    "_orig_mod": _ANY,
    "net": _ANY,
    "dit": _ANY,
    "base_model": _ANY,
}  # fmt: skip
"""The components of a pipeline that each outer prefix may stand for; an empty set means any component."""

# kohya's prefixes, and the model's own prefix where a tool has flattened it too. They end where the module begins.
_FLAT_PREFIXES: Mapping[str, frozenset[str]] = {
    "lora_unet": DENOISERS,
    "lora_transformer": DENOISERS,
    "lora_prior": DENOISERS,
    "lora_te": frozenset({"text_encoder"}),
    "lora_te1": frozenset({"text_encoder"}),
    "lora_te2": frozenset({"text_encoder_2"}),
    "lora_te3": frozenset({"text_encoder_2", "text_encoder_3"}),  # T5: the third in SD3, the second in Flux
    "lycoris": _ANY,
    "model_diffusion_model": DENOISERS,
    "diffusion_model": DENOISERS,
}

_MAX_PREFIXES = 4
"""The most known prefixes that are taken away from one name, since a stranger's name may repeat one without end."""

_WAYS = ("identical", "flattened", "known prefix", "leading parts")


@dataclass(frozen=True)
class _Name:
    """A name, and the shorter names that it may stand for, all flattened.

    Attributes:
        components: The components of a pipeline that the name may belong to; an empty set means any.
        known: The whole name, and what is left of it without known prefixes.
        shorter: What is left of it without one leading part, and without two.
    """

    components: frozenset[str]
    known: tuple[str, ...]
    shorter: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> _Name:
        """Read one name."""
        rests, components = [name], _ANY
        for found, rest in _strip(name):
            components = components or found
            rests.append(rest)
        parts = name.split(".")
        shorter = [".".join(parts[dropped:]) for dropped in (1, 2) if len(parts) - dropped >= 2]
        return cls(components, tuple(dict.fromkeys(map(_flatten, rests))), tuple(map(_flatten, shorter)))

    def may_mean(self, other: _Name) -> bool:
        """Return False if the two names tell different components."""
        return not self.components or not other.components or not self.components.isdisjoint(other.components)


class StoredNames:
    """The names of the stored tensors of a model, to be found by other names (see the top of this file)."""

    def __init__(self, stored: Iterable[str]) -> None:
        self._names = {name: _Name.parse(name) for name in stored}
        self._whole: dict[str, list[str]] = {}
        self._known: dict[str, list[str]] = {}
        self._shorter: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
        for name, parsed in self._names.items():
            self._whole.setdefault(parsed.known[0], []).append(name)
            for rest in parsed.known:
                self._known.setdefault(rest, []).append(name)
            for index, rest in zip(self._shorter, parsed.shorter, strict=False):
                index.setdefault(rest, []).append(name)

    def find(self, *names: str) -> str | None:
        """Return the stored tensor that the names mean; None if there is none, or more than one.

        Args:
            names: Names that the one tensor may have, such as ``a.norm.weight`` and ``a.norm``.
        """
        found = self.find_all(names)
        return found[0] if len(found) == 1 else None

    def find_all(self, names: Sequence[str]) -> list[str]:
        """Return all stored tensors that the names mean by the first of the ways that finds any."""
        parsed = [(name, _Name.parse(name)) for name in names]
        for way in range(len(_WAYS)):
            for name, query in parsed:
                found = [each for each in self._find_by(way, name, query) if query.may_mean(self._names[each])]
                if found:
                    return sorted(set(found))
        return []

    def tells(self, component: str) -> bool:
        """Return True if the prefixes of some stored tensors say that they belong to a component of a pipeline."""
        return any(component in name.components for name in self._names.values())

    def _find_by(self, way: int, name: str, query: _Name) -> Iterator[str]:
        if way == 0:
            yield from [name] if name in self._names else []
        elif way == 1:
            yield from self._whole.get(query.known[0], [])
        elif way == 2:
            for rest in query.known:
                yield from self._known.get(rest, [])
        else:
            for rest in query.known:
                for index in self._shorter:
                    yield from index.get(rest, [])
            for rest in query.shorter:
                yield from self._known.get(rest, [])


def components_of_name(name: str) -> frozenset[str]:
    """Return the components of a pipeline that the prefix of a name may stand for; an empty set means any."""
    return _Name.parse(name).components


def _strip(name: str) -> Iterator[tuple[frozenset[str], str]]:
    """Yield what is left of a name as known prefixes are taken away, and the components that each prefix means."""
    for _ in range(_MAX_PREFIXES):
        found = _outer_prefix(name)
        if found is None:
            return
        length, components = found
        name = name[length:]
        yield components, name


def _outer_prefix(name: str) -> tuple[int, frozenset[str]] | None:
    """Return the length of the longest known prefix of a name, with its end, and the components that it means."""
    parts = name.split(".", 4)
    for count in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in OUTER_PREFIXES and name[len(prefix) + 1 :] not in ("weight", "bias"):
            return len(prefix) + 1, OUTER_PREFIXES[prefix]
    for prefix in sorted(_FLAT_PREFIXES, key=len, reverse=True):
        if name.startswith((prefix + "_", prefix + ".")):
            return len(prefix) + 1, _FLAT_PREFIXES[prefix]
    return None


def _flatten(name: str) -> str:
    return name.replace(".", "_")
