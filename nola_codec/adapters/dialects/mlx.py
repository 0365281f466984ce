"""The dialect of MLX: ``<path>.lora_a`` (in, r) and ``<path>.lora_b`` (r, out), in safetensors or `.npz`.

The scaling is ``lora_parameters.scale`` of the configuration, and not alpha / r (`mlx_lm/tuner/lora.py`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nola_codec.adapters.dialects.module_rules import require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import is_tensor_file


class Mlx(PairDialect):
    """MLX's dialect."""

    is_conversion_target = True

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is a factor's, except in GGUF, whose keys are spelled in the same way."""
        return source.file.file_type != "gguf" and super().detect(source)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """Return the configuration if it is MLX's, also from beside a lone file."""
        config = source.config if source.config is not None else source.beside
        return dict(config) if config is not None and "lora_parameters" in config else None

    def scalings(self, source: AdapterSource, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return the scale of the configuration for each module; 1 without a configuration.

        Raises:
            AdapterError: ``not-lora``, ``bad-config``.
        """
        config = self.config(source)
        return dict.fromkeys(ranks, 1.0 if config is None else _scale(config, f"{source.where}: {CONFIG_NAME}"))

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``adapters.safetensors`` and the configuration to a directory, or one file by its suffix."""
        if not is_tensor_file(Path(out)) and len({module.scaling for module in adapter.modules}) > 1:
            message = "an MLX adapter has one scale for all modules, and these have different ones"
            raise AdapterError(message, code="not-expressible", where=str(out))
        file = AdapterFile(self.tensors(adapter, dtype), adapter.metadata, self.file_name, config=adapter.config or {})
        return write_adapter_file(out, file, overwrite=overwrite)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with one configuration for all modules; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear")
        layers = set()
        keys = set()
        for module in modules:
            match = re.fullmatch(r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)\.(.+)", module.name)
            if match is None or component_of(module.name):
                message = "MLX puts LoRA into the layers of a language model, and this is not in one"
                raise AdapterError(message, code="not-expressible", where=module.name)
            layers.add(int(match[1]))
            keys.add(match[2])
        for what, values in (("rank", {m.rank for m in modules}), ("scaling", {m.scaling for m in modules})):
            if len(values) > 1:
                message = f"MLX has one {what} for all modules, and these have {', '.join(map(str, sorted(values)))}"
                raise AdapterError(message, code="not-expressible")
        config = {
            "fine_tune_type": "lora",
            # MLX counts layers from the last one, and includes all up to it.
            "num_layers": max(layers) - min(layers) + 1,
            "lora_parameters": {
                "rank": modules[0].rank, "scale": modules[0].scaling, "dropout": 0.0, "keys": sorted(keys),
            },
        }  # fmt: skip
        return Adapter(self.name, sort_modules(modules), {}, config, {"format": "mlx"})

    def is_magnitude(self, key: str) -> bool:
        """Return True also for ``<module>.m``, as MLX calls a magnitude."""
        return key.endswith(".m") or super().is_magnitude(key)

    def base_model(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
        """Return the name of the base model, which MLX's configuration calls ``model``."""
        return super().base_model({"base_model_name_or_path": config.get("model"), **config}, metadata)


def _scale(config: Mapping[str, Any], where: str) -> float:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(mismatch("fine_tune_type", "lora or dora", kind), code="not-lora", where=where)
    parameters = config["lora_parameters"]
    scale = parameters.get("scale", 20.0) if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise AdapterError(mismatch("lora_parameters.scale", "a finite number", scale), code="bad-config", where=where)
    return float(scale)


MLX = Mlx(
    "mlx",
    "MLX",
    PairKeys.of_suffixes(".lora_a", ".lora_b", transposed=(True, True)),
    carried=re.compile(r"(?P<module>.+)\.m"),
    file_name="adapters.safetensors",
)
