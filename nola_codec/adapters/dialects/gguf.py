"""GGUF LoRA of llama.cpp: ``<tensor>.lora_a`` (r, in), ``<tensor>.lora_b`` (out, r), one `adapter.lora.alpha` for all.

The delta is alpha / r times the product, or the product itself where alpha is 0 (`llama-adapter.cpp`). Token embeddings
have ``lora_a`` (vocab, r): the other way round. Key-values are kept, in `config`, with their types.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nola_codec.adapters.dialects.pairs import Spelling, Transposed, join, pair_tensors, read_pair
from nola_codec.adapters.dialects.plain import PairDialect, require_no_vectors, write_adapter_file
from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError, expected
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import is_tensor_file
from nola_codec.stores.tensor_store import TensorStore

ALPHA = "adapter.lora.alpha"
EMBEDDING = "token_embd.weight"
_TURNED: Transposed = (True, False)


class _Gguf(PairDialect):
    def detect(self, source: AdapterSource) -> bool:
        return source.file.container == "gguf"

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        extra = source.file.extra
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            found = extra.get(key, ("", None))[1]
            if found != wanted:
                raise AdapterError(expected(key, wanted, found), code="not-lora", where=source.where)
        return super().read_source(source, carry_unknown=carry_unknown)

    def read_module(self, store: TensorStore, name: str, scaling: float) -> LoraModule:
        if name != EMBEDDING:
            return super().read_module(store, name, scaling)
        keys = self.spelling.keys(name)
        return read_pair(store, name, keys, scaling=scaling, layout="embedding", transposed=_TURNED)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        return {"gguf": {key: list(value) for key, value in source.file.extra.items()}}

    def scalings(self, source: AdapterSource, ranks: Mapping[str, int]) -> dict[str, float]:
        alpha = source.file.extra.get(ALPHA, ("FLOAT32", 0.0))[1]
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise AdapterError(expected(ALPHA, "a finite number", alpha), code="bad-config", where=source.where)
        return {name: alpha / rank if alpha else 1.0 for name, rank in ranks.items()}

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        require_no_vectors(adapter, self.title)
        turned = {m.name: _TURNED if m.layout == "embedding" else (False, False) for m in adapter.modules}
        pairs = [pair_tensors(m, self.spelling.keys(m.name), dtype, transposed=turned[m.name]) for m in adapter.modules]
        return join(adapter.raw, *pairs)

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write a ``.gguf`` file, or ``adapter.gguf`` in a directory."""
        path = Path(out)
        if is_tensor_file(path) and path.suffix != ".gguf":
            message = "its key-values, alpha among them, have no place but a .gguf file"
            raise AdapterError(message, code="not-expressible", where=str(path))
        extra, tensors = key_values(adapter), self.tensors(adapter, dtype)
        return write_adapter_file(path, tensors, {}, self.file_name, overwrite=overwrite, extra=extra)

    def _rank(self, source: AdapterSource, name: str) -> int:
        shape = source.file.tensors[self.spelling.b_key(name)].shape
        return max(1, shape[1]) if len(shape) == 2 else 1


def key_values(adapter: Adapter) -> dict[str, tuple[str, Any]]:
    """The typed key-values kept in `config`.

    Raises:
        AdapterError: ``bad-config``, for a `.nola` file of a stranger.
    """
    found = (adapter.config or {}).get("gguf")
    if not isinstance(found, Mapping) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in found.values()
    ):
        raise AdapterError("not the key-values of a GGUF adapter", code="bad-config", where="config: gguf")
    return {key: (pair[0], pair[1]) for key, pair in found.items()}


GGUF = _Gguf(
    "gguf",
    "GGUF LoRA",
    Spelling.of_suffixes(".lora_a", ".lora_b", stem=r".+\.weight"),
    carried=re.compile(r"(?!)"),
    file_name="adapter.gguf",
)
