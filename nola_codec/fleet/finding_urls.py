"""Find sources behind URLs."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from nola_codec.errors import RemoteError
from nola_codec.fleet.items import Source
from nola_codec.fleet.naming import make_safe, without_ending
from nola_codec.remote import shown_url
from nola_codec.remote.addresses import check_url, file_url_path, is_chain, is_http, last_name
from nola_codec.remote.fsspec_files import open_filesystem, translated


def find_urls(url: str) -> Iterator[Source]:
    """Yield the source that a URL is, or all sources that a URL with wildcards matches, in the order of their names.

    A ``?`` in an address of HTTP begins its query and is no wildcard.

    Raises:
        RemoteError: ``bad-url``; ``not-listed``: wildcards in a URL of HTTP or in a chain; and those of the store.
        MissingPackage: A package for the protocol is not installed.
    """
    check_url(url)
    if file_url_path(url) is not None or not _has_wildcards(url):
        yield Source(url, make_safe(without_ending(last_name(url))))
        return
    if is_http(url) or is_chain(url):
        message = "HTTP and chains of URLs cannot be listed, so wildcards mean nothing; give each URL, or a manifest"
        raise RemoteError(message, code="not-listed", where=shown_url(url))
    filesystem, pattern = open_filesystem(url)
    with translated(url):
        matches = sorted(filesystem.glob(pattern))
        addresses = [(filesystem.unstrip_protocol(match), match) for match in matches]
    parts = PurePosixPath(pattern).parts
    fixed = PurePosixPath(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    for address, match in addresses:
        name = PurePosixPath(match).relative_to(fixed).as_posix()
        yield Source(address, make_safe(without_ending(name)))


def _has_wildcards(url: str) -> bool:
    return "*" in urlsplit(url).path if is_http(url) else glob.has_magic(url.partition("://")[2])
