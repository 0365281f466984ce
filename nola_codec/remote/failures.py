"""Turn the errors of requests, fsspec and huggingface_hub into ours, without the secrets that they may quote."""

from __future__ import annotations

import errno
import os

from nola_codec.errors import RemoteError
from nola_codec.remote.addresses import hide_secrets, shown_url
from nola_codec.remote.contract import TransientError, changed

_ON = frozenset({"1", "true", "yes", "on"})
# The names of errors of packages that are not imported here, since they need not be installed.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "NoSessionError")
_NO_CONNECTION = (
    "ClientConnectorError", "ConnectTimeoutError", "EndpointConnectionError", "HTTPClientError", "ReadTimeoutError",
    "ServerDisconnectedError", "ClientPayloadError", "ConnectionClosedError", "ResponseParserError",
)  # fmt: skip
_MOST_CAUSES = 10
# Signs in the names and texts of errors of requests, httpx, aiohttp and botocore, and what they mean.
_REASONS = (
    ("Name or service not known", "the host is not known"), ("Failed to resolve", "the host is not known"),
    ("name resolution", "the host is not known"), ("getaddrinfo failed", "the host is not known"),
    ("nodename nor servname", "the host is not known"), ("Connection refused", "nobody listens there"),
    ("Connect call failed", "nobody listens there"), ("timed out", "it takes too long"),
    ("Timeout", "it takes too long"), ("IncompleteRead", "it ended in the middle of the file"),
    ("reset by peer", "it was reset"), ("Remote end closed", "it was closed without an answer"),
    ("Proxy", "the proxy fails"), ("ConnectError", "it cannot be reached"),
    ("EndpointConnection", "it cannot be reached"),
)  # fmt: skip


def is_offline(scheme: str = "") -> bool:
    """Return True if the user asked for no network: by NOLA_CODEC_OFFLINE, for ``hf`` also by HF_HUB_OFFLINE."""
    if scheme == "memory":  # which is in this process
        return False
    if os.environ.get("NOLA_CODEC_OFFLINE", "").lower() in _ON:
        return True
    return scheme == "hf" and os.environ.get("HF_HUB_OFFLINE", "").lower() in _ON


def require_online(url: str, scheme: str) -> None:
    """Raise RemoteError ``offline`` if the user asked for no network."""
    if is_offline(scheme):
        raise offline(url)


def offline(url: str) -> RemoteError:
    """Return the error for a URL that is not in the cache, where the network must not be used."""
    name = "NOLA_CODEC_OFFLINE" if is_offline() else "HF_HUB_OFFLINE"
    message = f"is not in the cache, and {name} forbids the network; unset it, or fetch the file once while online"
    return RemoteError(message, code="offline", where=shown_url(url))


def not_found(url: str, what: str = "no such file") -> RemoteError:
    """Return the error for a URL behind which there is nothing."""
    return RemoteError(what, code="not-found", where=shown_url(url))


def forbidden(url: str, status: int | None = None) -> RemoteError:
    """Return the error for a URL that may not be read with the credentials at hand."""
    answer = "" if status is None else f" (status {status})"
    message = f"the server refuses access{answer}; check your credentials for it, and that they may read this"
    return RemoteError(message, code="forbidden", where=shown_url(url))


def no_connection(url: str, reason: str) -> RemoteError:
    """Return the error for a server that cannot be reached, or that ends the connection."""
    message = f"no connection to the server ({reason}); check the network and the address, and try again"
    return RemoteError(message, code="no-connection", where=shown_url(url))


def refused(url: str, reason: str) -> RemoteError:
    """Return the error for an answer that cannot be used."""
    return RemoteError(reason, code="bad-answer", where=shown_url(url))


def reason_of(error: Exception) -> str:
    """Return why there is no connection, in words; the error's own text may quote a URL with its secrets."""
    text = " ".join(f"{type(each).__name__} {each}" for each in _causes(error))
    return next((words for sign, words in _REASONS if sign in text), type(error).__name__)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what led to it, the last first."""
    found = [error]
    while len(found) < _MOST_CAUSES and (before := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(before)
    return found


def from_store_error(error: Exception, url: str) -> Exception:
    """Return our error for one that fsspec or one of its file systems raised: `RemoteError`, or `TransientError`."""
    names = {cls.__name__ for each in _causes(error) for cls in type(each).__mro__}
    if "FileExpired" in names:
        return changed(shown_url(url))
    if isinstance(error, TimeoutError | ConnectionError) or not names.isdisjoint(_NO_CONNECTION):
        return TransientError(no_connection(url, reason_of(error)))
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return not_found(url)
    if isinstance(error, PermissionError) or not names.isdisjoint(_NO_CREDENTIALS):
        return forbidden(url)
    text = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {hide_secrets(text, url)}" if text else type(error).__name__
    failure = RemoteError(f"cannot be read: {message[:300]}", code="unreadable", where=shown_url(url))
    is_busy = isinstance(error, OSError) and error.errno in (errno.EIO, errno.EBUSY, errno.EAGAIN)
    return TransientError(failure) if is_busy else failure
