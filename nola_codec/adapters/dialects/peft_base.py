"""`PeftDialect`: the base of PEFT's dialects, with the prefix of keys, the configuration, and writing a directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nola_codec.adapters.beside_files import is_beside, require_no_beside, split_beside, write_beside
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME, AdapterSource
from nola_codec.adapters.writing import AdapterFile
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.stores.files import atomic_directory, dump_json, require_free, updated_directory
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors


def module_path(module: str) -> str:
    """Return the path of a module in the base model, without ``base_model.model.`` and PEFT's own ``base_layer``."""
    return ".".join(part for part in module.removeprefix(PREFIX).split(".") if part != "base_layer")


class PeftDialect(Dialect):
    """One method of PEFT. All methods are called ``peft`` in a file, and the configuration tells them apart.

    Attributes:
        config_class: The name of PEFT's class for the configuration.
        diagonals: The ends of the keys of a layer's diagonals; empty for a method that trains pairs of factors.
    """

    name = "peft"
    title = "PEFT"
    spells_lora_biases = True
    config_class: str
    diagonals: tuple[str, ...] = ()

    def detect(self, source: AdapterSource) -> bool:
        """Return True if the configuration is PEFT's, or the keys have its prefix."""
        if source.config is not None and "peft_type" in source.config:
            return True
        return any(key.startswith("base_model.") and ".lora_" in key for key in source.file.tensors)

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Raise AdapterError for a configuration that this method cannot follow."""
        raise NotImplementedError

    def require_writable(self, adapter: Adapter, path: Path, *, lone: bool) -> Adapter:
        """Return the adapter in the form in which it is written to a lone file or to a directory.

        Raises:
            AdapterError: The adapter cannot be written so.
        """
        raise NotImplementedError

    def fitting_config(self, adapter: Adapter, where: str) -> Mapping[str, Any] | None:
        """Return the configuration with which PEFT reads the adapter correctly."""
        return adapter.config

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write an adapter to a directory, or to one file if ``out`` has a suffix of a tensor file (`SUFFIXES`).

        A directory gets `adapter_model.safetensors`, and `adapter_config.json` if the adapter has a configuration. If
        ranks or scalings differ from those of the configuration, `with_ranks` adapts it. Other files in an existing
        directory stay. A lone file has no place for a scaling, so the scaling is multiplied into ``lora_B``; it must be
        a power of two, so that this is exact.

        Args:
            adapter: The adapter to write; the factors may have other ranks than `a_shape` and `b_shape` say.
            out: The path of a directory or of a tensor file.
            dtype: The dtype of the coded tensors, one of `FLOAT_DTYPES`; None is each tensor's own dtype. Carried
                tensors keep their dtypes.
            overwrite: True if an existing file may be replaced.

        Returns:
            The path.

        Raises:
            AdapterError: ``not-expressible``, ``overflow``, ``zero-rank``, ``needs-directory``, ``not-finite``, and
                those of `parse_config`.
            OutputExists: ``out`` exists and ``overwrite`` is False.
        """
        path = Path(out)
        lone = is_tensor_file(path)
        adapter = self.require_writable(adapter, path, lone=lone)
        made, beside = split_beside(self.tensors(adapter, dtype))
        metadata = adapter.metadata or {"format": "pt"}
        require_free(path, overwrite=overwrite)
        if lone:
            require_no_beside(beside, path)
            return write_tensors(path, made, metadata)
        fitting = self.fitting_config(adapter, str(path))
        config = None if fitting is None else dump_json(fitting)
        is_update = path.is_dir() and any(path.iterdir())
        place = updated_directory(path, CONFIG_NAME) if is_update else atomic_directory(path, replace=overwrite)
        with place as directory:
            write_beside(directory, beside)
            write_tensors(directory / WEIGHTS_NAME, made, metadata)
            if config is not None:
                (directory / CONFIG_NAME).write_bytes(config)
        return path

    def contents(self, adapter: Adapter, dtype: str | None = None) -> AdapterFile:
        """Return what `write` puts into a directory; arguments and errors as there."""
        adapter = self.require_writable(adapter, Path(WEIGHTS_NAME).parent, lone=False)
        fitting = self.fitting_config(adapter, CONFIG_NAME)
        metadata = adapter.metadata or {"format": "pt"}
        return AdapterFile(self.tensors(adapter, dtype), metadata, WEIGHTS_NAME, config=fitting or {})

    def lost_in_file(self, adapter: Adapter) -> str:
        """Return a sentence about the configuration, if there is one, and about the scalings that it has."""
        if adapter.config is None:
            return ""
        scalings = sorted({m.scaling for m in adapter.modules} - {1.0})
        text = f"a lone file does not hold {CONFIG_NAME}, without which PEFT cannot load the adapter"
        if scalings:
            shown = ", ".join(f"{scaling:g}" for scaling in scalings[:4])
            text += f"; the scaling alpha / r ({shown}) is multiplied into lora_B, so load it with lora_alpha = r"
        return text + "; give -o a directory to keep the configuration"

    def draws(self, config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> dict[str, Draw]:
        """Return the draw of each carried tensor that a seed makes, by key."""
        return {}

    def path_of(self, name: str) -> str:
        """Return the name without PEFT's prefix."""
        return name.removeprefix(PREFIX)

    def may_be_rounded(self, key: str) -> bool:
        """Return False for what belongs to a method of PEFT and not to the model, such as magnitudes and matrices."""
        return not any(part in key for part in (".lora_", "vera_", "randlora_"))

    def base_name(self, key: str) -> str:
        """Return the name without the parts that PEFT adds."""
        return module_path(key)

    def without_carried(self, adapter: Adapter, keys: Collection[str]) -> Adapter:
        """Return the adapter without some carried tensors; ``modules_to_save`` loses modules that have none left."""
        left = super().without_carried(adapter, keys)
        saved = (adapter.config or {}).get("modules_to_save")
        if adapter.config is None or not isinstance(saved, list):
            return left
        gone = [name for name in saved if any(f"{name}." in key for key in keys)]
        kept = [name for name in saved if name not in gone or any(f"{name}." in key for key in left.raw)]
        return replace(left, config={**adapter.config, "modules_to_save": kept or None})

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return all carried tensors, since each of them belongs to the model.

        Raises:
            AdapterError: ``merge-unknown`` for tensors of a file beside the adapter.
        """
        beside = next((key for key in adapter.raw if is_beside(key)), None)
        if beside is not None:
            message = "is a tensor of a file beside the adapter; encode without --carry-unknown to merge"
            raise AdapterError(message, code="merge-unknown", where=beside)
        return dict(adapter.raw)

    def merge_config(self, adapter: Adapter) -> Mapping[str, Any] | None:
        """Return the configuration."""
        return adapter.config
