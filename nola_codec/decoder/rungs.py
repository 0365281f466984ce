"""Check a progressive file: what each of its rungs decodes to, in one pass over the file."""

from __future__ import annotations

from collections.abc import Callable

from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.hashing import HashThread, compare_digests


def check_rungs(decoder: Decoder, progress: Callable[[int], None] | None = None) -> None:
    """Decode all records as they are at each rung, and compare the decoded SHA-256 of each.

    The decoded SHA-256 of a rung needs all elements at that rung. So the work is that of reading the file once, and of
    synthesizing and hashing each record once a rung.

    Args:
        decoder: The decoder of the file.
        progress: Called with the number of records done so far, counted at each rung.

    Raises:
        ChecksumMismatch: ``factors-checksum``: at a rung the decoded numbers are not those of the encoder.
        FormatError: The file is damaged.
    """
    rungs = decoder.container.records_by_rung()
    done = 0
    with HashThread(decoder.xp, len(rungs)) as sha256:
        for rung, records in decoder.decode_rungs(rungs):
            for record in records:
                sha256.update(record, rung)
            done += len(records)
            if progress is not None:
                progress(done)
        for _, tensor in decoder.carried_tensors():
            sha256.update_raw(tensor)
        digests = sha256.digests()
    compare_digests(digests, decoder.header, has_reference=decoder.reference is not None)
