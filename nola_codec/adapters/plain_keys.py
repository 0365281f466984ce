"""Give the tensors of a file the keys that its tool means, without what a training put around the model.

A checkpoint may name the modules of a wrapped model (``_orig_mod.`` of torch.compile), or have the name of the adapter
in its keys (``lora_A.default.weight``). No loader wants these parts. They are taken away before a dialect is looked
for, so all dialects read such files, and what is decoded has the plain keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.frozen_weights import find_frozen_weights, frozen_note
from nola_codec.adapters.sources import PEFT_PREFIX, AdapterSource
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.rendering import list_first
from nola_codec.stores.tensor_store import Closing, TensorInfo, TensorStore, no_such_tensor

# Modules that torch.compile, FSDP, activation checkpointing and DeepSpeed put around others.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_WRAPPER = re.compile(rf"(?:^|(?<=\.))({'|'.join(_WRAPPERS)})\.")
# In flattened names each dot is an underscore, so such a module adds two of them.
_FLAT_WRAPPER = re.compile(rf"_({'|'.join(_WRAPPERS)})(?=_)")
# DistributedDataParallel calls its module so, but other models have modules of this name too.
_PARALLEL = re.compile(r"(?P<before>(?:base_model\.)?(?:model\.)?)module\.(?=.)")

# The parts of an adapter after which PEFT puts the name of the adapter (`adapter_layer_names` of its layers).
_PARTS = r"lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ranknum|trainable_tokens_delta" + (
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|p?vera_(?:lambda_[bd]|[AB])|randlora_(?:lambda|gamma|[AB])"
    r"|unilora_(?:theta_d|(?:indices|scales)_[AB])|tinylora_[ABP]|vblora_(?:vector_bank|logits_[AB])"
    r"|(?:fourierft|waveft)_spectrum"
)
_NAMED = re.compile(rf"(?P<before>(?:.+\.)?(?:{_PARTS}))\.(?P<name>(?!weight$|bias$)[^.]+)(?P<after>\.weight|\.bias)?")
_NAMED_COPY = re.compile(r"(?P<before>.+)\.modules_to_save(?:\.(?P<name>(?!weight$|bias$)[^.]+))?(?P<after>\..+)")
_ORIGINAL = re.compile(r".+\.original_module\..+")
_FACTOR = re.compile(r".+\.(?:lora_[AB]\.weight|lora_embedding_[AB]|hada_w1_a|lokr_w[12](?:_a)?)")
_PEFT_FACTOR = re.compile(r".+\.(?:lora_[AB]\.weight|lora_embedding_[AB])")
# How the paths of language models and of other models of Transformers begin, where image models have other names; the
# path of some begins with the name of a component of a pipeline.
_LANGUAGE_MODEL = re.compile(
    r"transformer\.(?:h|layers?|wte|wpe|word_embeddings|encoder)\."
    r"|(?:model\.)*(?:language_model|text_model|decoder|encoder|visual|vision_tower|gpt_neox|backbone)?\.?"
    r"(?:(?:layers|h)\.\d+\.(?:self_attn|attn|mlp|self_attention|encoder_attn)\."
    r"(?:(?:[qkvo]|qkv|out|gate|up|down|gate_up|c)_proj|c_attn|c_fc|query_key_value|dense)"
    r"|(?:layer\.\d+\.attention\.(?:self|output)|block\.\d+\.layer\.\d+)\.)"
    r"|(?:model|language_model)\.(?:layers\.\d+|embed_tokens|decoder|encoder|language_model|model)\."
    r"|(?:bert|roberta|deberta|distilbert|electra|albert|gpt_neox|vit|wav2vec2|hubert)\."
)
_LISTED = 4


class PlainKeys(Closing):
    """A `TensorStore` that shows the tensors of another one under other names, and without some of them.

    Attributes:
        name, file_type, metadata, extra, tensors: As in `TensorStore`.
    """

    def __init__(self, file: TensorStore, originals: Mapping[str, str]) -> None:
        """Show the tensors of ``file`` whose keys are the values of ``originals`` under the keys of ``originals``."""
        self._file, self._originals = file, dict(originals)
        self.name, self.file_type = file.name, file.file_type
        self.metadata: Mapping[str, str] = file.metadata
        self.extra: Mapping[str, Any] = file.extra
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {key: file.tensors[original] for key, original in self._originals.items()}
        )

    def read(self, name: str) -> RawTensor:
        """Read one tensor. Raises AdapterError ``no-such-tensor``, and the errors of the file."""
        if name not in self._originals:
            raise no_such_tensor(self.name, name)
        return self._file.read(self._originals[name])

    def close(self) -> None:
        """Close the file, if it was opened here."""
        self._file.close()


def with_plain_keys(source: AdapterSource, *, keep_frozen: bool = False) -> tuple[AdapterSource, tuple[str, ...]]:
    """Return a source whose tensors have plain keys, and the sentences that tell the user what was taken away.

    Args:
        source: The open source.
        keep_frozen: True to keep the weights of the base model that a state dict of the whole model holds.

    Raises:
        AdapterError: ``several-adapters``: the keys have the names of several adapters; ``duplicate-key``: two keys are
            equal without the parts that are taken away.
    """
    if source.file.file_type == "gguf":
        return source, ()
    keys = {key: key for key in source.file.tensors}
    notes: list[str] = []
    for step in (_without_wrappers, _without_parallel, _without_outer_prefix):
        keys = step(keys, source.where, notes)
    frozen = [] if keep_frozen else find_frozen_weights(keys, source.config)
    if frozen:
        keys = {key: original for key, original in keys.items() if key not in set(frozen)}
        notes.append(frozen_note(len(frozen)))
    keys = _without_adapter_name(keys, source.where, notes)
    if source.config is None and _is_of_language_model(keys):
        beside = source.beside if source.beside is not None and "peft_type" in source.beside else None
        source = replace(source, config=beside)
        keys = _with_one_prefix(keys, source.where, notes)
    if source.config is not None and "peft_type" in source.config:
        keys = _with_one_prefix(keys, source.where, notes)
    if not notes:
        return source, ()
    return replace(source, file=PlainKeys(source.file, keys)), tuple(notes)


def _rename(keys: Mapping[str, str], where: str, rename: Callable[[str], str]) -> dict[str, str]:
    """Return the table of original keys under new names. Raises AdapterError ``duplicate-key``."""
    made: dict[str, str] = {}
    for key, original in keys.items():
        new = rename(key)
        if new in made:
            message = f"means the same tensor as {made[new]}"
            raise AdapterError(message, code="duplicate-key", where=f"{where}: {original}")
        made[new] = original
    return made


def _without_wrappers(keys: dict[str, str], where: str, notes: list[str]) -> dict[str, str]:
    found: set[str] = set()
    for key in keys:
        found.update(match[1] for pattern in (_WRAPPER, _FLAT_WRAPPER) for match in pattern.finditer(key))
    if not found:
        return keys
    taken = list_first(sorted(f"{name}." for name in found), _LISTED)
    notes.append(f"the keys are read without {taken}, which wrappers of the training put into them")
    return _rename(keys, where, lambda key: _FLAT_WRAPPER.sub("", _WRAPPER.sub("", key)))


def _without_parallel(keys: dict[str, str], where: str, notes: list[str]) -> dict[str, str]:
    """Take away ``module.`` where all keys have it in one place at the start of their paths."""
    matches = [_PARALLEL.match(key) for key in keys]
    places = {None if match is None else match["before"] for match in matches}
    if len(places) != 1 or None in places:
        return keys
    notes.append("the keys are read without module., which a wrapper of the training put into them")
    return _rename(keys, where, lambda key: _PARALLEL.sub(r"\g<before>", key, count=1))


def _without_outer_prefix(keys: dict[str, str], where: str, notes: list[str]) -> dict[str, str]:
    """Take away what stands before PEFT's prefix in the keys of all factors, such as Lightning's ``model.``."""
    factors = [key for key in keys if _NAMED.fullmatch(key) or _FACTOR.fullmatch(key)]
    starts = {key.partition(PEFT_PREFIX)[0] if PEFT_PREFIX in key else "" for key in factors}
    if len(starts) != 1 or "" in starts:
        return keys
    (start,) = starts
    notes.append(f"the keys are read without {start} before {PEFT_PREFIX}, where PEFT has nothing")
    return _rename(keys, where, lambda key: key.removeprefix(start) if key.startswith(start + PEFT_PREFIX) else key)


def _without_adapter_name(keys: dict[str, str], where: str, notes: list[str]) -> dict[str, str]:
    """Take away the name of the adapter, and the untouched copies of modules that were trained.

    Raises:
        AdapterError: ``several-adapters``, ``duplicate-key``.
    """
    originals = [key for key in keys if _ORIGINAL.fullmatch(key)]
    kept = {key: original for key, original in keys.items() if key not in set(originals)}
    kept = _without_second_copies(kept, notes)
    matches = {key: _NAMED.fullmatch(key) or _NAMED_COPY.fullmatch(key) for key in kept}
    found = {key: match for key, match in matches.items() if match is not None}
    names = sorted({match["name"] for match in found.values() if match.re is _NAMED} | _names_of_copies(found.values()))
    if len(names) > 1:
        message = (
            f"the keys have the names of {len(names)} adapters: {list_first(names, _LISTED)}; a file holds one, so "
            "save each by itself (save_pretrained with selected_adapters)"
        )
        raise AdapterError(message, code="several-adapters", where=where)
    if originals:
        many = "a tensor" if len(originals) == 1 else f"{len(originals)} tensors"
        notes.append(f"not encoded: {many} of original_module, which the base model has too")
    if found:
        notes.append(
            f"the keys are read without {f'the name of the adapter, {names[0]}' if names else 'modules_to_save'}"
        )
    if not found:
        return kept
    return _rename(kept, where, lambda key: _plain_name(found[key], names) if key in found else key)


def _without_second_copies(keys: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Leave out trained copies of tensors that are there under their plain keys too.

    PEFT saves embeddings and heads of a resized vocabulary both ways if they are trained, and loads the plain keys.
    """
    matches = {key: match for key in keys if (match := _NAMED_COPY.fullmatch(key)) is not None}
    second = {key for key, match in matches.items() if match["before"] + match["after"] in keys}
    if not second:
        return keys
    notes.append(f"{len(second)} tensors are in the file twice, also under modules_to_save; PEFT loads the other ones")
    return {key: original for key, original in keys.items() if key not in second}


def _names_of_copies(matches: Iterable[re.Match[str]]) -> set[str]:
    """Return the name of the adapter that stands after ``modules_to_save``, if it is the name that PEFT gives.

    Any other word may be a part of the module that was copied, since older versions of PEFT left ``modules_to_save`` in
    the key without a name.
    """
    return {"default"} & {match["name"] for match in matches if match.re is _NAMED_COPY}


def _plain_name(match: re.Match[str], names: list[str]) -> str:
    before, name, after = match["before"], match["name"], match["after"] or ""
    if before.endswith("lora_magnitude_vector"):
        return before  # PEFT saves it without ``.weight``
    return before + after if name is None or name in names else f"{before}.{name}{after}"


def _is_of_language_model(keys: Iterable[str]) -> bool:
    """Return True if all pairs of factors have PEFT's endings after the paths of a language model.

    Only PEFT writes such factors for language models, with or without its prefix: other tools have other endings.
    """
    factors = [key for key in keys if _PEFT_FACTOR.fullmatch(key)]
    # Z-Image and Lumina 2 have `transformer.layers` in Diffusers, with other names after it.
    return bool(factors) and all(_LANGUAGE_MODEL.match(key) and not component_of(key) for key in factors)


def _with_one_prefix(keys: dict[str, str], where: str, notes: list[str]) -> dict[str, str]:
    """Put PEFT's prefix before all keys once: PEFT loads nothing from keys without it, and says nothing."""
    doubled = PEFT_PREFIX * 2
    if any(key.startswith(doubled) for key in keys):
        notes.append(f"{PEFT_PREFIX} stood more than once before the keys, and stands there once now")
        pattern = re.compile(rf"(?:{re.escape(PEFT_PREFIX)})+")
        return _rename(keys, where, lambda key: pattern.sub(PEFT_PREFIX, key, count=1) if pattern.match(key) else key)
    factors = [key for key in keys if _FACTOR.fullmatch(key)]
    if not factors or any(key.startswith("base_model.") for key in keys):
        return keys
    if any(component_of(key) and not _LANGUAGE_MODEL.match(key) for key in factors):
        return keys  # a file of diffusers, whose configuration only lies beside it
    notes.append(f"{PEFT_PREFIX} was put before the keys, as PEFT writes them")
    return _rename(keys, where, lambda key: PEFT_PREFIX + key)
