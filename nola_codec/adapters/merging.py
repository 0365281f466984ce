"""Merge an adapter into a model directory, tensor by tensor, in the memory of one tensor.

What is computed for a weight is not decided here: the decoder hands in `merge_weight`. What surrounds it is: which
weights change, tied embeddings, biases, modules saved whole, files, names, and that nothing is ever half written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.checkpoint import (
    INDEX_NAME,
    Checkpoint,
    MergeTarget,
    Names,
    TiedEmbeddings,
    WeightMatch,
    embedding_names,
    mismatch_message,
    resolve_weights,
    text_config,
    tied_embeddings,
)
from nola_codec.adapters.dtypes import FLOAT_DTYPES, from_float64, to_float64
from nola_codec.adapters.files import atomic_directory, dump_json, require_free
from nola_codec.adapters.peft import module_path
from nola_codec.adapters.peft_config import is_saved_module
from nola_codec.adapters.safetensors_io import SafetensorsFile, SafetensorsWriter, num_bytes
from nola_codec.errors import AdapterError, OutputExists, expected
from nola_codec.model import RawTensor

MergeWeight = Callable[[str, RawTensor], RawTensor]
"""``merge_weight(weight_name, base) -> merged``, of the same dtype and shape."""

# Never copied: weights (the old ones would be loaded in place of the merged), and files that make Transformers load an
# adapter on top.
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".npz", ".tflite"}
)
_NOT_COPIED = frozenset({"adapter_config.json"})
# Masked language models name their output embeddings in as many ways as there are models.
_TIED_DECODERS = ("ForMaskedLM", "ForPreTraining")
_COPIED_DIRECTORIES = frozenset({"additional_chat_templates"})


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do to a checkpoint; made by `plan_merge`, which has checked all of it.

    Attributes:
        matches: By weight name, the module whose delta is added: what `merge_weight` is called for.
        replaced: By weight name, a tensor that takes its place (modules_to_save); new names are added.
        reloaded: By stored name, a tensor that the base model is loaded with instead (trained biases, embeddings
            saved with the adapter): seen by everything that reads the stored one.
        bias_terms: By bias name, ``lora_B.bias`` and its scaling.
        untied: By new weight name, the stored tensor it was tied to.
        unties: ``tie_word_embeddings`` is turned off.
    """

    matches: Mapping[str, WeightMatch]
    replaced: Mapping[str, RawTensor] = field(default_factory=dict)
    reloaded: Mapping[str, RawTensor] = field(default_factory=dict)
    bias_terms: Mapping[str, tuple[RawTensor, float]] = field(default_factory=dict)
    untied: Mapping[str, str] = field(default_factory=dict)
    unties: bool = False


def plan_merge(
    checkpoint: Checkpoint,
    targets: Iterable[MergeTarget],
    raw: Mapping[str, RawTensor] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
) -> MergePlan:
    """Find a place for every part of an adapter in a checkpoint.

    Tied embeddings: the merged model computes what the base model with the adapter on computes, where an adapter on
    one of two tied modules changes only that one. So the weights are separated: the missing one is written, and
    ``tie_word_embeddings`` turned off. (PEFT's in-place merge adds the delta to both, and warns that the result is
    off; for modules_to_save it unties, as here.)

    Raises:
        AdapterError: ``base-mismatch`` listing all that found no place; ``merge-dora``, ``merge-alora``,
            ``merge-trainable-tokens`` for what cannot be merged exactly; ``tied-weights`` for encoder-decoder models
            that tie more than a pair; ``quantized-base``.
    """
    raw, adapter_config = raw or {}, adapter_config or {}
    targets = list(targets)
    _refuse_unmergeable(raw, adapter_config)
    shapes = {name: info.shape for name, info in checkpoint.weights.items()}
    saved = {key: key.removesuffix("." + key.rpartition(".")[2]) for key in raw if not key.endswith(".lora_B.bias")}
    paths = [module_path(name) for name in (*(t.name for t in targets), *saved.values())]
    tied = tied_embeddings(checkpoint.config, shapes, paths)
    matches = {m.weight: m for m in resolve_weights(targets, shapes, checkpoint.config, tied).values()}
    names = Names(shapes)
    problems: list[str] = []
    replaced: dict[str, RawTensor] = {}
    reloaded: dict[str, RawTensor] = {}
    bias_terms: dict[str, tuple[RawTensor, float]] = {}
    scalings = {target.name: target.scaling for target in targets}
    for key, tensor in raw.items():
        path = module_path(key)
        stored = names.find(path)
        if key.endswith(".lora_B.bias"):
            module = key.removesuffix(".lora_B.bias")
            stored = names.find(module_path(module) + ".bias")
            if stored is None:
                problems.append(f"{key}: the module has no bias to add it to")
            elif module not in scalings or shapes[stored] != tensor.shape:
                problems.append(f"{key}: " + expected("shape", list(shapes[stored]), list(tensor.shape)))
            else:
                bias_terms[stored] = (tensor, scalings[module])
            continue
        name = stored if stored is not None else _tied_name(path, tied)
        base = tied.stored if tied is not None and name == tied.missing else name
        if base in shapes and shapes[base] != tensor.shape:
            problems.append(f"{key}: " + expected("shape", list(shapes[base]), list(tensor.shape)))
        elif _is_copied(path, adapter_config):
            replaced[name] = _in_dtype_of(tensor, checkpoint, base)
        elif base in shapes:
            # Loading fills the one parameter both names stand for.
            reloaded[base] = _in_dtype_of(tensor, checkpoint, base)
        else:
            problems.append(f"{key}: no weight {path}")
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch", where=str(checkpoint.directory))
    untied, unties = _untie(checkpoint, {*matches, *replaced}, tied)
    plan = MergePlan(matches, replaced, reloaded, bias_terms, untied, unties)
    _check_dtypes(checkpoint, plan)
    return plan


def merge_directory(
    base_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    plan: MergePlan,
    merge_weight: MergeWeight,
    *,
    overwrite: bool = False,
    on_weight: Callable[[str], None] | None = None,
) -> Path:
    """Write the merged model; ``out_dir`` appears whole, at the end, or not at all.

    Untouched tensors keep their bytes and their order in the shard. Configuration, tokenizer, code and licences are
    copied; weights in other formats are not.

    Args:
        base_dir: The base model.
        out_dir: The merged model.
        plan: From `plan_merge` on the same checkpoint.
        merge_weight: Called once for every name in ``plan.matches``.
        overwrite: Replace ``out_dir``, if it is a model directory.
        on_weight: Called with each name in ``plan.matches`` when it is done, for progress.

    Raises:
        OutputExists: ``out_dir`` is there and ``overwrite`` is False, or it is not a model directory.
        AdapterError: ``same-directory``; a shard cannot be read.
        ValueError: `merge_weight` changed a dtype or shape.
    """
    base, out = Path(base_dir).resolve(), Path(out_dir).resolve()
    if out == base or out in base.parents or base in out.parents:
        raise AdapterError("lies inside the base model, or holds it", code="same-directory", where=str(out_dir))
    require_free(out, overwrite=overwrite)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise OutputExists("is not a model directory, so it is not replaced", where=str(out_dir))
    checkpoint = Checkpoint(base)
    with atomic_directory(out, replace=overwrite) as directory:
        _copy_other_files(base, directory)
        weight_map: dict[str, str] = {}
        total_bytes = total_numbers = 0
        for shard in checkpoint.shards:
            with checkpoint.open_shard(shard) as file, open(directory / shard, "xb") as stream:
                specs = _shard_specs(checkpoint, plan, shard, file)
                writer = SafetensorsWriter(
                    stream, {name: spec[1:] for name, spec in specs.items()}, file.metadata or {"format": "pt"}
                )
                for name, (source, dtype, shape) in specs.items():
                    writer.write(name, _value(file, plan, name, source, merge_weight))
                    weight_map[name] = shard
                    total_bytes += num_bytes(dtype, shape)
                    total_numbers += int(np.prod(shape, dtype=np.int64))
                    if on_weight is not None and name in plan.matches:
                        on_weight(name)
                writer.finish()
        if checkpoint.index is not None:
            index = _new_index(checkpoint, weight_map, total_bytes, total_numbers)
            (directory / INDEX_NAME).write_bytes(dump_json(index))
        if plan.unties:
            (directory / "config.json").write_bytes(dump_json(_untied_config(checkpoint.config)))
    return Path(out_dir)


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
    """Whether PEFT trains a copy (modules_to_save), so that what was tied to the original stays as it was."""
    return is_saved_module(path, config) if config else not path.endswith(".bias")


def _tied_name(path: str, tied: TiedEmbeddings | None) -> str:
    if tied is not None and path.split(".")[-2:] == tied.missing.split(".")[-2:]:
        return tied.missing
    return path


def _in_dtype_of(tensor: RawTensor, checkpoint: Checkpoint, name: str) -> RawTensor:
    """In the dtype of the base weight where that loses nothing, else as it came.

    The tensor was trained; exactness goes before a uniform dtype, and Transformers casts when it loads.
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


def _untie(checkpoint: Checkpoint, changed: set[str], tied: TiedEmbeddings | None) -> tuple[dict[str, str], bool]:
    """Which weights to write separately, and whether the configuration must stop tying."""
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
        message = f"the adapter changes the embeddings, which {masked[0]} ties to a decoder not stored by itself"
        raise AdapterError(message, code="tied-weights", where=where)
    # Both are stored: Transformers ties them only while they are equal, older versions always.
    return {}, bool(inputs and outputs)


def _check_dtypes(checkpoint: Checkpoint, plan: MergePlan) -> None:
    changed = {match.source for match in plan.matches.values()} | set(plan.bias_terms)
    wrong = sorted(name for name in changed if checkpoint.weights[name].dtype not in FLOAT_DTYPES)
    if wrong:
        message = expected("dtype", ", ".join(FLOAT_DTYPES), checkpoint.weights[wrong[0]].dtype)
        message += f" ({len(wrong)} such weights); merge into the unquantized model"
        raise AdapterError(message, code="quantized-base", where=f"{checkpoint.directory}: {wrong[0]}")


def _shard_specs(
    checkpoint: Checkpoint, plan: MergePlan, shard: str, file: SafetensorsFile
) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """By name in the order of writing: stored source (or empty), dtype, shape."""
    sources = {name: name for name in file.tensors}
    sources |= {name: source for name, source in plan.untied.items() if source in file.tensors}
    if shard == checkpoint.shards[-1]:
        sources |= {name: "" for name in plan.replaced if name not in checkpoint.weights and name not in plan.untied}
    specs: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for name, source in sources.items():
        tensor = plan.replaced.get(name) or plan.reloaded.get(source) or file.tensors[source]
        specs[name] = (source, tensor.dtype, tensor.shape)
    return specs


def _value(file: SafetensorsFile, plan: MergePlan, name: str, source: str, merge_weight: MergeWeight) -> RawTensor:
    value = plan.replaced.get(name) or plan.reloaded.get(source) or file.read(source)
    if name in plan.bias_terms:
        term, scaling = plan.bias_terms[name]
        # Elementwise IEEE operations in a fixed order: the same bits everywhere.
        total = to_float64(value) + to_float64(term) * scaling
        value = from_float64(total, value.dtype, where=name)
    return merge_weight(name, value) if name in plan.matches else value


def _new_index(
    checkpoint: Checkpoint, weight_map: Mapping[str, str], total_bytes: int, total_numbers: int
) -> dict[str, Any]:
    index = dict(checkpoint.index or {})
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = total_bytes
    if "total_parameters" in metadata:
        metadata["total_parameters"] = total_numbers
    return index | {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(config)) | {"tie_word_embeddings": False}
    if isinstance(result.get("text_config"), dict):
        result["text_config"]["tie_word_embeddings"] = False
    return result


def _copy_other_files(base: Path, directory: Path) -> None:
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or path.name in _NOT_COPIED:
            continue
        if path.is_dir():
            if path.name in _COPIED_DIRECTORIES:
                shutil.copytree(path, directory / path.name)
        elif path.suffix not in _WEIGHT_SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache
