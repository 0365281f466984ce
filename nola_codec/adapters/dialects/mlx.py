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

from nola_codec.adapters.dialects.pairs import Spelling
from nola_codec.adapters.dialects.plain import PairDialect, write_adapter_file
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError, expected
from nola_codec.model.adapter import Adapter
from nola_codec.stores.tensor_files import is_tensor_file


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
        if not is_tensor_file(Path(out)) and len({module.scaling for module in adapter.modules}) > 1:
            message = "one scale holds for all modules of an MLX adapter"
            raise AdapterError(message, code="not-expressible", where=str(out))
        tensors = self.tensors(adapter, dtype)
        return write_adapter_file(
            out, tensors, adapter.metadata, self.file_name, overwrite=overwrite, config=adapter.config
        )


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
