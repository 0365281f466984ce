"""Read the earlier version that an adapter is coded against: a `.nola` file, or an adapter that was never coded."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from nola_codec import adapters
from nola_codec.api.checking import check_content
from nola_codec.api.decoding import is_nola
from nola_codec.api.live_sources import AdapterInput, Config, open_live
from nola_codec.arrays import NUMPY
from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.container.reader import open_container
from nola_codec.encoder.reference import KnownReference
from nola_codec.errors import EncodeError
from nola_codec.references.exact import exact_records, hash_records
from nola_codec.references.finding import References, chain_files, open_decoder
from nola_codec.remote import is_url
from nola_codec.stores.live_store import LiveStore

ReferenceInput: TypeAlias = "AdapterInput | KnownReference"
"""An earlier version: a `.nola` file, anything that `encode` reads, or a version that was read already."""


def read_reference(
    source: ReferenceInput,
    *,
    config: Config = None,
    scale: float | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> KnownReference:
    """Decode or read an earlier version of an adapter, for `encode(reference=...)`.

    Args:
        source: A `.nola` file, or an adapter that was never coded.
        config: The configuration of an adapter that is bytes, a stream or a mapping, as in `encode`.
        scale: The scaling of an adapter that does not say it, as in `encode`.
        references: Where the reference of the `.nola` file itself is, if it has one; None looks beside it.
        limits: What the `.nola` file may declare; as in `load`.

    Raises:
        FormatError, ChecksumMismatch: The `.nola` file is damaged, or its own reference is not there (``reference``).
        AdapterError: The adapter cannot be read.
        EncodeError: ``chain``: The file ends a chain that is as long as chains may be.
    """
    if isinstance(source, KnownReference):
        return source
    readable, plain = open_live(source, config)
    name = _file_name(readable) if isinstance(readable, str | os.PathLike) else ""
    if isinstance(readable, LiveStore) or not is_nola(readable):
        adapter = adapters.read(readable, config=plain, scale=scale, must_use_scale=False)
        records = exact_records(adapter)
        own = (os.fspath(readable),) if isinstance(readable, str | os.PathLike) else ()
        return KnownReference(hash_records(records), 0, name, adapter.dialect, records, own)
    opened = bytes(readable) if isinstance(readable, bytearray | memoryview) else readable
    with open_container(opened, limits) as container:
        check_content(container)
        decoder = open_decoder(container, NUMPY, references)
        files = chain_files(container.header)
        if files > DEFAULT_LIMITS.chain:
            message = f"expected a chain of at most {DEFAULT_LIMITS.chain} files below a new one, found {files}"
            raise EncodeError(f"{message}; make it whole first: `nola-codec merge FILE -o WHOLE.nola`", code="chain")
        names = [record.name for record in decoder.header.coded]
        records = dict(zip(names, decoder.decode_all(), strict=True))
        dialect, paths = container.header.dialect, container.all_names()
        return KnownReference(container.header.decoded_sha256, files, name, dialect, records, paths)


def require_other_file(out: object, reference: KnownReference) -> None:
    """Refuse a target that would replace the reference, or a file that the reference needs.

    Raises:
        EncodeError: ``reference``: The target is such a file.
    """
    if not isinstance(out, str | os.PathLike) or not os.path.exists(out):
        return
    for path in reference.paths:
        if os.path.exists(path) and os.path.samefile(out, path):
            message = "the new file needs this one as its reference, and cannot take its place; choose another name"
            raise EncodeError(message, code="reference", where=os.fspath(out))


def _file_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file as a header may have it; empty if it may not (specification, "References")."""
    text = os.fspath(path)
    name = PurePosixPath(text.partition("?")[0]).name if is_url(text) else Path(os.path.abspath(text)).name
    try:
        name.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return ""
    return "" if name in (".", "..") or "\\" in name else name
