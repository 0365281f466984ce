"""`LiveStore`: tensors of a running program as a dialect sees them, each turned into bytes when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_store import Closing, TensorInfo, no_such_tensor


class LiveStore(Closing):
    """A `TensorStore` of tensors that a caller has in memory.

    Attributes:
        name, file_type, metadata, extra, tensors: As in `TensorStore`.
    """

    def __init__(
        self,
        infos: Mapping[str, TensorInfo],
        read: Callable[[str], RawTensor],
        *,
        name: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make a store.

        Args:
            infos: The dtype and the shape of each tensor by its key.
            read: Returns the bytes of the tensor with a key.
            name: What messages call the tensors.
            metadata: What the ``__metadata__`` of a safetensors file would say.
        """
        self.name = name
        self.file_type = "safetensors"
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.extra: Mapping[str, Any] = {}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(infos))
        self._read = read

    def close(self) -> None:
        """Do nothing: the tensors belong to the caller."""

    def read(self, name: str) -> RawTensor:
        """Return one tensor. Raises AdapterError ``no-such-tensor``."""
        if name not in self.tensors:
            raise no_such_tensor(self.name, name)
        return self._read(name)
