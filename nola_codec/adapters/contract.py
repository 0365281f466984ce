"""`Dialect`, the contract of a dialect: everything that a dialect can do, and the defaults.

A dialect is the way in which a family of tools writes an adapter to a file: the names of the tensors, their shapes, and
the place of the scaling. `docs/add-a-dialect.md` writes a small dialect from this file alone. A dialect must have a
name and a title, and three methods: `detect` recognises a file, `read_source` reads it, and `tensors` makes its tensors
again. All other methods have defaults, which are right for a dialect that names its modules by their dotted paths in
the model.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nola_codec.adapters.adapter_delta import AdapterDelta, CombinedDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget, require_one_component, target_of
from nola_codec.adapters.coding_rules import COMBINED_RULES, CodingRules
from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.scale_records import kept_config, stored_origin
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import Adapter, Layout, LoraModule, Origin
from nola_codec.model.tensors import RawTensor

if TYPE_CHECKING:
    from nola_codec.adapters.sources import AdapterSource


class Dialect(ABC):
    """The way in which one family of tools writes adapters. An instance has no state.

    Attributes:
        name: The name in a `.nola` file and on the command line.
        title: The name in messages.
        file_name: The name of the weights in a directory that `write` makes.
        is_conversion_target: True if adapters of other dialects can be converted to this one (`from_modules`).
        base_model_key: The key of a configuration that names the base model; a conversion to this dialect fills it in.
            Empty if the dialect has no such key.
        layout: The names that `from_modules` wants for the modules of image and video models, as `families` knows them:
            ``"diffusers"``, ``"kohya"``, or ``""`` if their paths are not changed.
        spells_lora_biases: True if biases and DoRA magnitudes are called ``<module>.lora_B.bias`` and
            ``<module>.lora_magnitude_vector``; a conversion carries them between such dialects.
        carries_weights: True if carried tensors are weights of the model under their own names, which a merge puts into
            the model. If False, a merge refuses carried tensors.
        changes_stored_weights: True if a delta belongs to a stored tensor and not to a module. Tied weights then stay
            tied in a merge.
        needs_layer_shape: True if only the layer of the model tells the shape of a delta.
        has_components: True if the path of a module must begin with the component of a pipeline.
        is_for_images: True if image and video models alone have such adapters.
        rank_note: A sentence for a user whose adapter gets other ranks; empty if a file states all that loaders need.
        holds_whole_weights: True if the records of a file are parts of whole weights (`weight_of_record`). `inspect`
            then counts the elements of the weights, and otherwise those of the records.
        holds_base_changes: True if a vector ``<module>.diff`` may stand for a carried weight of the model, as a change
            of the base model's.
    """

    name: str
    title: str
    file_name: str = "lora.safetensors"
    is_conversion_target: ClassVar[bool] = False
    base_model_key: ClassVar[str] = ""
    layout: ClassVar[Literal["", "diffusers", "kohya"]] = ""
    spells_lora_biases: ClassVar[bool] = False
    carries_weights: ClassVar[bool] = False
    changes_stored_weights: ClassVar[bool] = False
    needs_layer_shape: ClassVar[bool] = False
    holds_whole_weights: ClassVar[bool] = False
    has_components: ClassVar[bool] = False
    is_for_images: ClassVar[bool] = False
    holds_base_changes: ClassVar[bool] = False
    rank_note: ClassVar[str] = ""

    # Reading and writing.

    @abstractmethod
    def detect(self, source: AdapterSource) -> bool:
        """Return True if a source is in this dialect; only the configuration and the names of the tensors tell."""

    @abstractmethod
    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source.

        Args:
            source: A source that `detect` accepted.
            carry_unknown: True to carry tensors that the dialect does not know (in `Adapter.raw`); False to refuse
                them.

        Raises:
            AdapterError: ``empty-adapter``, ``unknown-key`` and others; the message names the tensor.
        """

    @abstractmethod
    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors of a file, by their keys.

        Args:
            adapter: An adapter of this dialect.
            dtype: The dtype that coded tensors are rounded to, one of `FLOAT_DTYPES`; None is each tensor's own dtype.

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``, ``bad-config``, ``not-expressible``.
        """

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write an adapter of this dialect to one file, or to a directory that gets `file_name`.

        Args:
            adapter: The adapter to write.
            out: The path of a directory, or of a file if it has a suffix of a tensor file (`SUFFIXES`).
            dtype: The dtype of the coded tensors, as in `tensors`.
            overwrite: True if an existing file or directory may be replaced.

        Returns:
            The path.

        Raises:
            AdapterError: Those of `tensors`; ``not-expressible`` for parts that this type of file cannot hold.
            OutputExists: ``out`` exists and ``overwrite`` is False.
        """
        return write_adapter_file(out, self.contents(adapter, dtype), overwrite=overwrite)

    def contents(self, adapter: Adapter, dtype: str | None = None) -> AdapterFile:
        """Return what `write` puts into a directory; arguments and errors as in `write`."""
        config = kept_config(adapter.config)
        return AdapterFile(self.tensors(adapter, dtype), adapter.metadata, self.file_name, config=config)

    def lost_in_file(self, adapter: Adapter) -> str:
        """Return a sentence that says what a lone file does not hold of an adapter; empty, the default, if nothing."""
        return ""

    def added_in_directory(self, adapter: Adapter) -> str:
        """Return a sentence that says what a directory gets and the adapter has not; empty, the default, if nothing."""
        return ""

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scalings where its own files keep them.

        It is called if the scalings are from a place outside of the file: a configuration of another tool, or the user.
        By default nothing changes: a `.nola` file holds the scalings itself, but a file that `write` makes does not.
        """
        return adapter

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return the place that the scalings of a file came from, by its configuration and metadata.

        Args:
            config: The configuration of an adapter or of a `.nola` file.
            metadata: The metadata of either.
        """
        return stored_origin(config)

    def variant(self, config: Mapping[str, Any] | None) -> Dialect:
        """Return the dialect object for adapters with this configuration; `registry.dialect_of` calls this.

        A dialect for several methods that share one name overrides it, as PEFT's does.
        """
        return self

    # Deltas.

    def combined_deltas(self, adapter: Adapter) -> tuple[CombinedDelta, ...]:
        """Return the deltas that are not a sum of products and tensors; by default there are none.

        Raises:
            AdapterError: ``limit``, ``bad-shape``, ``missing-partner``, for a `.nola` file of a stranger.
        """
        return ()

    def slice_of(self, name: str) -> tuple[str, int]:
        """Return the name of the delta that a module is a slice of, and the number of the slice.

        By default each module is a whole delta, and the number is 0.
        """
        return name, 0

    def prepare_comparison(self, adapter: Adapter) -> Adapter:
        """Return the adapter in the form in which it can be compared with another of this dialect."""
        return adapter

    # Encoding.

    def coding_rules(self, adapter: Adapter) -> CodingRules:
        """Return the rules for an adapter; by default all is allowed, but a delta of several parts has the NMSE."""
        return COMBINED_RULES if self.combined_deltas(adapter) else CodingRules()

    def config_with_rank(self, adapter: Adapter, rank: int) -> Mapping[str, Any] | None:
        """Return the configuration for the adapter with another rank of all modules, and with the same scalings.

        Raises:
            EncodeError: ``option``: the dialect cannot change the rank. This is the default.
        """
        message = f"another rank would change the scaling alpha / r in the dialect {self.name}; leave out rank"
        raise EncodeError(message, code="option")

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return an adapter with other modules, whose ranks and scalings may differ from those of the adapter's own.

        The ranks of the result may be larger, by components that are zero, where the dialect needs it to express the
        scalings exactly. Everything that states ranks or scalings (alphas, configuration, metadata) is adapted.

        Args:
            adapter: An adapter of this dialect.
            modules: The new modules, under names of this dialect. They may be others than the adapter's own.

        Raises:
            AdapterError: ``not-expressible``: the dialect cannot change ranks, which is the default; or it cannot
                express the scalings.
        """
        message = f"{self.title} cannot express other ranks than those that the adapter has"
        raise AdapterError(message, code="not-expressible")

    def may_be_rounded(self, key: str) -> bool:
        """Return True if a carried tensor may lose precision (`--carried`), since it is a tensor of the model.

        By default only what describes a delta stays exact: alphas, scalars and magnitudes.
        """
        return not key.endswith((".alpha", ".scalar")) and not self.is_magnitude(key)

    def base_name(self, key: str) -> str:
        """Return the name that a carried tensor has in the base model; by default its own."""
        return key

    def without_carried(self, adapter: Adapter, keys: Collection[str]) -> Adapter:
        """Return the adapter without some carried tensors, which the base model has already."""
        return replace(adapter, raw={key: tensor for key, tensor in adapter.raw.items() if key not in keys})

    # Names of modules, and conversion to other dialects.

    def path_of(self, name: str) -> str:
        """Return the dotted path of a module in the model, from its name in the adapter.

        The path begins with the component of a pipeline, if the name tells one.

        Raises:
            AdapterError: ``not-expressible`` for a name that does not tell the path.
        """
        return name

    def path_start(self, adapter: Adapter) -> str:
        """Return what the path of every module has before it in a pipeline, such as ``unet.``; by default nothing.

        A dialect whose adapters belong to one model overrides it, if an adapter tells which component the model is.
        """
        return ""

    def component_of(self, name: str) -> str:
        """Return the component of a pipeline (``unet``, ``text_encoder``) that a module's name tells, or ``""``."""
        return component_of(name)

    def layout_name(self, name: str) -> str:
        """Return the name by which `families` recognises a module: the path, or a flattened name with its prefix.

        Raises:
            AdapterError: Those of `path_of`.
        """
        return self.path_of(name)

    def flat_path(self, name: str) -> tuple[str, str]:
        """Return the component and the rest of a module's path, with underscores for dots, to compare dialects.

        Raises:
            AdapterError: Those of `path_of`.
        """
        path = self.path_of(name)
        component = component_of(path)
        return component, _without_component(path).replace(".", "_")

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules of an adapter for a conversion, under names that `path_of` understands.

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
        """Make an adapter of this dialect. Only a dialect with `is_conversion_target` needs it.

        Args:
            modules: The modules; their names are their paths, with the component.
            raw: The carried tensors, by path and ending.
            base: ``config.json`` of the base model, if it was given.

        Raises:
            AdapterError: ``not-expressible``: the dialect cannot express a part of the adapter, which the message
                names; ``needs-base``.
        """
        raise AdapterError(f"adapters cannot be converted to {self.title}", code="not-expressible")

    # Merging into a base model.

    def require_mergeable(self, where: str) -> None:
        """Raise AdapterError if no adapter of this dialect can be merged. By default all can be."""
        return

    def require_complete(self, adapter: Adapter, where: str) -> None:
        """Raise AdapterError if an adapter lacks a part that its deltas need. By default no adapter does."""
        return

    def find_paths(self, names: Sequence[str], base: BaseModel) -> list[str]:
        """Return the path of each module, by which a merge finds its weight.

        The paths may have outer prefixes such as the component of a pipeline, and they may be flattened.

        Raises:
            AdapterError: ``base-mismatch``, ``not-expressible``.
        """
        return [self.path_of(name) for name in names]

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each delta: the tensor that it is added to, and the shape that this must have.

        Args:
            adapter: The adapter to merge.
            found: The deltas of the adapter, by name. Slices of one weight are together, in order.
            base: The names and shapes of the model's weights.
            where: The file's name, for messages.

        Raises:
            AdapterError: ``not-expressible`` for dialects that number their modules; ``merge-components`` for an
                adapter of several components of a pipeline; ``base-mismatch`` for names that no weight has; and those
                of `require_mergeable`.
        """
        self.require_mergeable(where)
        require_one_component((self.component_of(name) for name in found), base)
        deltas = [parts[0] for parts in found.values()]
        paths = self.find_paths([delta.changed_tensor[0] for delta in deltas], base)
        return [target_of(delta, path) for delta, path in zip(deltas, paths, strict=True)]

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors that a merge puts into the model, without those that only describe deltas.

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
                message = "is a carried tensor, and its effect on a weight is not known"
                raise AdapterError(message, code="merge-unknown", where=key)
            kept[key] = tensor
        return kept

    def is_magnitude(self, key: str) -> bool:
        """Return True if a carried tensor is a magnitude of DoRA."""
        return key.endswith(".dora_scale")

    def merge_config(self, adapter: Adapter) -> Mapping[str, Any] | None:
        """Return PEFT's configuration, which tells the carried tensors that are trained copies (``modules_to_save``).

        None, the default, is for dialects without such a configuration.
        """
        return None

    # Questions of `inspect` and `load` about a file's header.

    def base_model(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
        """Return the name of the base model that an adapter's configuration or metadata gives."""
        of_kohya = (metadata.get(key) for key in ("ss_sd_model_name", "modelspec.architecture"))
        found = (config.get("base_model_name_or_path"), *of_kohya)
        return next((name for name in found if isinstance(name, str) and name), None)

    def weight_of_record(self, name: str) -> str:
        """Return the weight that a record is a part of. This is asked only with `holds_whole_weights`."""
        return name

    def direct_keys(self, records: Iterable[tuple[str, Layout]]) -> dict[str, tuple[str, str]] | None:
        """Return the keys of lora_A and lora_B by record, if the dialect stores the decoded factors without any change.

        None, the default, means that `tensors` has to make the dialect's tensors.

        Args:
            records: The name and the layout of each low-rank record of a file.
        """
        return None


def _without_component(path: str) -> str:
    component = component_of(path)
    return path[len(component) + 1 :] if component else path
