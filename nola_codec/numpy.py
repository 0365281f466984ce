"""The functions of `safetensors.numpy` for `.nola` files: `save_file`, `load_file`, `save` and `load`.

    from nola_codec.numpy import load_file, save_file

    save_file(arrays, "task.nola", scale=2.0, nmse=0.05)
    arrays = load_file("task.nola")

A file is lossy, so `save_file` takes what `nola_codec.encode` takes, and returns its report. PyTorch is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from nola_codec.api.opened import load as open_file
from nola_codec.api.tensor_saving import save_tensors
from nola_codec.encoder.report import EncodeReport
from nola_codec.references.finding import References

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nola_codec.api.keywords import EncodeKeywords
    from nola_codec.api.live_sources import Config

__all__ = ["load", "load_file", "save", "save_file"]


def save_file(
    tensors: Mapping[str, npt.NDArray[Any]],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    config: Config = None,
    scale: float | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
    **options: Unpack[EncodeKeywords],
) -> EncodeReport:
    """Encode the arrays of an adapter as a `.nola` file; arguments and errors as of `nola_codec.torch.save_file`."""
    return save_tensors(
        tensors, filename, metadata, config=config, scale=scale, size=size, overwrite=overwrite, **options
    )[1]


def save(
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    *,
    config: Config = None,
    scale: float | None = None,
    size: int | str | None = None,
    **options: Unpack[EncodeKeywords],
) -> bytes:
    """Encode the arrays of an adapter and return the bytes of the file; arguments and errors as of `save_file`."""
    return save_tensors(tensors, None, metadata, config=config, scale=scale, size=size, **options)[0]


def load_file(filename: str | os.PathLike[str], *, references: References = None) -> dict[str, npt.NDArray[Any]]:
    """Decode all tensors of a file, under the keys of the adapter that it was made of.

    Args:
        filename: The file.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`.

    Raises:
        FormatError, ChecksumMismatch, AdapterError: Those of `nola_codec.load` and `NolaFile.state_dict`.
        MissingPackage: ``needs-torch`` for a carried tensor in bfloat16 or an 8-bit float, which NumPy does not have.
    """
    with open_file(filename, "numpy", references=references) as file:
        return file.state_dict()


def load(data: bytes, *, references: References = None) -> dict[str, npt.NDArray[Any]]:
    """Decode all tensors of the bytes of a file; `references` and errors as of `load_file`."""
    with open_file(data, "numpy", references=references) as file:
        return file.state_dict()
