"""The checks of a whole file that several functions make: its content SHA-256, and what each rung decodes to."""

from __future__ import annotations

from nola_codec.arrays import NUMPY
from nola_codec.container.reader import Container
from nola_codec.decoder import rungs
from nola_codec.decoder.adapters import count_records
from nola_codec.errors import FormatError
from nola_codec.progress import Progress
from nola_codec.references.finding import References, open_decoder


def check_content(container: Container) -> None:
    """Compare the content SHA-256 of a file.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged; the message starts with the file's name.
    """
    try:
        container.check_content()
    except FormatError as error:
        raise error.within(container.name) from error


def check_rungs(container: Container, progress: Progress | None = None, references: References = None) -> None:
    """Decode every rung up to the one that is open, and compare the decoded SHA-256 of each.

    Args:
        container: The open file.
        progress: Called as (stage, done, total), or None.
        references: Where the earlier version is that the file needs, if it needs one; as in `decode`.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged, or this decoder is not exact.
    """
    decoder = open_decoder(container, NUMPY, references)
    count = len(container.header.rungs)
    report = count_records(decoder, progress, "checking", count)
    if count == 1:  # `decode_all` decodes several blocks at once
        decoder.decode_all(report)
    else:
        rungs.check_rungs(decoder, report)
