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


def from_store_error(error: Exception, url: str) -> Exception:
    """Return our error for one that fsspec or one of its file systems raised: `RemoteError`, or `TransientError`."""
    names = {cls.__name__ for cls in type(error).__mro__}
    cause = error.__cause__ or error.__context__
    if cause is not None:
        names |= {cls.__name__ for cls in type(cause).__mro__}
    if "FileExpired" in names:
        return changed(shown_url(url))
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return not_found(url)
    if isinstance(error, PermissionError) or not names.isdisjoint(_NO_CREDENTIALS):
        return forbidden(url)
    if isinstance(error, TimeoutError | ConnectionError) or not names.isdisjoint(_NO_CONNECTION):
        return TransientError(no_connection(url, type(error).__name__))
    text = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {hide_secrets(text, url)}" if text else type(error).__name__
    failure = RemoteError(f"cannot be read: {message[:300]}", code="unreadable", where=shown_url(url))
    is_busy = isinstance(error, OSError) and error.errno in (errno.EIO, errno.EBUSY, errno.EAGAIN)
    return TransientError(failure) if is_busy else failure
