"""What PEFT's methods have in common: the prefix of the keys, the configuration, how a directory is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME, AdapterSource
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.stores.files import atomic_directory, atomic_file, dump_json, require_free
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors


def module_path(module: str) -> str:
    """Return the path of a module in the base model: without ``base_model.model.`` and PEFT's own ``base_layer``."""
    return ".".join(part for part in module.removeprefix(PREFIX).split(".") if part != "base_layer")


class PeftDialect(Dialect):
    """One method of PEFT. All of them are called ``peft`` in a file; the configuration says which one it is.

    Attributes:
        config_class: The name of the class of PEFT that holds the configuration.
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
        """Return the adapter as it can be written to a lone file or a directory; raise AdapterError if it cannot."""
        raise NotImplementedError

    def fitting_config(self, adapter: Adapter, where: str) -> Mapping[str, Any] | None:
        """Return the configuration that makes PEFT read the adapter right."""
        return adapter.config

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write an adapter back: a directory, or one file when ``out`` ends as such a file does (`SUFFIXES`).

        A directory gets `adapter_config.json` (when the adapter has a configuration) and `adapter_model.safetensors`.
        If ranks or scalings differ from what the configuration says, it is adapted by `with_ranks`. Everything else in
        an existing directory stays. A lone file has no place for a scaling, so there it is multiplied into ``lora_B``,
        which is done only where that is exact: powers of two.

        Args:
            adapter: What to write; the factors may have other ranks than `a_shape` and `b_shape` say.
            out: Directory or tensor file.
            dtype: The dtype of the coded tensors: one of `FLOAT_DTYPES`; None keeps each module's own. Raw tensors keep
                theirs.
            overwrite: Replace what is there.

        Raises:
            AdapterError: ``not-expressible``, ``overflow``, ``zero-rank``, ``needs-directory``, ``not-finite``, or as
                `parse_config`.
            OutputExists: Something is there and ``overwrite`` is False.
        """
        path = Path(out)
        lone = is_tensor_file(path)
        adapter = self.require_writable(adapter, path, lone=lone)
        made = self.tensors(adapter, dtype)
        metadata = adapter.metadata or {"format": "pt"}
        require_free(path, overwrite=overwrite)
        if lone:
            return write_tensors(path, made, metadata)
        fitting = self.fitting_config(adapter, str(path))
        config = None if fitting is None else dump_json(fitting)
        if path.is_dir() and any(path.iterdir()):
            write_tensors(path / WEIGHTS_NAME, made, metadata)
            if config is not None:
                with atomic_file(path / CONFIG_NAME) as stream:
                    stream.write(config)
            return path
        with atomic_directory(path, replace=overwrite) as directory:
            write_tensors(directory / WEIGHTS_NAME, made, metadata)
            if config is not None:
                (directory / CONFIG_NAME).write_bytes(config)
        return path

    def draws(self, config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> dict[str, Draw]:
        """Return the draw of each carried tensor that a seed makes, by key."""
        return {}

    def path_of(self, name: str) -> str:
        """Return the name without PEFT's prefix."""
        return name.removeprefix(PREFIX)

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return all carried tensors: PEFT saves nothing else."""
        return dict(adapter.raw)

    def merge_config(self, adapter: Adapter) -> Mapping[str, Any] | None:
        """Return the configuration."""
        return adapter.config
