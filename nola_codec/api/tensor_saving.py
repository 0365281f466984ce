"""Encode a mapping of tensors for `nola_codec.torch` and `nola_codec.numpy`, where no scaling may be assumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nola_codec.api.arguments import require_target
from nola_codec.api.encoding import encode_bytes
from nola_codec.api.live_sources import Config, live_store
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError, mismatch
from nola_codec.remote import accepts_urls
from nola_codec.stores.files import atomic_file

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nola_codec.api.keywords import EncodeKeywords


@accepts_urls(out="filename")
def save_tensors(
    tensors: Mapping[str, Any],
    filename: str | os.PathLike[str] | None,
    metadata: Mapping[str, str] | None,
    *,
    config: Config,
    scale: float | None,
    size: int | str | None,
    overwrite: bool = False,
    **options: Unpack[EncodeKeywords],
) -> tuple[bytes, EncodeReport]:
    """Encode tensors; arguments and errors as of `nola_codec.torch.save_file`, and no file is written for None."""
    require_target(filename, overwrite=overwrite)
    if not isinstance(metadata, Mapping | None):
        raise AdapterError(mismatch("metadata", "texts by their names", repr(metadata)), code="source-type")
    store = live_store(tensors, "(tensors)", metadata)
    data, report = encode_bytes(store, config=config, scale=scale, size=size, **options)
    if report.scale_origin == "assumed":
        # The caller of a function that is named like one of safetensors does not read the notes of a report.
        message = (
            "nothing says the scaling alpha / r of these factors; give config=, such as the LoraConfig or what "
            "adapter_config.json holds, or scale=1 if lora_B @ lora_A is the whole delta"
        )
        raise AdapterError(message, code="scale-unknown", where=store.name)
    if filename is not None:
        with atomic_file(filename) as stream:
            stream.write(data)
    return data, report
