"""A Transformers model directory, read lazily, and the base weight that belongs to each LoRA module."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.adapters.containers.safetensors_io import SafetensorsFile
from nola_codec.adapters.dialects.peft import module_path
from nola_codec.adapters.files import read_json
from nola_codec.errors import AdapterError, expected
from nola_codec.model import Layout, LoraModule, RawTensor

WEIGHTS_NAME = "model.safetensors"
_INDEX_SUFFIX = ".index.json"
# Of Transformers, and of the components of a Diffusers pipeline.
_WEIGHTS_NAMES = (WEIGHTS_NAME, "diffusion_pytorch_model.safetensors")

# Models made of `transformers.pytorch_utils.Conv1D`, whose weights are (in, out), and the modules that are.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})

_INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "tokens_embed", "shared")
_OUTPUT_EMBEDDINGS = ("lm_head", "embed_out")
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")


@dataclass(frozen=True)
class WeightInfo:
    """A stored tensor: the file of the directory it is in, its dtype and shape."""

    shard: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MergeTarget:
    """A LoRA module as merging sees it.

    Attributes:
        name: As in `LoraModule`.
        layout: As in `LoraModule`.
        shape: Of the delta as a module of that layout holds it: (out, in), (out, in, *kernel) or (vocab, dim).
        scaling: Of the module; here only a `lora_B.bias` needs it.
        fan_in_fan_out: What the configuration says about (in, out) storage.
        weight: Name of the tensor it is added to; empty where PEFT's rules find it by the module's name.
        reshaped: The tensor may have the same rows in another shape, as a flattened kernel.
    """

    name: str
    layout: Layout
    shape: tuple[int, ...]
    scaling: float = 1.0
    fan_in_fan_out: bool = False
    weight: str = ""
    reshaped: bool = False

    @classmethod
    def of(cls, module: LoraModule) -> MergeTarget:
        shape = delta_shape(module.layout, module.a_shape, module.b_shape)
        return cls(module.name, module.layout, shape, module.scaling, module.fan_in_fan_out)


@dataclass(frozen=True)
class WeightMatch:
    """Where a module's delta goes.

    Attributes:
        module: The module's name, as in `LoraModule`.
        weight: Name of the weight in the merged checkpoint.
        source: Stored tensor that holds its base value; differs from ``weight`` where tied weights are separated.
        transposed: The weight is stored (in, out): add the delta's transpose.
    """

    module: str
    weight: str
    source: str
    transposed: bool


def delta_shape(layout: Layout, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a module's delta from the stored shapes of its factors."""
    if layout == "embedding":
        return (a_shape[1], b_shape[0])
    return (b_shape[0], *a_shape[1:])


class Checkpoint:
    """The weights of a model directory: one safetensors file, or shards and their index.

    They are called ``model`` (Transformers) or ``diffusion_pytorch_model`` (a component of Diffusers); a single file
    may have any name if it is the only one.

    Headers are read at once, tensors when asked for.

    Attributes:
        directory: The model directory.
        weights: `WeightInfo` by tensor name.
        shards: File names, in the order of the index.
        config: ``config.json``, or empty.
        index: The index as parsed, or None for a single file.
        index_name: Its file name, or empty.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Read the headers.

        Raises:
            AdapterError: ``not-found``; ``missing-weights``; ``bad-index`` when index and shards disagree; and those
                of `SafetensorsFile`.
        """
        self.directory = Path(directory)
        where = str(directory)
        if not self.directory.is_dir():
            raise AdapterError("no such directory", code="not-found", where=where)
        config = self.directory / "config.json"
        self.config: Mapping[str, Any] = read_json(config) if config.exists() else {}
        self.index: Mapping[str, Any] | None = None
        self.index_name = ""
        expected_in: dict[str, str] = {}
        found = _weights_file(self.directory)
        if found.endswith(_INDEX_SUFFIX):
            self.index_name = found
            self.index = read_json(self.directory / found)
            expected_in = _weight_map(self.index, f"{where}: {found}")
            self.shards: tuple[str, ...] = tuple(dict.fromkeys(expected_in.values()))
        else:
            self.shards = (found,)
        self.weights: Mapping[str, WeightInfo] = self._list_weights(expected_in)

    def open_shard(self, shard: str) -> SafetensorsFile:
        """One file of the checkpoint, for use as a context manager."""
        return SafetensorsFile(self.directory / shard)

    def read(self, name: str) -> RawTensor:
        """One tensor; raises AdapterError ``no-such-tensor``."""
        if name not in self.weights:
            raise AdapterError("no such tensor", code="no-such-tensor", where=f"{self.directory}: {name}")
        with self.open_shard(self.weights[name].shard) as file:
            return file.read(name)

    def _list_weights(self, expected_in: Mapping[str, str]) -> dict[str, WeightInfo]:
        weights: dict[str, WeightInfo] = {}
        for shard in self.shards:
            with self.open_shard(shard) as file:
                for name, info in file.tensors.items():
                    if name in weights:
                        message = f"stored both in {weights[name].shard} and in {shard}"
                        raise AdapterError(message, code="bad-index", where=f"{self.directory}: {name}")
                    weights[name] = WeightInfo(shard, info.dtype, info.shape)
        for name, shard in expected_in.items():
            if name not in weights or weights[name].shard != shard:
                message = f"the index puts it in {shard}, where it is not"
                raise AdapterError(message, code="bad-index", where=f"{self.directory}: {name}")
        return weights


class Names:
    """Find stored tensors by the names a model gives them.

    The same weight is ``transformer.h.0.attn.c_attn.weight`` in a model with a head and ``h.0.attn.c_attn.weight`` in
    one without, and a checkpoint of either loads into both: up to two leading components may be missing on one side.
    """

    def __init__(self, stored: Iterable[str]) -> None:
        self._stored = frozenset(stored)
        self._by_suffix: dict[tuple[int, str], list[str]] = {}
        for name in self._stored:
            parts = name.split(".")
            for dropped in (1, 2):
                if len(parts) - dropped >= 2:
                    self._by_suffix.setdefault((dropped, ".".join(parts[dropped:])), []).append(name)

    def find(self, name: str) -> str | None:
        """The stored tensor that ``name`` means, or None when there is none or more than one."""
        if name in self._stored:
            return name
        parts = name.split(".")
        for dropped in (1, 2):
            shorter = ".".join(parts[dropped:])
            longer = self._by_suffix.get((dropped, name), [])
            found = longer + ([shorter] if len(parts) - dropped >= 2 and shorter in self._stored else [])
            if found:
                return found[0] if len(found) == 1 else None
        return None


@dataclass(frozen=True)
class TiedEmbeddings:
    """Input and output embeddings of which only one is stored.

    Attributes:
        stored: The tensor that serves as both.
        missing: The name the other one has when it is stored too.
    """

    stored: str
    missing: str


def tied_embeddings(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], paths: Iterable[str]
) -> TiedEmbeddings | None:
    """The tied pair of a checkpoint, or None when it has both weights or no output embeddings.

    A checkpoint that lacks the output embeddings can only be loaded into a generative model by tying them, so that
    and not the flag decides: the flag's default changed between versions of Transformers.

    Args:
        config: ``config.json``.
        shapes: Stored tensors.
        paths: Module paths the adapter changes, as evidence of what the model has.
    """
    if text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings")) is False:
        return None
    paths = list(paths)
    inputs, outputs = embedding_names(shapes)
    if not outputs and len(inputs) == 1:
        targeted = [path for path in paths if path.rpartition(".")[2] in _OUTPUT_EMBEDDINGS]
        architectures = config.get("architectures") or []
        generative = any(isinstance(name, str) and name.endswith(_GENERATIVE) for name in architectures)
        if targeted or generative:
            default = "embed_out" if config.get("model_type") in ("gpt_neox", "gpt_neox_japanese") else "lm_head"
            return TiedEmbeddings(inputs[0], (targeted[0] if targeted else default) + ".weight")
    if not inputs and len(outputs) == 1:
        targeted = [path for path in paths if path.rpartition(".")[2] in _INPUT_EMBEDDINGS]
        if targeted:
            return TiedEmbeddings(outputs[0], targeted[0] + ".weight")
    return None


def embedding_names(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """Stored input embeddings and output embeddings, known by the last component of their module."""
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    return (
        [name for name in matrices if _leaf(name) in _INPUT_EMBEDDINGS],
        [name for name in matrices if _leaf(name) in _OUTPUT_EMBEDDINGS],
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration: ``text_config`` of a composite model, or the whole."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def resolve_weights(
    targets: Iterable[MergeTarget],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    tied: TiedEmbeddings | None = None,
) -> dict[str, WeightMatch]:
    """The base weight of every module.

    Works on names and shapes alone, so it serves a model in memory as well as a directory.

    Args:
        targets: The adapter's modules.
        shapes: Shape by weight name of the base model.
        config: ``config.json`` of the base model.
        tied: From `tied_embeddings`: lets a module of the missing weight start from the stored one.

    Returns:
        `WeightMatch` by module name.

    Raises:
        AdapterError: ``base-mismatch``, with one line for each module that found no weight of its shape.
    """
    names = Names(shapes)
    matches: dict[str, WeightMatch] = {}
    taken: dict[str, str] = {}
    problems: list[str] = []
    for target in targets:
        path = target.weight.rpartition(".")[0] if target.weight else module_path(target.name)
        # Multi-head attention of PyTorch keeps its three input projections in one parameter.
        found = (
            names.find(target.weight)
            if target.weight
            else names.find(f"{path}.weight") or names.find(f"{path}.in_proj_weight")
        )
        weight, source = found, found
        if found is None and tied is not None and _same_leaf(tied.missing, f"{path}.weight"):
            weight, source = tied.missing, tied.stored
        if weight is None or source is None:
            problems.append(f"{target.name}: no weight {target.weight or f'{path}.weight'}")
            continue
        transposed = _orientation(target, path, shapes[source], config)
        if transposed is None:
            found_shape = f"{list(shapes[source])} ({source})"
            problems.append(f"{target.name}: " + expected("shape", list(target.shape), found_shape))
        elif weight in taken:
            problems.append(f"{target.name}: {weight} is already changed by {taken[weight]}")
        else:
            taken[weight] = target.name
            matches[target.name] = WeightMatch(target.name, weight, source, transposed)
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch")
    return matches


def mismatch_message(problems: list[str]) -> str:
    """One message for all parts of an adapter that a base model has no place for."""
    return f"{len(problems)} parts of the adapter do not fit the base model:\n  " + "\n  ".join(problems)


def _orientation(target: MergeTarget, path: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool | None:
    """Whether the weight is stored transposed; None when neither way fits."""
    if target.reshaped:
        return False if shape[:1] == target.shape[:1] and math.prod(shape) == math.prod(target.shape) else None
    if target.layout != "linear":
        return False if shape == target.shape else None
    if stored_transposed(path, config, target.fan_in_fan_out) and shape == target.shape[::-1]:
        return True
    # The flag may be left on from another module; a plain weight of the right shape is then meant as it is.
    return False if shape == target.shape else None


def stored_transposed(path: str, config: Mapping[str, Any], fan_in_fan_out: bool) -> bool:
    """Whether a linear module's weight should be stored (in, out): by the model's type where that tells.

    PEFT saves its flag as the last module's type left it: right unless a model mixes both types.
    """
    if config.get("model_type") in _CONV1D_MODELS:
        return path.rpartition(".")[2] in _CONV1D_MODULES
    return fan_in_fan_out


def _weight_map(index: Mapping[str, Any], where: str) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise AdapterError("no weight_map", code="bad-index", where=where)
    for name, shard in weight_map.items():
        # A stranger's index must not make us read, or later write, outside the directory.
        plain = isinstance(shard, str) and shard == PurePosixPath(shard).name and "\\" not in shard and shard != ".."
        if not plain or not shard.endswith(".safetensors"):
            message = expected("file", "the plain name of a .safetensors file", shard)
            raise AdapterError(message, code="bad-index", where=f"{where}: {name}")
    return weight_map


def _weights_file(directory: Path) -> str:
    """Name of the one weights file, or of the index of several."""
    for name in _WEIGHTS_NAMES:
        for candidate in (name, name + _INDEX_SUFFIX):
            if (directory / candidate).exists():
                return candidate
    lone = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(lone) == 1 and not (directory / "adapter_config.json").exists():
        return lone[0]
    raise AdapterError(_why_no_weights(directory), code="missing-weights", where=str(directory))


def _why_no_weights(directory: Path) -> str:
    if (directory / "adapter_config.json").exists():
        return f"no {WEIGHTS_NAME}; this is an adapter, not a base model"
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickles:
        return f"no {WEIGHTS_NAME}; {pickles[0]} is a Python pickle: convert the model to safetensors first"
    several = sorted(path.name for path in directory.glob("*.safetensors"))
    if several:
        return f"{len(several)} safetensors files ({several[0]}, ...) and no {WEIGHTS_NAME}{_INDEX_SUFFIX} to join them"
    return f"neither {WEIGHTS_NAME} nor {WEIGHTS_NAME}{_INDEX_SUFFIX}"


def _leaf(name: str) -> str:
    """``embed_tokens`` of ``model.embed_tokens.weight``; empty for what is not a weight."""
    path, _, last = name.rpartition(".")
    return path.rpartition(".")[2] if last == "weight" else ""


def _same_leaf(a: str, b: str) -> bool:
    return _leaf(a) == _leaf(b)
