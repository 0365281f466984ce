"""`PeftVectors`: what PEFT's methods share whose trained numbers are vectors instead of pairs of factors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

from nola_codec.adapters.dialects.pairs import join_tensors
from nola_codec.adapters.dialects.peft_base import PeftDialect
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32, to_float32

CODED_DTYPES = ("F32", "F16", "BF16")
"""The dtypes whose values a coded record can give back; numbers of others, such as float64, are carried."""


class PeftVectors(PeftDialect):
    """PEFT's dialect for a method that trains vectors."""

    @abstractmethod
    def is_trained(self, name: str, tensor: RawTensor) -> bool:
        """Return True if a carried tensor holds trained numbers of the method that could be coded."""

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments as in `Dialect`.

        Raises:
            AdapterError: ``overflow``, ``duplicate-key``.
        """
        coded = {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors}
        return join_tensors(adapter.raw, coded)

    def require_writable(self, adapter: Adapter, path: Path, *, lone: bool) -> Adapter:
        """Return the adapter unchanged. Raises AdapterError ``needs-directory`` for a lone file."""
        if lone:
            message = "PEFT needs the configuration, and a lone file has no place for it; write a directory"
            raise AdapterError(message, code="needs-directory", where=str(path))
        return adapter

    def prepare_comparison(self, adapter: Adapter) -> Adapter:
        """Return the adapter with all trained numbers as vectors, including those that it carries."""
        names = [n for n, t in adapter.raw.items() if self.is_trained(n, t) and t.dtype in CODED_DTYPES]
        made = tuple(VectorTensor(n, to_float32(adapter.raw[n], where=n), adapter.raw[n].dtype) for n in names)
        raw = {name: tensor for name, tensor in adapter.raw.items() if name not in set(names)}
        return replace(adapter, raw=raw, vectors=adapter.vectors + made)
