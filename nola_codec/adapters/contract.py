"""The contract of a dialect: everything that a dialect can do, and what happens if it does not say.

A dialect is a way in which some tool writes an adapter to a file: the names of the tensors, their shapes, where the
scaling is kept. `docs/add-a-dialect.md` writes a small one from this file alone. A dialect must have a name and a
title, and say how a file is recognised (`detect`), how it is read (`read_source`), and how its tensors are made again
(`tensors`). Every other method has a default, which is right for a dialect that names its modules by their dotted paths
in the model.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from nola_codec.adapters.adapter_delta import AdapterDelta, CombinedDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget, require_one_component, target_of
from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.sources import AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import Adapter, Layout, LoraModule
from nola_codec.model.tensors import RawTensor


class Dialect(ABC):
    """One family of tools' way to write adapters. An instance holds no state.

    Attributes:
        name: The id in a `.nola` file and on the command line.
        title: The name in messages.
        file_name: The name of the weights in a directory that `write` makes.
        is_conversion_target: True if adapters of other dialects can be converted to this one (`from_modules`).
        spells_lora_biases: True if biases and DoRA magnitudes are called ``<module>.lora_B.bias`` and
            ``<module>.lora_magnitude_vector``; a conversion carries them between such dialects.
        carries_weights: True if carried tensors are weights of the model under their own names, so that a merge can
            put them in. If False, a merge refuses them.
        changes_stored_weights: True if a delta belongs to a stored tensor rather than to a module: tied weights then
            stay tied.
        needs_layer_shape: True if only the layer of the model tells the shape of a delta.
        holds_whole_weights: True if the records of a file are parts of weights (`weight_of_record`), and what counts
            is the weights' size; otherwise the size of the records counts.
    """

    name: str
    title: str
    file_name: str = "lora.safetensors"
    is_conversion_target: ClassVar[bool] = False
    spells_lora_biases: ClassVar[bool] = False
    carries_weights: ClassVar[bool] = False
    changes_stored_weights: ClassVar[bool] = False
    needs_layer_shape: ClassVar[bool] = False
    holds_whole_weights: ClassVar[bool] = False

    # Reading and writing.

    @abstractmethod
    def detect(self, source: AdapterSource) -> bool:
        """Return True if the source is in this dialect, by its configuration and the names of its tensors alone."""

    @abstractmethod
    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read an opened source whole.

        Args:
            source: A source that `detect` accepted.
            carry_unknown: Put tensors that the dialect does not know into `Adapter.raw`, exact, instead of refusing
                them.

        Raises:
            AdapterError: ``empty-adapter``, ``unknown-key`` and others; the message names the tensor.
        """

    @abstractmethod
    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors of a file under their keys, coded ones rounded to ``dtype`` (None: their own dtype).

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``, ``bad-config``, ``not-expressible``.
        """

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write an adapter of this dialect to one file, or to a directory that gets `file_name`.

        Args:
            adapter: The adapter to write.
            out: A path; without the suffix of a tensor file it is a directory.
            dtype: The dtype of the coded tensors, as in `tensors`.
            overwrite: Replace what is there.

        Raises:
            AdapterError: Those of `tensors`, or ``not-expressible`` for what the file has no place for.
            OutputExists: Something is there and ``overwrite`` is False.
        """
        file = AdapterFile(self.tensors(adapter, dtype), adapter.metadata, self.file_name)
        return write_adapter_file(out, file, overwrite=overwrite)

    def variant(self, config: Mapping[str, Any] | None) -> Dialect:
        """Return the dialect object that serves adapters with this configuration; `registry.dialect_of` asks it.

        A family of methods that share one name overrides this, as PEFT does.
        """
        return self

    # Deltas.

    def combined_deltas(self, adapter: Adapter) -> tuple[CombinedDelta, ...]:
        """Return the deltas that are more than a sum of products and tensors; by default there are none.

        Raises:
            AdapterError: ``limit``, ``bad-shape``, ``missing-partner``, in a file of a stranger.
        """
        return ()

    def slice_of(self, name: str) -> tuple[str, int]:
        """Return the delta that a module is a slice of, and the slice's number; by default the module itself and 0."""
        return name, 0

    def prepare_comparison(self, adapter: Adapter) -> Adapter:
        """Return the adapter in the form in which it can be compared with another of this dialect."""
        return adapter

    # Encoding.

    def coding_rules(self, adapter: Adapter) -> CodingRules:
        """Return how an adapter of this dialect may be coded; by default everything is allowed."""
        return CodingRules()

    def config_with_rank(self, adapter: Adapter, rank: int) -> Mapping[str, Any] | None:
        """Return the configuration of the adapter if all its modules had this rank, every scaling kept.

        Raises:
            EncodeError: ``option``: the dialect cannot say it. That is the default.
        """
        message = f"another rank would change what alpha / r means in the dialect {self.name}; leave out rank"
        raise EncodeError(message, code="option")

    # Names of modules, and conversion to other dialects.

    def path_of(self, name: str) -> str:
        """Return the dotted path in the model that a module's name stands for, after the component's name if any.

        Raises:
            AdapterError: ``not-expressible`` for names that do not tell it.
        """
        return name

    def component_of(self, name: str) -> str:
        """Return the component of a pipeline (``unet``, ``text_encoder``) that a module's name says, or ``""``."""
        return component_of(name)

    def flat_path(self, name: str) -> tuple[str, str]:
        """Return the component and the rest of a module's path with underscores for dots, to compare dialects by.

        Raises:
            AdapterError: As `path_of`.
        """
        path = self.path_of(name)
        component = component_of(path)
        return component, _without_component(path).replace(".", "_")

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules of an adapter under names that `path_of` takes, ready to be converted.

        Args:
            adapter: An adapter of this dialect.
            base: ``config.json`` of the base model, if it was given.

        Raises:
            AdapterError: ``needs-base``, ``not-expressible``, ``base-mismatch``.
        """
        return adapter.modules

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter of this dialect; needed only with `is_conversion_target`.

        Args:
            modules: Named by their paths, component included.
            raw: Carried tensors by path and ending.
            base: ``config.json`` of the base model, if it was given.

        Raises:
            AdapterError: ``not-expressible``, naming what the dialect has no words for; ``needs-base``.
        """
        raise AdapterError(f"adapters cannot be converted to {self.title}", code="not-expressible")

    # Merging into a base model.

    def require_mergeable(self, where: str) -> None:
        """Raise AdapterError if no adapter of this dialect can be merged; by default all can."""
        return

    def require_complete(self, adapter: Adapter, where: str) -> None:
        """Raise AdapterError for an adapter that lacks something its deltas are made of; by default none does."""
        return

    def find_paths(self, names: Sequence[str], base: BaseModel) -> list[str]:
        """Return the path of each module in the base model, without the component of a pipeline.

        Raises:
            AdapterError: ``base-mismatch``, ``not-expressible``.
        """
        return [_without_component(self.path_of(name)) for name in names]

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return what each delta asks of a base model: which tensor it is added to, and in what shape.

        Args:
            adapter: The adapter that is merged.
            found: Its deltas by name; those that are slices of one weight are together, in order.
            base: The names and shapes of the model's weights.
            where: The file, for messages.

        Raises:
            AdapterError: ``not-expressible`` for dialects that number their modules; ``merge-components`` for an
                adapter of several components of a pipeline; ``base-mismatch`` for names that no weight has; and those
                of `require_mergeable`.
        """
        self.require_mergeable(where)
        require_one_component(self.component_of(name) for name in found)
        deltas = [parts[0] for parts in found.values()]
        paths = self.find_paths([delta.changed_tensor[0] for delta in deltas], base)
        return [target_of(delta, path) for delta, path in zip(deltas, paths, strict=True)]

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors that a merge puts into the model; what only says how deltas are made is left out.

        Raises:
            AdapterError: ``merge-dora``; ``merge-unknown`` for tensors whose meaning to a model is not known.
        """
        kept = {}
        for key, tensor in adapter.raw.items():
            if key.endswith((".alpha", ".scalar")):
                continue
            if self.is_magnitude(key):
                message = "DoRA divides by the norms of W + delta, and cannot be merged to the same bits everywhere"
                raise AdapterError(message, code="merge-dora", where=key)
            if not self.carries_weights:
                message = "was carried as it came; what it does to a weight is not known"
                raise AdapterError(message, code="merge-unknown", where=key)
            kept[key] = tensor
        return kept

    def is_magnitude(self, key: str) -> bool:
        """Return True if a carried tensor is a magnitude of DoRA."""
        return key.endswith(".dora_scale")

    def merge_config(self, adapter: Adapter) -> Mapping[str, Any] | None:
        """Return PEFT's configuration where it says which carried tensors are trained copies (``modules_to_save``)."""
        return None

    # What `inspect` and `load` ask of a file's header.

    def base_model(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
        """Return the name of the base model that an adapter's configuration or metadata gives."""
        of_kohya = (metadata.get(key) for key in ("ss_sd_model_name", "modelspec.architecture"))
        found = (config.get("base_model_name_or_path"), *of_kohya)
        return next((name for name in found if isinstance(name, str) and name), None)

    def weight_of_record(self, name: str) -> str:
        """Return the weight that a record is a part of; asked only with `holds_whole_weights`."""
        return name

    def direct_keys(self, records: Iterable[tuple[str, Layout]]) -> dict[str, tuple[str, str]] | None:
        """Return the keys of lora_A and lora_B by record, if the decoded tensors are the dialect's as they stand.

        None, the default, means that `tensors` has to make them.

        Args:
            records: The name and the layout of each low-rank record of a file.
        """
        return None


def _without_component(path: str) -> str:
    component = component_of(path)
    return path[len(component) + 1 :] if component else path
