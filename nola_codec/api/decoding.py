"""`decode`, `verify`: a file back to an adapter or into a model's weights, and checked through and through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nola_codec import adapters
from nola_codec.adapters import AnySource
from nola_codec.adapters.dialects.formats import convert
from nola_codec.api.merging import merge
from nola_codec.api.opened import DTYPES, check_rungs
from nola_codec.arrays import NUMPY, arrays_on
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.adapters import decoded_adapter
from nola_codec.decoder.decoder import Decoder
from nola_codec.model.adapter import Adapter
from nola_codec.progress import Progress
from nola_codec.stores.files import read_json, require_free


def decode(
    source: Source,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "f32",
    rung: int | None = None,
    format: str | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Decode to an adapter, or into the weights of a model.

    Args:
        source: The `.nola` file.
        out: A directory; or, for an adapter, a path that ends as a tensor file does: ``.safetensors``, ``.npz``,
            ``.bin``, ``.pt``, ``.gguf``.
        base: A model directory; the merged model goes to `out`, weights in the base's own dtypes, as `merge` does.
        format: Write an adapter in this dialect (`adapters.formats.FORMATS`) and not in its own; nothing is merged, and
            `base` serves for names alone.
        dtype: Of an adapter's factors: f32 is exact, f16 and bf16 round once.
        rung: Of a progressive file: as if it ended with this rung, counted from 0.
        device: Where factors are synthesized and multiplied; it changes no bit.
        overwrite: Replace an output that is there.
        progress: Called as (stage, done, total).

    Raises:
        FormatError, ChecksumMismatch: the file is damaged, or the decoded digest is not the encoder's.
        AdapterError: ``base-mismatch`` and others when the base does not fit; ``not-expressible`` for what a `format`
            has no place for.
        OutputExists: `out` is there and `overwrite` is false.
    """
    if base is not None and format is None:
        return merge([source], base, out, rung=rung, device=device, overwrite=overwrite, progress=progress).output
    require_free(Path(out), overwrite=overwrite)
    with open_container(source, rung=rung) as container:
        container.check_content()
        adapter = decoded_adapter(Decoder(container, arrays_on(device)), progress)
        if format is not None:
            config = None if base is None else read_json(Path(base) / "config.json")
            adapter = convert(adapter, format, config)
        return adapters.write(adapter, out, dtype=DTYPES[dtype], overwrite=overwrite)


def verify(source: Source) -> dict[str, Any]:
    """Check all of a file: layout, checksums, and the hash of what each rung decodes to.

    Returns:
        ``bytes``, ``tensors``, ``file_sha256`` (what `sha256sum` prints), ``content_sha256`` (stored in the file over
        the rest of it) and ``decoded_sha256`` (over everything it decodes to), in hexadecimal.

    Raises:
        FormatError, ChecksumMismatch: what is wrong, and where.
    """
    with open_container(source) as container:
        container.check_content()
        check_rungs(container)
        return {
            "bytes": container.file_length,
            "tensors": sum(
                len(part) for part in (container.header.coded, container.header.raw, container.header.drawn)
            ),
            "file_sha256": container.hash_file().hex(),
            "content_sha256": container.prelude.content_sha256.hex(),
            "decoded_sha256": container.header.factors_sha256.hex(),
        }


def read_adapter(source: AnySource) -> Adapter:
    """An adapter from a `.nola` file or anything that `encode` reads, as NumPy arrays."""
    if isinstance(source, str | os.PathLike) and Path(source).is_file():
        with Path(source).open("rb") as stream:
            is_nola = stream.read(4) == b"\x89NLA"
        if is_nola:
            with open_container(os.fspath(source)) as container:
                return decoded_adapter(Decoder(container, NUMPY), None)
    return adapters.read(source)
