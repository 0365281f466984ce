"""The functions of `safetensors.torch` for `.nola` files: `save_file`, `load_file`, `save` and `load`.

    from nola_codec.torch import load_file, save_file

    save_file(tensors, "task.nola", config=lora_config, size="50KB")
    tensors = load_file("task.nola", device="cuda")

A file is lossy, so `save_file` takes what `nola_codec.encode` takes, and returns its report. PyTorch is imported when a
tensor is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nola_codec.api.opened import load as open_file
from nola_codec.api.tensor_saving import save_tensors
from nola_codec.encoder.report import EncodeReport
from nola_codec.references.finding import References

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from nola_codec.api.keywords import EncodeKeywords
    from nola_codec.api.live_sources import Config

__all__ = ["load", "load_file", "save", "save_file"]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    config: Config = None,
    scale: float | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
    **options: Unpack[EncodeKeywords],
) -> EncodeReport:
    """Encode the tensors of an adapter as a `.nola` file.

    The scaling alpha / r of the factors must be known. Some tensors say it (``.alpha``), or the metadata; otherwise
    give the configuration or the scale.

    Args:
        tensors: The tensors of the adapter by key, in any dialect.
        filename: The file.
        metadata: What the ``__metadata__`` of the adapter's safetensors file would say.
        config: The configuration of the adapter, such as a `LoraConfig` or what ``adapter_config.json`` holds.
        scale: The scaling of ``lora_B @ lora_A``, where neither tensors, metadata nor `config` say it.
        size: The most bytes that the file may take, as a number or as ``"50KB"``.
        overwrite: True if an existing file may be replaced.
        **options: Those of `nola_codec.encode`.

    Returns:
        What was measured. `print(report)` shows what the command line shows.

    Raises:
        AdapterError: ``scale-unknown``: nothing says the scaling; and those of `nola_codec.encode`.
        EncodeError, OutputExists: Those of `nola_codec.encode`.
    """
    return save_tensors(
        tensors, filename, metadata, config=config, scale=scale, size=size, overwrite=overwrite, **options
    )[1]


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    config: Config = None,
    scale: float | None = None,
    size: int | str | None = None,
    **options: Unpack[EncodeKeywords],
) -> bytes:
    """Encode the tensors of an adapter and return the bytes of the file; arguments and errors as of `save_file`."""
    return save_tensors(tensors, None, metadata, config=config, scale=scale, size=size, **options)[0]


def load_file(
    filename: str | os.PathLike[str], device: str | int | torch.device = "cpu", *, references: References = None
) -> dict[str, torch.Tensor]:
    """Decode all tensors of a file, under the keys of the adapter that it was made of.

    The scaling of the factors is where the adapter had it: in tensors or metadata, or in its configuration, which
    `nola_codec.safe_open` gives as ``config``.

    Args:
        filename: The file.
        device: The device that the tensors are decoded on and lie on.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`.

    Raises:
        FormatError, ChecksumMismatch, AdapterError: Those of `nola_codec.load` and `NolaFile.state_dict`.
        MissingPackage: ``needs-torch``.
    """
    with open_file(filename, device, references=references) as file:
        found: dict[str, torch.Tensor] = file.state_dict()
    return found


def load(data: bytes, *, references: References = None) -> dict[str, torch.Tensor]:
    """Decode all tensors of the bytes of a file; `references` and errors as of `load_file`."""
    with open_file(data, references=references) as file:
        return file.state_dict()
