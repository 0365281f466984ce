"""What a file of tensors looks like to a dialect, whichever type of file it is."""

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
    """A tensor that has not been read: its dtype as safetensors names it, and its shape.

    Example: ``TensorInfo("F32", (8, 576))``.
    """

    dtype: str
    shape: tuple[int, ...]


class TensorStore(Protocol):
    """An open file with its header checked. A context manager; a stream given by the caller is left open."""

    @property
    def name(self) -> str:
        """The file, for messages."""

    @property
    def file_type(self) -> str:
        """``"safetensors"``, ``"npz"``, ``"pickle"`` or ``"gguf"``."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the file, in its order."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """``__metadata__`` of safetensors; empty for the others."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """Typed key-values of GGUF, ``{key: (type name, value)}``; empty for the others."""

    def read(self, name: str) -> RawTensor:
        """One tensor: little-endian, row-major.

        Raises:
            AdapterError: ``no-such-tensor``, or what is wrong with its bytes.
        """

    def close(self) -> None:
        """Close the file, if it was opened here."""

    def __enter__(self: _Self) -> _Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_Closing = TypeVar("_Closing", bound="Closing")


class Closing:
    """Something that is closed at the end of a ``with``."""

    def close(self) -> None:
        """Close what was opened here."""
        raise NotImplementedError

    def __enter__(self: _Closing) -> _Closing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryStore(Closing):
    """Tensors that are in memory already.

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
        """Nothing to close."""

    def read(self, name: str) -> RawTensor:
        """One tensor; `AdapterError` ``no-such-tensor`` if there is none."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise no_such_tensor(self.name, name)
        return tensor


def no_such_tensor(file: str, name: str) -> AdapterError:
    return AdapterError("no such tensor", code="no-such-tensor", where=f"{file}: {name}")
