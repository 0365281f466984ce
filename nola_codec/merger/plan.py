"""Plan a merge: decide which weights of a checkpoint change, and how.

This module decides about tied embeddings, biases and modules that are saved whole. `row_deltas` makes the rows that are
added to a weight, and `merged_model` writes the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.adapters.dialects.peft_config import is_saved_module
from nola_codec.checkpoints.checkpoint import WeightInfo
from nola_codec.checkpoints.embeddings import TiedEmbeddings, embedding_names, text_config, tied_embeddings
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.matching import resolve_places
from nola_codec.merger.misfits import Misfits
from nola_codec.merger.model_names import ModelNames
from nola_codec.merger.quantized_bases import require_unquantized, require_unquantized_targets
from nola_codec.merger.vocabulary import is_resized, is_resized_from, merged_vocabulary, require_no_delta
from nola_codec.merger.weight_places import Place
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import FLOAT_DTYPES, from_float64, to_float64

# Endings of the architectures of masked language models: each names its output embeddings in its own way.
_TIED_DECODERS = ("ForMaskedLM", "ForPreTraining")

_IN_A_BLOCK = re.compile(r"\.\d+\.[^.]+\.")
"""Matches the path of a tensor of a module in a numbered block."""


@dataclass(frozen=True)
class MergePlan:
    """The changes that a merge will make to a checkpoint. `plan_merge` makes the plan, and has checked all of it.

    Attributes:
        places: The place of each delta, by weight name.
        replaced: Tensors that take the place of a weight (modules_to_save), by weight name; new names are added.
        reloaded: Tensors that replace stored tensors of the base (trained biases, embeddings saved with the adapter),
            by stored name. They also apply to weights that are tied to the stored tensor.
        bias_terms: The ``lora_B.bias`` that is added to a bias, and its scaling, by the name of the bias.
        untied: The stored tensor that a weight was tied to, by the name of the weight, which is now written separately.
        unties: True if ``tie_word_embeddings`` is turned off.
        vocabulary: The number of rows of the embeddings, if the adapter brings embeddings with another number.
    """

    places: Mapping[str, Place]
    replaced: Mapping[str, RawTensor] = field(default_factory=dict)
    reloaded: Mapping[str, RawTensor] = field(default_factory=dict)
    bias_terms: Mapping[str, tuple[RawTensor, float]] = field(default_factory=dict)
    untied: Mapping[str, str] = field(default_factory=dict)
    unties: bool = False
    vocabulary: int | None = None


def plan_merge(
    checkpoint: BaseWeights,
    targets: Iterable[MergeTarget],
    raw: Mapping[str, RawTensor] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    *,
    stays_tied: bool = False,
    names: ModelNames | None = None,
) -> MergePlan:
    """Find a place in a checkpoint for every part of an adapter.

    The merged model computes what the base model computes with the adapter on. An adapter on one of two tied
    embeddings changes only that one. So the two are separated: the missing weight is written, and
    ``tie_word_embeddings`` is turned off. (PEFT's in-place merge adds the delta to both, and warns that the result is
    off; for modules_to_save it unties, as here.)

    Args:
        checkpoint: The base model.
        targets: The deltas.
        raw: The carried tensors, by key.
        adapter_config: PEFT's configuration.
        stays_tied: True if the deltas belong to stored tensors and not to modules, so that tied weights stay tied.
        names: The weights of the checkpoint by name, if the caller has them; to read them takes time.

    Raises:
        AdapterError: ``base-mismatch`` listing all that has no place; ``merge-dora``, ``merge-alora``,
            ``merge-trainable-tokens``, ``merge-unknown`` for what cannot be merged exactly; ``vocabulary`` for
            embeddings that cannot grow together; ``tied-weights`` for encoder-decoder models that tie more than a pair;
            ``quantized-base``.
    """
    raw, adapter_config = raw or {}, adapter_config or {}
    targets = list(targets)
    _refuse_unmergeable(raw, adapter_config)
    shapes = {name: info.shape for name, info in checkpoint.weights.items()}
    saved = {key: key.removesuffix("." + key.rpartition(".")[2]) for key in raw if not key.endswith(".lora_B.bias")}
    paths = [module_path(name) for name in (*(t.name for t in targets), *saved.values())]
    tied = None if stays_tied else tied_embeddings(checkpoint.config, shapes, paths)
    names, quantized = names or ModelNames(shapes, checkpoint.config), checkpoint.quantized
    stored = names if quantized.keys() <= shapes.keys() else ModelNames({*shapes, *quantized}, checkpoint.config)
    require_unquantized_targets(targets, stored, quantized, str(checkpoint.directory))
    places = resolve_places(targets, shapes, checkpoint.config, tied, names)
    scalings = {target.name: target.scaling for target in targets}
    carried = _CarriedPlaces(checkpoint, names, adapter_config, tied, scalings)
    for key, tensor in raw.items():
        carried.place(key, tensor)
    require_unquantized([*carried.replaced, *carried.reloaded], quantized, str(checkpoint.directory))
    if carried.misfits:
        raise carried.misfits.error(str(checkpoint.directory))
    untied, unties = ({}, False) if stays_tied else _separate_embeddings(checkpoint, {*places, *carried.replaced}, tied)
    where = str(checkpoint.directory)
    brought = {name: tensor.shape for name, tensor in (*carried.reloaded.items(), *carried.replaced.items())}
    vocabulary = merged_vocabulary(shapes, brought, untied, where)
    resized = [name for name, shape in brought.items() if is_resized_from(name, shape, shapes, untied)]
    require_no_delta([weight for place in places.values() for weight in (place.weight, place.source)],
                     vocabulary, resized, where)  # fmt: skip
    plan = MergePlan(places, carried.replaced, carried.reloaded, carried.bias_terms, untied, unties, vocabulary)
    _check_dtypes(checkpoint, plan)
    return plan


class BaseWeights(Protocol):
    """The base model of a plan: a `Checkpoint`, or a model in memory."""

    @property
    def directory(self) -> Path:
        """The model's path, for messages."""

    @property
    def weights(self) -> Mapping[str, WeightInfo]:
        """The shape and dtype of each weight, by name."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed ``config.json``."""

    @property
    def quantized(self) -> Mapping[str, str]:
        """The method of each quantized weight, by name."""


class _CarriedPlaces:
    """Finds the places of carried tensors, and collects those that have none.

    Attributes:
        replaced: See `MergePlan`.
        reloaded: See `MergePlan`.
        bias_terms: See `MergePlan`.
        misfits: The tensors without a place.
    """

    def __init__(
        self,
        checkpoint: BaseWeights,
        names: ModelNames,
        adapter_config: Mapping[str, Any],
        tied: TiedEmbeddings | None,
        scalings: Mapping[str, float],
    ) -> None:
        self._checkpoint, self._names, self._config = checkpoint, names, adapter_config
        self._tied, self._scalings = tied, scalings
        self._shapes = {name: info.shape for name, info in checkpoint.weights.items()}
        self.replaced: dict[str, RawTensor] = {}
        self.reloaded: dict[str, RawTensor] = {}
        self.bias_terms: dict[str, tuple[RawTensor, float]] = {}
        self.misfits = Misfits(self._shapes)

    def place(self, key: str, tensor: RawTensor) -> None:
        """Find the place of one tensor."""
        if key.endswith(".lora_B.bias"):
            self._place_bias_term(key, tensor)
            return
        path, tied, shapes = module_path(key), self._tied, self._shapes
        stored = self._names.find(path)
        name = stored if stored is not None else _tied_name(path, tied)
        base = tied.stored if tied is not None and name == tied.missing else name
        if base in shapes and shapes[base] != tensor.shape and not is_resized(base, shapes[base], tensor.shape):
            self.misfits.add(key, mismatch("shape", list(shapes[base]), list(tensor.shape)))
        elif base not in shapes and _IN_A_BLOCK.search(path):
            # A new head may be added to a model, but a part of its layers must be there.
            self.misfits.add_unfound(MergeTarget(key, "linear", tensor.shape), path, self._names.find_all([path]))
        elif _is_copied(path, self._config) and not self._keeps_tie(name):
            self.replaced[name] = _in_dtype_of(tensor, self._checkpoint, base)
        elif base in shapes:
            # Loading the adapter sets the one parameter that both names stand for.
            self.reloaded[base] = _in_dtype_of(tensor, self._checkpoint, base)
        else:
            self.misfits.add_unfound(MergeTarget(key, "linear", tensor.shape), path, self._names.find_all([path]))

    def _keeps_tie(self, name: str) -> bool:
        """Return True if PEFT trained one copy for both of two tied embeddings."""
        pair = () if self._tied is None else (self._tied.stored, self._tied.missing)
        return bool(self._config.get("ensure_weight_tying")) and name in pair

    def _place_bias_term(self, key: str, tensor: RawTensor) -> None:
        module = key.removesuffix(".lora_B.bias")
        stored = self._names.find(module_path(module) + ".bias")
        if stored is None and not any(tensor.data):
            return  # Joined adapters have biases of zeros where only one option stands for all modules.
        if stored is None:
            self.misfits.add(key, "the module has no bias to add it to")
        elif module not in self._scalings or self._shapes[stored] != tensor.shape:
            self.misfits.add(key, mismatch("shape", list(self._shapes[stored]), list(tensor.shape)))
        else:
            self.bias_terms[stored] = (tensor, self._scalings[module])


def combine_plans(plans: Sequence[MergePlan], names: Sequence[str]) -> MergePlan:
    """Join the plans of several adapters for one checkpoint.

    Deltas on one weight add up. Nothing else may meet: two adapters cannot both replace a tensor, or add to a bias.

    Args:
        plans: One plan for each adapter.
        names: The names of the adapters, for messages.

    Raises:
        AdapterError: ``merge-conflict``: two adapters replace one tensor differently, add to one bias, or one adapter
            changes what another replaces.
    """
    _require_no_conflict(plans, names)
    untied = [plan.untied for plan in plans if plan.untied]
    if any(each != untied[0] for each in untied):
        message = f"{' and '.join(names)} separate tied embeddings in different ways"
        raise AdapterError(message, code="merge-conflict")
    vocabularies = {plan.vocabulary for plan in plans if plan.vocabulary is not None}
    if len(vocabularies) > 1:
        found = " and ".join(map(str, sorted(vocabularies)))
        raise AdapterError(f"{' and '.join(names)} bring vocabularies of {found} tokens", code="merge-conflict")
    resized = {name for plan in plans if plan.vocabulary for name in (*plan.replaced, *plan.reloaded)}
    for plan in plans:
        require_no_delta(plan.places, next(iter(vocabularies), None), resized, " and ".join(names))
    return MergePlan(
        places={name: place for plan in plans for name, place in plan.places.items()},
        replaced={name: tensor for plan in plans for name, tensor in plan.replaced.items()},
        reloaded={name: tensor for plan in plans for name, tensor in plan.reloaded.items()},
        bias_terms={name: term for plan in plans for name, term in plan.bias_terms.items()},
        untied=untied[0] if untied else {},
        unties=any(plan.unties for plan in plans),
        vocabulary=vocabularies.pop() if vocabularies else None,
    )


def _require_no_conflict(plans: Sequence[MergePlan], names: Sequence[str]) -> None:
    def conflict(tensor: str, what: str, first: int, second: int) -> AdapterError:
        return AdapterError(f"{names[first]} and {names[second]} {what}", code="merge-conflict", where=tensor)

    owners: dict[str, dict[str, int]] = {"places": {}, "replaced": {}, "reloaded": {}, "bias_terms": {}}
    for number, plan in enumerate(plans):
        for kind, seen in owners.items():
            for name, value in getattr(plan, kind).items():
                other = seen.setdefault(name, number)
                if other == number or kind == "places":
                    continue
                if kind == "bias_terms":
                    raise conflict(name, "both add to this bias", other, number)
                if getattr(plans[other], kind)[name] != value:
                    raise conflict(name, "both bring this tensor, and theirs differ", other, number)
    for kind, replacing in (("replaced", True), ("reloaded", False)):
        for name, owner in owners[kind].items():
            for other_kind in ("places", "bias_terms", "reloaded" if replacing else "replaced"):
                other = owners[other_kind].get(name, owner)
                if other != owner:
                    raise conflict(name, "meet here: one replaces what the other changes", owner, other)


def _refuse_unmergeable(raw: Mapping[str, RawTensor], config: Mapping[str, Any]) -> None:
    magnitude = next((key for key in raw if ".lora_magnitude_vector" in key), None)
    if magnitude is not None or config.get("use_dora"):
        message = (
            "DoRA divides by the norms of W + delta; such a sum depends on its order, so the merged weights would not "
            "be the same on every device. Decode to an adapter instead"
        )
        raise AdapterError(message, code="merge-dora", where=magnitude or "use_dora")
    if config.get("alora_invocation_tokens"):
        message = "an activated LoRA acts only after its invocation tokens and cannot be merged"
        raise AdapterError(message, code="merge-alora", where="alora_invocation_tokens")
    tokens = next((key for key in raw if key.endswith("trainable_tokens_delta")), None)
    if tokens is not None:
        message = "merging trained tokens is not supported yet. Decode to an adapter instead"
        raise AdapterError(message, code="merge-trainable-tokens", where=tokens)
    unknown = next((key for key in raw if ".lora_" in key and not key.endswith(".lora_B.bias")), None)
    if unknown is not None:
        message = "was carried as an unknown tensor; what it does to a weight is not known"
        raise AdapterError(message, code="merge-unknown", where=unknown)


def _is_copied(path: str, config: Mapping[str, Any]) -> bool:
    """Return True if PEFT trains a copy of the module (modules_to_save), so that weights tied to the original stay."""
    return is_saved_module(path, config) if config else not path.endswith(".bias")


def _tied_name(path: str, tied: TiedEmbeddings | None) -> str:
    if tied is not None and path.split(".")[-2:] == tied.missing.split(".")[-2:]:
        return tied.missing
    return path


def _in_dtype_of(tensor: RawTensor, checkpoint: BaseWeights, name: str) -> RawTensor:
    """Return a tensor in the dtype of the base weight if the conversion is exact, else unchanged.

    Exact values matter more than a uniform dtype, since the tensor was trained and Transformers casts when it loads.
    """
    info = checkpoint.weights.get(name)
    if info is None or info.dtype == tensor.dtype or {info.dtype, tensor.dtype} - set(FLOAT_DTYPES):
        return tensor
    values = to_float64(tensor)
    try:
        cast = from_float64(values, info.dtype)
    except AdapterError:
        return tensor
    return cast if np.array_equal(to_float64(cast), values, equal_nan=True) else tensor


def _separate_embeddings(
    checkpoint: BaseWeights, changed: set[str], tied: TiedEmbeddings | None
) -> tuple[dict[str, str], bool]:
    """Return `MergePlan.untied` and `MergePlan.unties`, from the names of the weights that change."""
    where, config = str(checkpoint.directory), checkpoint.config
    inputs, outputs = embedding_names({name: info.shape for name, info in checkpoint.weights.items()})
    if tied is not None:
        if not changed & {tied.stored, tied.missing}:
            return {}, False
        if config.get("is_encoder_decoder"):
            message = "the adapter changes one of several tied embeddings of an encoder-decoder model"
            raise AdapterError(message, code="tied-weights", where=where)
        return {tied.missing: tied.stored}, True
    flags = [part.get("tie_word_embeddings") for part in (config, text_config(config))]
    if not changed & {*inputs, *outputs} or False in flags:
        return {}, False
    masked = [name for name in config.get("architectures") or [] if str(name).endswith(_TIED_DECODERS)]
    if masked and not outputs and changed & set(inputs):
        message = f"the adapter changes the embeddings, which {masked[0]} ties to a decoder that is not stored"
        raise AdapterError(message, code="tied-weights", where=where)
    # Both are stored. Transformers ties them only while they are equal; its older versions always do.
    return {}, bool(inputs and outputs)


def _check_dtypes(checkpoint: BaseWeights, plan: MergePlan) -> None:
    changed = {place.source for place in plan.places.values()} | set(plan.bias_terms)
    wrong = sorted(name for name in changed if checkpoint.weights[name].dtype not in FLOAT_DTYPES)
    if wrong:
        message = mismatch("dtype", ", ".join(FLOAT_DTYPES), checkpoint.weights[wrong[0]].dtype)
        message += f" ({len(wrong)} such weights); merge into the unquantized model"
        raise AdapterError(message, code="quantized-base", where=f"{checkpoint.directory}: {wrong[0]}")
