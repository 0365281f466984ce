"""`safe_open`: a `.nola` file with the methods of safetensors' `safe_open`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

import numpy.typing as npt

from nola_codec.adapters import dialect_of
from nola_codec.api.opened import NolaFile, load, stored_dtype
from nola_codec.api.tensor_index import TensorIndex
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.errors import NolaError, mismatch, require_torch
from nola_codec.references.finding import References
from nola_codec.stores.dtypes import to_numpy
from nola_codec.stores.tensor_store import TensorInfo, no_such_tensor

if TYPE_CHECKING:
    import torch

_TORCH, _NUMPY = ("pt", "torch", "pytorch"), ("np", "numpy")

Tensor = TypeVar("Tensor")


class TensorSlice(Generic[Tensor]):
    """A tensor of a file that has not been decoded; indexing it decodes the tensor and returns a part of it."""

    def __init__(self, file: SafeOpen[Tensor], key: str, info: TensorInfo) -> None:
        self._file, self._key, self._info = file, key, info

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Return the dtype by its name in safetensors, such as ``"F32"``."""
        return self._info.dtype

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Any = self._file.get_tensor(self._key)
        part: Tensor = tensor[index]
        return part

    def __repr__(self) -> str:
        return f"TensorSlice({self._key!r}, dtype={self._info.dtype}, shape={self.get_shape()})"


class SafeOpen(Generic[Tensor]):
    """An open `.nola` file whose tensors have the keys of the adapter that it was made of; see `safe_open`.

    Attributes:
        digest, content_sha256, decoded_sha256, config: As in `NolaFile`.
    """

    def __init__(self, file: NolaFile[Tensor], framework: str, device: object, dtype: str) -> None:
        """Take an open file, and close it in the end."""
        self._file, self._framework, self._device = file, framework, device
        self.digest, self.decoded_sha256, self.config = file.digest, file.decoded_sha256, file.config
        self.content_sha256 = file.content_sha256
        decoder = file.open_decoder()
        self._index = TensorIndex(decoder, dialect_of(file.header, file.name), file.name, dtype)
        self._infos = self._index.infos()

    def keys(self) -> list[str]:
        """Return the keys of all tensors, in the order of the file."""
        return list(self._infos)

    def offset_keys(self) -> list[str]:
        """Return what `keys` returns, since it is in the order of the file already."""
        return self.keys()

    def get_tensor(self, name: str) -> Tensor:
        """Decode one tensor: factors and vectors in float32 (or the ``dtype`` of `safe_open`), others in their own.

        Only the block of coefficients that holds the records of this tensor is read.

        Raises:
            AdapterError: ``no-such-tensor``; ``needs-base``: the file holds only how it differs from the base model's.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        raw = self._index.read(name)
        found: Any
        if self._framework == "np":
            found = to_numpy(raw).copy()  # that of `to_numpy` cannot be written to
        else:
            import torch

            from nola_codec.decoder.torch_raw import to_torch

            found = to_torch(raw).to(torch.device(cast("Any", self._device)))
        tensor: Tensor = found
        return tensor

    def get_tensors(self) -> dict[str, Tensor]:
        """Decode all tensors, one after another."""
        return {name: self.get_tensor(name) for name in self._infos}

    def get_slice(self, name: str) -> TensorSlice[Tensor]:
        """Return a tensor whose shape and dtype can be asked for, and which is decoded when it is indexed.

        Raises:
            AdapterError: ``no-such-tensor``.
        """
        if name not in self._infos:
            raise no_such_tensor(self._file.name, name)
        return TensorSlice(self, name, self._infos[name])

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the adapter's own file, such as ``{"format": "pt"}``."""
        return dict(self._file.header.metadata)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"safe_open({self._file.describe()}, {len(self)} tensors)"

    def __enter__(self) -> SafeOpen[Tensor]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@overload
def safe_open(
    filename: Source,
    framework: Literal["np", "numpy"],
    device: object = "cpu",
    *,
    verify: bool | None = None,
    rung: int | None = None,
    dtype: str = "f32",
    references: References = None,
    limits: Limits | None = None,
) -> SafeOpen[npt.NDArray[Any]]: ...
@overload
def safe_open(
    filename: Source,
    framework: Literal["pt", "torch", "pytorch"] = "pt",
    device: object = "cpu",
    *,
    verify: bool | None = None,
    rung: int | None = None,
    dtype: str = "f32",
    references: References = None,
    limits: Limits | None = None,
) -> SafeOpen[torch.Tensor]: ...


def safe_open(
    filename: Source,
    framework: str = "pt",
    device: object = "cpu",
    *,
    verify: bool | None = None,
    rung: int | None = None,
    dtype: str = "f32",
    references: References = None,
    limits: Limits | None = None,
) -> SafeOpen[Any]:
    """Open a `.nola` file as safetensors' `safe_open` opens its own: a context manager over tensors by key.

    The keys are those of the adapter that the file was made of, and the values those of ``load(...).state_dict()``.
    Nothing is decoded before a tensor is asked for, and then only what belongs to it.

    Args:
        filename: The file: a path, a URL, bytes or a seekable binary stream.
        framework: ``"pt"`` gives tensors of PyTorch, ``"np"`` NumPy arrays, for which PyTorch is not needed.
        device: The device of PyTorch's tensors.
        verify: As in `load`: whether the whole file is read once to compare the content SHA-256.
        rung: The rung of a progressive file, counted from 0; None is the last.
        dtype: The dtype of factors and vectors: f32 is exact; f16 and bf16 round once.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in `decode`.
        limits: As in `load`.

    Raises:
        NolaError: ``option``: another framework or dtype, or a device with NumPy.
        FormatError, ChecksumMismatch: The file is not well-formed, or damaged.
        AdapterError: Those of `load`; ``foreign-dialect``.
        MissingPackage: ``needs-torch``.

    Example:
        >>> with safe_open("task.nola", framework="np") as file:  # doctest: +SKIP
        ...     for key in file.keys():
        ...         tensor = file.get_tensor(key)
    """
    if str(framework) not in (*_TORCH, *_NUMPY):
        raise NolaError(mismatch("framework", '"pt" or "np"', repr(framework)), code="option")
    stored = stored_dtype(dtype)
    is_numpy = framework in _NUMPY
    if is_numpy and str(device) != "cpu":
        raise NolaError("NumPy arrays are on the CPU; leave out device", code="option")
    if not is_numpy:
        require_torch("safe_open(..., framework='pt')", instead="framework='np' gives NumPy arrays")
    file = load(filename, "numpy" if is_numpy else device, verify=verify, rung=rung, references=references,
                limits=limits)  # fmt: skip
    try:
        return SafeOpen(file, "np" if is_numpy else "pt", device, stored)
    except BaseException:
        file.close()
        raise
