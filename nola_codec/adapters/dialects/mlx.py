"""MLX: ``<path>.lora_a`` (in, r), ``<path>.lora_b`` (r, out), in safetensors or `.npz`; ``scale`` in the configuration.

mlx_lm multiplies by ``lora_parameters.scale`` as it stands, not by alpha / r (`mlx_lm/tuner/lora.py`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nola_codec.adapters.containers.tensor_files import is_tensor_file, write_tensors
from nola_codec.adapters.dialects.pairs import Spelling
from nola_codec.adapters.dialects.plain import PairDialect
from nola_codec.adapters.files import atomic_directory, dump_json, require_free
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError, expected
from nola_codec.model import Adapter


class _Mlx(PairDialect):
    def detect(self, source: AdapterSource) -> bool:
        return source.file.container != "gguf" and super().detect(source)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        config = source.config if source.config is not None else source.beside
        return dict(config) if config is not None and "lora_parameters" in config else None

    def scalings(self, source: AdapterSource, ranks: Mapping[str, int]) -> dict[str, float]:
        config = self.config(source)
        return dict.fromkeys(ranks, 1.0 if config is None else _scale(config, f"{source.where}: {CONFIG_NAME}"))

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``adapters.safetensors`` and the configuration to a directory, or one file by its suffix."""
        path = Path(out)
        require_free(path, overwrite=overwrite)
        tensors = self.tensors(adapter, dtype)
        if is_tensor_file(path):
            return write_tensors(path, tensors, adapter.metadata)
        config = {**(adapter.config or {})}
        scales = {module.scaling for module in adapter.modules}
        if len(scales) > 1:
            raise AdapterError(
                "one scale holds for all modules of an MLX adapter", code="not-expressible", where=str(out)
            )
        with atomic_directory(path, replace=overwrite) as directory:
            write_tensors(directory / self.file_name, tensors, adapter.metadata)
            if config:
                (directory / CONFIG_NAME).write_bytes(dump_json(config))
        return path


def _scale(config: Mapping[str, Any], where: str) -> float:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(expected("fine_tune_type", "lora or dora", kind), code="not-lora", where=where)
    parameters = config["lora_parameters"]
    scale = parameters.get("scale", 20.0) if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise AdapterError(expected("lora_parameters.scale", "a finite number", scale), code="bad-config", where=where)
    return float(scale)


MLX = _Mlx(
    "mlx",
    "MLX",
    Spelling.of_suffixes(".lora_a", ".lora_b", transposed=(True, True)),
    carried=re.compile(r"(?P<module>.+)\.m"),
    file_name="adapters.safetensors",
)
