"""Lay out header and sections as one byte string (specification, "File")."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

from nola_codec.container.header import pack_header
from nola_codec.container.prelude import BEFORE_CONTENT, CONTENT_BYTES, DRAWN_FLAG, REFERENCE_FLAG, Prelude
from nola_codec.container.reader import header_dictionary
from nola_codec.entropy.frames import compress
from nola_codec.model.header import Header, Section


def assemble(header: Header, sections: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the bytes of a whole file.

    Args:
        header: The header; its `sections` are made here, and all other fields are final.
        sections: (codec id, stored bytes) of each section, in file order.
    """
    table = []
    offset = 0
    for codec, data in sections:
        table.append(Section(codec, offset, len(data), zlib.crc32(data)))
        offset += len(data)
    stored = compress(pack_header(replace(header, sections=tuple(table))), header_dictionary())
    body = stored + b"".join(data for _, data in sections)
    flags = (REFERENCE_FLAG if header.reference is not None else 0) | (DRAWN_FLAG if header.drawn else 0)
    prelude = Prelude(required_flags=flags, header_stored=len(stored), content_sha256=bytes(CONTENT_BYTES))
    content = hashlib.sha256(prelude.pack(stored)[:BEFORE_CONTENT] + body).digest()
    return replace(prelude, content_sha256=content[:CONTENT_BYTES]).pack(stored) + body
