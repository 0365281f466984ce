"""`JoinedStore`: several files of tensors that are seen as one, such as the shards of an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_store import Closing, TensorInfo, TensorStore, no_such_tensor


class JoinedStore(Closing):
    """A `TensorStore` with the tensors of several others, which it closes.

    Attributes:
        name, file_type, metadata, extra, tensors: As in `TensorStore`; all but the tensors and the name are those of
            the first file.
    """

    def __init__(self, files: Sequence[TensorStore], name: str) -> None:
        """Join open files under one name. Raise AdapterError ``duplicate-key`` for a tensor that two files have."""
        self.name = name
        self.file_type = files[0].file_type
        self.metadata: Mapping[str, str] = files[0].metadata
        self.extra: Mapping[str, Any] = files[0].extra
        self._files = tuple(files)
        self._owners: dict[str, TensorStore] = {}
        for file in files:
            for key in file.tensors:
                first = self._owners.setdefault(key, file)
                if first is not file:
                    message = f"{first.name} has this tensor too"
                    raise AdapterError(message, code="duplicate-key", where=f"{file.name}: {key}")
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {key: file.tensors[key] for key, file in self._owners.items()}
        )

    def read(self, name: str) -> RawTensor:
        """Read one tensor. Raises AdapterError ``no-such-tensor``, and the errors of its file."""
        owner = self._owners.get(name)
        if owner is None:
            raise no_such_tensor(self.name, name)
        return owner.read(name)

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
