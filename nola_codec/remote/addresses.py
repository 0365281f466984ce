"""Tell URLs from paths, show them without secrets, and take apart those of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from nola_codec.errors import RemoteError

# A scheme has two letters at least: C:\x and C://x are paths of Windows. `zip://a::https://b` is a chain of fsspec, and
# some of its links, as in `simplecache::https://b`, have no path.
_URL = re.compile(r"[a-z][a-z0-9+.-]+(?:://|::.*://).*", re.IGNORECASE | re.DOTALL)
# Between two links of a chain. An address of IPv6, as in `https://[::1]/a`, has colons too.
_LINK = re.compile(r"::(?=[a-z][a-z0-9+.-]+(?:://|::))", re.IGNORECASE)
_MAX_LENGTH = 8192
_HTTP = ("http", "https")
_REPO_TYPES = {"datasets": "dataset", "spaces": "space"}
_NAME = r"[\w][\w.-]*"
_HF = re.compile(
    rf"(?:(?P<type>datasets|spaces|models)/)?(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/@]+))?(?:/(?P<path>.*))?"
)
_PAGE = re.compile(
    rf"/(?:(?P<type>datasets|spaces)/)?(?P<repo>{_NAME}/{_NAME})"
    r"(?:/(?:tree|blob)/(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(?P<path>.*))?)?/?"
)
_NOT_OWNERS = frozenset({"api", "docs", "collections", "papers", "organizations", "settings", "join", "login"})


@dataclass(frozen=True)
class HubAddress:
    """A repository of the Hugging Face Hub, or a file or folder in it.

    Attributes:
        repo: Its name, ``owner/name``.
        repo_type: ``model``, ``dataset`` or ``space``.
        revision: A branch, tag or commit; None is the main branch.
        path: The path in the repository; empty for all of it.
    """

    repo: str
    repo_type: str = "model"
    revision: str | None = None
    path: str = ""


def is_url(path: object) -> bool:
    """Return True for the text of a URL. Paths are none, also those of Windows, which begin with one letter."""
    return isinstance(path, str) and _URL.fullmatch(path) is not None


def scheme_of(url: str) -> str:
    """Return the protocol of a URL in lower case; for a chain of fsspec, the one that is opened first."""
    return re.split(r":", url, maxsplit=1)[0].lower()


def is_chain(url: str) -> bool:
    """Return True for several URLs that fsspec opens one in the other, as in ``zip://a.nola::https://host/b.zip``."""
    return _LINK.search(url.split("?", 1)[0]) is not None


def links(url: str) -> list[str]:
    """Return the URLs of a chain; of any other URL itself."""
    return _LINK.split(url) if is_chain(url) else [url]


def is_http(url: str) -> bool:
    """Return True for one URL of HTTP or HTTPS."""
    return scheme_of(url) in _HTTP and not is_chain(url)


def shown_url(url: str) -> str:
    """Return a URL as messages show it: without user, password, query and fragment, which may be secrets."""
    return "::".join(_without_secrets(part) for part in links(url))


def _without_secrets(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    if not colon:
        return url
    place, mark, _ = rest.partition("?")
    place = place.partition("#")[0]
    host, slash, path = place.partition("/")
    if re.fullmatch(r"[^@]+:(?!\d*$)[^@\]]*", host) and "@" in path:
        # A password with a slash in it. The address is not valid, but the message that says so must not show it.
        host, slash, path = place.rpartition("@")[2].partition("/")
    user = host.rpartition("@")[0]
    # `hf://owner/name@revision` has its @ elsewhere, and `abfs://container@account` is no user.
    is_secret = ":" in user or scheme.lower() in _HTTP
    return f"{scheme}://{host.rpartition('@')[2] if is_secret else host}{slash}{path}{'?...' if mark else ''}"


def hide_secrets(text: str, url: str) -> str:
    """Return the text of another package's error without the secrets of a URL that it may quote."""
    text = text.replace(url, shown_url(url))
    for part in links(url):
        pieces = urlsplit(part) if "://" in part else None
        if pieces is None:
            continue
        user, at, _ = pieces.netloc.rpartition("@")
        for secret in (user, *user.split(":")) if at and (":" in user or pieces.scheme in _HTTP) else ():
            text = text.replace(secret, "...") if secret else text
        text = text.replace(pieces.query, "...") if pieces.query else text
    return text


def check_url(url: str) -> None:
    """Refuse a URL that no server could mean. Raises RemoteError ``bad-url``."""
    if len(url) > _MAX_LENGTH:
        raise RemoteError(f"a URL of {len(url)} characters; {_MAX_LENGTH} is the most", code="bad-url", where=url[:80])
    if any(ord(character) < 32 for character in url):
        raise RemoteError("a URL with control characters", code="bad-url", where=repr(shown_url(url))[1:81])
    if is_http(url):
        try:
            pieces = urlsplit(url)
            has_host = bool(pieces.hostname) and (pieces.port is None or True)
        except ValueError:  # a port that is no number, an IPv6 address without its bracket
            has_host = False
        if not has_host:
            raise RemoteError("a URL without a valid host", code="bad-url", where=shown_url(url))


def file_url_path(url: str) -> Path | None:
    """Return the local path of a ``file://`` URL; None for any other one."""
    if scheme_of(url) not in ("file", "local") or is_chain(url):
        return None
    pieces = urlsplit(url)
    if pieces.netloc not in ("", "localhost"):
        message = (
            f"a file on the host {pieces.netloc!r}; a path on this machine has three slashes: file:///{pieces.netloc}"
        )
        raise RemoteError(f"{message}{pieces.path}", code="bad-url", where=shown_url(url))
    from urllib.request import url2pathname  # it loads HTTP, which few runs need

    return Path(url2pathname(pieces.path))


def hub_address(url: str) -> HubAddress | None:
    """Return what a URL means on the Hugging Face Hub; None if it is not there.

    A ``hf://`` URL is ``hf://owner/name``, with ``@revision`` and a path behind it if they are given. The address of a
    page, as a browser shows it, means the repository, folder or file of the page. An address with ``/resolve/`` in it
    is an ordinary download, for which this function returns None.

    Raises:
        RemoteError: ``bad-url``: a ``hf://`` URL without owner and name.
    """
    if is_chain(url):
        return None
    if scheme_of(url) == "hf":
        match = _HF.fullmatch(url[len("hf://") :].strip("/"))
        if match is None:
            message = "expected hf://OWNER/NAME, and @REVISION and /PATH if you need them"
            raise RemoteError(message, code="bad-url", where=url)
        return _address(match, lambda text: text)
    if is_http(url):
        pieces = urlsplit(url)
        is_there = f"{pieces.scheme}://{pieces.netloc}" in _hub_hosts()
        match = _PAGE.fullmatch(pieces.path) if is_there else None
        if match is not None and match["repo"].split("/")[0] not in _NOT_OWNERS:
            return _address(match, unquote)
    return None


def _address(match: re.Match[str], decode: Callable[[str], str]) -> HubAddress:
    revision = match["revision"]
    return HubAddress(
        match["repo"],
        _REPO_TYPES.get(match["type"] or "", "model"),
        None if revision is None else unquote(revision),
        decode(match["path"] or "").strip("/"),
    )


def _hub_hosts() -> frozenset[str]:
    own = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return frozenset({"https://huggingface.co", "https://hf.co", "https://www.huggingface.co", *([own] if own else [])})


def beside_url(url: str, name: str) -> str:
    """Return the URL of another file in the folder of an HTTP file; a query is taken over."""
    pieces = urlsplit(url)
    folder = pieces.path if pieces.path.endswith("/") else pieces.path.rpartition("/")[0] + "/"
    return urlunsplit((pieces.scheme, pieces.netloc, folder + quote(name), pieces.query, ""))


def last_name(url: str) -> str:
    """Return the last part of a URL's path, as a name that a file or a directory can have."""
    place = links(url)[0]
    path = urlsplit(place).path if is_http(url) else place.partition("://")[2]
    name = unquote(path.rstrip("/").rpartition("/")[2])
    safe = re.sub(r"[^\w.@+-]", "_", name).lstrip(".")[-100:]
    return safe or "download"
