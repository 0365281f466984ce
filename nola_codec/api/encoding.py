"""`encode`: an adapter in, a file and a report out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nola_codec import adapters
from nola_codec.adapters import AnySource
from nola_codec.adapters.sources import weights_in
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.encoder.report import EncodeReport
from nola_codec.encoder.rules import apply_rules
from nola_codec.encoder.sizes import parse_size
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter
from nola_codec.stores.files import atomic_file, require_free


def encode(
    source: AnySource,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
    carry_unknown: bool = False,
    **options: Any,
) -> EncodeReport:
    """Encode an adapter.

    Args:
        source: An adapter of any dialect (`adapters.DIALECTS`): a directory, a file, its bytes, or a binary stream.
        out: Where the file goes, whole or not at all; None encodes and reports without writing.
        config: The adapter's configuration, for bytes and streams.
        size: Bytes that the file may take, as a number or as ``"50KB"``, ``"64KiB"``.
        overwrite: Replace a file that is there.
        carry_unknown: Carry tensors that the dialect does not know, exact, instead of refusing them.
        **options: The other fields of `EncodeOptions`: nmse, ratio, error, num_basis, bits, rank, objective, fit,
            weighting, importance, basis, generator, seed, shared_basis, entropy, thorough, progressive, rungs,
            progress.

    Raises:
        AdapterError: the source cannot be read.
        EncodeError: bad options, or a target that cannot be reached.
        OutputExists: `out` is there and `overwrite` is false.

    Example:
        >>> report = encode("lora_dir", "task.nola", nmse=0.05)  # doctest: +SKIP
        >>> report.bytes, report.nmse  # doctest: +SKIP
    """
    data, report = encode_bytes(source, out, config=config, size=size, overwrite=overwrite,
                                carry_unknown=carry_unknown, **options)  # fmt: skip
    return report


def encode_bytes(
    source: AnySource,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
    carry_unknown: bool = False,
    **options: Any,
) -> tuple[bytes, EncodeReport]:
    """`encode` that hands back the file's bytes as well."""
    chosen = checked(out, size=size, overwrite=overwrite, **options)
    adapter = adapters.read(source, config=config, carry_unknown=carry_unknown)
    adapter, chosen = apply_rules(adapter, chosen)
    data, report = encode_adapter(adapter, chosen, source_bytes=source_size(source, adapter))
    if isinstance(out, str | os.PathLike):
        with atomic_file(out) as stream:
            stream.write(data)
    elif out is not None:
        out.write(data)
    return data, report


def checked(
    out: str | os.PathLike[str] | BinaryIO | None, *, size: int | str | None, overwrite: bool, **options: Any
) -> EncodeOptions:
    """The options of an encode, and a look at where it would go, before any work; arguments and errors as there."""
    limit = parse_size(size) if isinstance(size, str) else size
    try:
        chosen = EncodeOptions(size=limit, **options)
    except TypeError as error:
        raise EncodeError(str(error).replace("EncodeOptions.__init__()", "encode()"), code="option") from error
    if isinstance(out, str | os.PathLike):
        require_free(Path(out), overwrite=overwrite)
        if not Path(out).parent.is_dir():
            raise EncodeError("no such directory", code="no-directory", where=str(Path(out).parent))
    return chosen


def source_size(source: AnySource, adapter: Adapter) -> int:
    """Size of the weights that were read; of their tensors where that is not a file."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            path = weights_in(path)
        return path.stat().st_size
    if isinstance(source, bytes | bytearray | memoryview):
        return len(source)
    if isinstance(source, io.IOBase) and source.seekable():
        here = source.tell()
        end = source.seek(0, io.SEEK_END)
        source.seek(here)
        return end
    return (
        sum(m.lora_A.nbytes + m.lora_B.nbytes for m in adapter.modules)
        + sum(v.values.nbytes for v in adapter.vectors)
        + sum(len(t.data) for t in adapter.raw.values())
    )
