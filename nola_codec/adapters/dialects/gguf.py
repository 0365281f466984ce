"""The dialect of llama.cpp: ``<tensor>.lora_a`` (r, in), ``<tensor>.lora_b`` (out, r), one ``adapter.lora.alpha``.

The delta is alpha / r times the product, or the product itself if alpha is 0 (`llama-adapter.cpp`). For token
embeddings, ``lora_a`` is stored transposed, (vocab, r). The key-values and their types are kept in `config`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.gguf_names import ALPHA, EMBEDDING, fit_to_one_alpha, from_gguf, key_values, to_gguf
from nola_codec.adapters.dialects.pair_dialect import PairDialect, require_no_vectors
from nola_codec.adapters.dialects.pairs import PairKeys, Transposed, join_tensors, pair_tensors, read_pair
from nola_codec.adapters.scale_records import stored_origin
from nola_codec.adapters.scales import FoundScales, default_scales
from nola_codec.adapters.sources import AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule, Origin
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import is_tensor_file
from nola_codec.stores.tensor_store import TensorStore

_TURNED: Transposed = (True, False)


class Gguf(PairDialect):
    """llama.cpp's dialect."""

    is_conversion_target = True

    def detect(self, source: AdapterSource) -> bool:
        """Return True for a GGUF file."""
        return source.file.file_type == "gguf"

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source. Raises AdapterError ``not-lora``, and the errors of `PairDialect`."""
        extra = source.file.extra
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            found = extra.get(key, ("", None))[1]
            if found != wanted:
                raise AdapterError(mismatch(key, wanted, found), code="not-lora", where=source.where)
        return super().read_source(source, carry_unknown=carry_unknown)

    def read_module(self, store: TensorStore, name: str, scaling: float) -> LoraModule:
        """Read one pair; that of the token embeddings has another layout."""
        if name != EMBEDDING:
            return super().read_module(store, name, scaling)
        keys = self.keys.of(name)
        return read_pair(store, name, keys, scaling=scaling, layout="embedding", transposed=_TURNED)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """Return the key-values with their types."""
        return {"gguf": {key: list(value) for key, value in source.file.extra.items()}}

    def find_scales(self, source: AdapterSource, ranks: Mapping[str, int], *, has_alphas: bool) -> FoundScales:
        """Return alpha / r for each module; llama.cpp takes 1 if alpha is 0. Raises AdapterError ``bad-config``."""
        alpha = source.file.extra.get(ALPHA, ("FLOAT32", 0.0))[1]
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise AdapterError(mismatch(ALPHA, "a finite number", alpha), code="bad-config", where=source.where)
        if not alpha:
            return default_scales(source, ranks, self.default_scale)
        return FoundScales({name: alpha / rank for name, rank in ranks.items()}, "metadata")

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scaling as the one alpha. Raises AdapterError ``not-expressible``."""
        alphas = {float(np.float32(m.scaling * m.rank)) for m in adapter.modules}
        if len(alphas) > 1:
            message = "GGUF has one alpha for all modules, and these have several ranks, so --scale needs several"
            raise AdapterError(message, code="not-expressible")
        values = {key: list(value) for key, value in key_values(adapter).items()}
        return replace(adapter, config={**(adapter.config or {}), "gguf": {**values, ALPHA: ["FLOAT32", alphas.pop()]}})

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return ``metadata`` if the key-values have an alpha; arguments as in `Dialect`."""
        stored = stored_origin(config)
        values = (config or {}).get("gguf")
        has_alpha = isinstance(values, Mapping) and bool(values.get(ALPHA, ("", 0))[-1])
        return stored or ("metadata" if has_alpha else "dialect")

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments and errors as in `Dialect`."""
        require_no_vectors(adapter, self.title)
        turned = {m.name: _TURNED if m.layout == "embedding" else (False, False) for m in adapter.modules}
        pairs = [pair_tensors(m, self.keys.of(m.name), dtype, transposed=turned[m.name]) for m in adapter.modules]
        return join_tensors(adapter.raw, *pairs)

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write a ``.gguf`` file, or ``adapter.gguf`` in a directory."""
        path = Path(out)
        if is_tensor_file(path) and path.suffix != ".gguf":
            message = "only a .gguf file can hold the key-values of this adapter, such as its alpha"
            raise AdapterError(message, code="not-expressible", where=str(path))
        file = AdapterFile(self.tensors(adapter, dtype), {}, self.file_name, extra=key_values(adapter))
        return write_adapter_file(path, file, overwrite=overwrite)

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules, of ranks that one alpha fits; arguments and errors as in `Dialect`."""
        alpha, fitted = fit_to_one_alpha(modules)
        extra = {key: list(value) for key, value in key_values(adapter).items()}
        extra[ALPHA] = ["FLOAT32", alpha]
        return replace(adapter, modules=tuple(fitted), config={**(adapter.config or {}), "gguf": extra})

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules with the paths of Transformers as names; errors as in `Dialect`."""
        return from_gguf(adapter, base)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with the names of llama.cpp; arguments and errors as in `Dialect`."""
        return to_gguf(modules, base)

    def require_mergeable(self, where: str) -> None:
        """Raise AdapterError ``merge-gguf``."""
        message = (
            "llama.cpp permutes rows and renames tensors: convert it with `decode --format peft --base MODEL`, and "
            "encode the result"
        )
        raise AdapterError(message, code="merge-gguf", where=where)

    def _rank(self, source: AdapterSource, name: str) -> int:
        shape = source.file.tensors[self.keys.b_key(name)].shape
        return max(1, shape[1]) if len(shape) == 2 else 1


GGUF = Gguf(
    "gguf",
    "GGUF LoRA",
    PairKeys.of_suffixes(".lora_a", ".lora_b", stem=r".+\.weight"),
    carried=re.compile(r"(?!)"),
    file_name="adapter.gguf",
)
