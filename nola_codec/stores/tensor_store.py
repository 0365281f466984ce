"""`TensorStore`: an open file of tensors as a dialect sees it, whatever its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, TypeVar

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor

_Self = TypeVar("_Self", bound="TensorStore")


@dataclass(frozen=True)
class TensorInfo:
    """The dtype (by its name in safetensors) and the shape of a tensor that has not been read.

    Example: ``TensorInfo("F32", (8, 576))``.
    """

    dtype: str
    shape: tuple[int, ...]


class TensorStore(Protocol):
    """An open file with its header checked, for use as a context manager. A stream given by the caller stays open."""

    @property
    def name(self) -> str:
        """The file's name, for messages."""

    @property
    def file_type(self) -> str:
        """The type of the file: ``"safetensors"``, ``"npz"``, ``"pickle"`` or ``"gguf"``."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the file."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The ``__metadata__`` of a safetensors file; empty for other types."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """The typed key-values of a GGUF file, ``{key: (type name, value)}``; empty for other types."""

    def read(self, name: str) -> RawTensor:
        """Read one tensor; its bytes are little-endian and row-major.

        Raises:
            AdapterError: ``no-such-tensor``, or a code for damaged bytes.
        """

    def close(self) -> None:
        """Close the file, if it was opened here."""

    def __enter__(self: _Self) -> _Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_Closing = TypeVar("_Closing", bound="Closing")


class Closing:
    """A base class for context managers whose `close` runs at the end of the ``with`` block."""

    def close(self) -> None:
        """Release what the object holds open."""
        raise NotImplementedError

    def __enter__(self: _Closing) -> _Closing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryStore(Closing):
    """A `TensorStore` of tensors that are in memory already.

    Example:
        >>> with MemoryStore({"w": RawTensor("F32", (1,), bytes(4))}) as store:
        ...     store.tensors["w"].shape
        (1,)
    """

    def __init__(
        self,
        tensors: Mapping[str, RawTensor],
        *,
        name: str = "(memory)",
        metadata: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        file_type: str = "safetensors",
    ) -> None:
        self.name = name
        self.file_type = file_type
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.extra: Mapping[str, Any] = dict(extra or {})
        self._tensors = dict(tensors)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {key: TensorInfo(tensor.dtype, tensor.shape) for key, tensor in self._tensors.items()}
        )

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def read(self, name: str) -> RawTensor:
        """Return one tensor. Raises AdapterError ``no-such-tensor``."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise no_such_tensor(self.name, name)
        return tensor


def no_such_tensor(file: str, name: str) -> AdapterError:
    """Return the error for a name that a file has no tensor of."""
    return AdapterError("no such tensor", code="no-such-tensor", where=f"{file}: {name}")
