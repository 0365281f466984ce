"""The dialect of MLX: ``<path>.lora_a`` (in, r) and ``<path>.lora_b`` (r, out), in safetensors or `.npz`.

The scaling is ``lora_parameters.scale`` of the configuration, and not alpha / r (`mlx_lm/tuner/lora.py`).
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.mlx_names import LAYER, from_mlx, to_mlx
from nola_codec.adapters.dialects.module_rules import require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import is_tensor_file

_ALL_LAYERS = -1
"""The number of layers, counted from the last one, that MLX puts LoRA into; -1 stands for all. A layer without factors
in the file stays as it is, since MLX begins with lora_b = 0."""


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

    def lost_in_file(self, adapter: Adapter) -> str:
        """Return a sentence about the configuration, which has the scale."""
        scales = ", ".join(str(scale) for scale in sorted({m.scaling for m in adapter.modules}))
        return (
            f"a lone file of MLX does not hold {CONFIG_NAME}, and so not the scale {scales}, without which MLX cannot "
            "load the adapter: give -o a directory to keep it"
        )

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules of one rank and one scale; arguments and errors as in `Dialect`."""
        fitted = _of_one_scale(with_largest_rank(modules))
        config = adapter.config
        if config is not None or fitted[0].scaling != 1.0:
            shape = {"rank": fitted[0].rank, "scale": fitted[0].scaling}
            old = dict(config or {"fine_tune_type": "lora", "num_layers": _ALL_LAYERS})
            parameters = {"dropout": 0.0, **dict(old.get("lora_parameters") or {}), **shape}
            if {m.name for m in modules} != {m.name for m in adapter.modules}:
                old["num_layers"] = _ALL_LAYERS
                if "keys" in parameters:
                    parameters["keys"] = sorted({*parameters["keys"], *_keys(modules)})
            config = {**old, "lora_parameters": parameters}
        return replace(adapter, modules=sort_modules(fitted), config=config)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with one configuration for all modules; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear")
        modules = [replace(m, name=to_mlx(m.name, base)) for m in modules]
        keys = _keys(modules)
        fitted = _of_one_scale(with_largest_rank(modules))
        config = {
            "fine_tune_type": "lora",
            "num_layers": _ALL_LAYERS,
            "lora_parameters": {
                "rank": fitted[0].rank, "scale": fitted[0].scaling, "dropout": 0.0, "keys": keys,
            },
        }  # fmt: skip
        return Adapter(self.name, sort_modules(fitted), {}, config, {"format": "mlx"})

    def path_of(self, name: str) -> str:
        """Return the path in Transformers, which differs for some models."""
        return from_mlx(name)

    def is_magnitude(self, key: str) -> bool:
        """Return True also for ``<module>.m``, as MLX calls a magnitude."""
        return key.endswith(".m") or super().is_magnitude(key)

    def base_model(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
        """Return the name of the base model, which MLX's configuration calls ``model``."""
        return super().base_model({"base_model_name_or_path": config.get("model"), **config}, metadata)


def _keys(modules: Sequence[LoraModule]) -> list[str]:
    """Return the paths of modules within their layers, as ``lora_parameters.keys`` lists them.

    Raises:
        AdapterError: ``not-expressible`` for a module that is in no layer of a language model.
    """
    keys = set()
    for module in modules:
        match = LAYER.fullmatch(module.name)
        if match is None:
            message = "MLX puts LoRA into the layers of a language model, and this is not in one"
            raise AdapterError(message, code="not-expressible", where=module.name)
        keys.add(match["leaf"])
    return sorted(keys)


def _of_one_scale(modules: Sequence[LoraModule]) -> list[LoraModule]:
    """Return modules with the most common scaling; the others are folded into lora_B if that is exact.

    Raises:
        AdapterError: ``not-expressible``: the scalings differ by more than powers of two.
    """
    common = Counter(m.scaling for m in modules).most_common(1)[0][0]
    folded = []
    for module in modules:
        if module.scaling != common and (not common or abs(math.frexp(module.scaling / common)[0]) != 0.5):
            found = ", ".join(map(str, sorted({m.scaling for m in modules})))
            message = f"MLX has one scaling for all modules, and these have {found}"
            raise AdapterError(message, code="not-expressible")
        factor = module.scaling / common if module.scaling != common else 1.0
        folded.append(replace(module, lora_B=module.lora_B * np.float32(factor), scaling=common))
    return folded


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
