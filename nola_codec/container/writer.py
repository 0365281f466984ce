"""Lay out header and sections as one byte string (specification, "File")."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

from nola_codec.container.header import pack_header
from nola_codec.container.prelude import MAGIC, REFERENCE_FLAG, SIZE, Prelude, align
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
        offset = align(offset + len(data))
    plain = pack_header(replace(header, sections=tuple(table)))
    stored = compress(plain, header_dictionary())
    body = bytearray(stored)
    for (_, data), section in zip(sections, table, strict=True):
        start = align(SIZE + len(stored)) + section.offset - SIZE
        body.extend(b"\0" * (start - len(body)))
        body.extend(data)
    prelude = Prelude(
        required_flags=REFERENCE_FLAG if header.reference is not None else 0,
        optional_flags=0,
        header_stored=len(stored),
        header_plain=len(plain),
        header_crc32=zlib.crc32(stored),
        file_length=SIZE + len(body),
        content_sha256=bytes(32),
    )
    content = hashlib.sha256(prelude.pack()[:40] + body).digest()
    data = replace(prelude, content_sha256=content).pack() + bytes(body)
    assert data.startswith(MAGIC)
    return data
