"""The client of the Hub, and every error of it as one clear error of this package that holds no secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nola_codec.errors import HubError, NolaError, require_package
from nola_codec.remote import failures
from nola_codec.version import __version__

_NETWORKS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl", "socket")
"""The packages whose errors mean that no answer came."""
_UPLOAD_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
_LONGEST_REASON = 200
_TOKEN = re.compile(r"\bhf_\w{4,}|Bearer\s+\S+")


def open_api(token: str | bool | None, endpoint: str | None) -> Any:
    """Return the client of the Hub, a `huggingface_hub.HfApi`.

    Args:
        token: A token; None for the one of `HF_TOKEN` or of `hf auth login`; False for none.
        endpoint: The address of the Hub; None for `HF_ENDPOINT`, else the public one.

    Raises:
        MissingPackage: ``needs-huggingface_hub``.
    """
    require_package("nola_codec.integrations.hub", "huggingface_hub", "hub")
    from huggingface_hub import HfApi

    endpoint = endpoint.rstrip("/") if endpoint else None
    return HfApi(endpoint=endpoint, token=token, library_name="nola-codec", library_version=__version__)


def is_offline() -> bool:
    """Return True if `HF_HUB_OFFLINE` or `NOLA_CODEC_OFFLINE` forbids every request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or failures.is_offline()


def has_token(api: Any) -> bool:
    """Return True if requests of this client carry a token."""
    from huggingface_hub import constants, get_token

    if isinstance(api.token, str):
        return True
    if api.token is False or (api.token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        return False
    return get_token() is not None


def require_token(api: Any) -> None:
    """Check that there is a token before anything is asked.

    Raises:
        HubError: ``no-token``.
    """
    if not has_token(api):
        raise _no_token(api, "publishing needs a token")


@contextmanager
def clear_errors(api: Any, where: str) -> Iterator[None]:
    """Turn every error of the client into a `HubError` that says what to do.

    Args:
        api: The client.
        where: The repository or the file that the block is about.

    Raises:
        HubError: ``not-found``, ``no-revision``, ``no-token``, ``bad-token``, ``forbidden``, ``gated``, ``changed``,
            ``refused``, ``busy``, ``offline``, ``no-connection``.
    """
    try:
        yield
    except NolaError:
        raise
    except Exception as error:
        made = _translate(error, api, where)
        if made is None:
            raise
        raise made from error


def is_no_answer(error: NolaError) -> bool:
    """Return True if the Hub gave no answer, so that a cached file may serve."""
    return error.code in ("offline", "no-connection", "busy")


def _translate(error: Exception, api: Any, where: str) -> HubError | None:
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # an upload that failed
        return _translate(error.__cause__, api, where)
    if isinstance(error, errors.GatedRepoError):
        message = f"access is restricted: ask for it on {api.endpoint}/{where.split(':')[0]}"
        return HubError(f"{message}{'' if has_token(api) else ', and log in with `hf auth login`'}", code="gated",
                        where=where)  # fmt: skip
    if isinstance(error, errors.RepositoryNotFoundError):
        unseen = "" if has_token(api) else "; if it is private, log in with `hf auth login` or set HF_TOKEN"
        return HubError(f"no such repository on {api.endpoint}, or none that you may see{unseen}", code="not-found",
                        where=where)  # fmt: skip
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError("no such branch, tag or commit in the repository", code="no-revision", where=where)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _unreachable(api, where)
    if isinstance(error, ConnectionError) and (status := _UPLOAD_STATUS.search(str(error))):
        return _from_upload_status(int(status[1]), api, where)
    if isinstance(error, errors.EntryNotFoundError):
        return HubError("no such file in the repository", code="no-file", where=where)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline(where)
    if isinstance(error, errors.HfHubHTTPError):
        return _from_status(error, api, where)
    if isinstance(error, errors.HFValidationError):
        return HubError(f"the Hub's client refuses the name: {_reason(error)}", code="refused", where=where)
    if type(error).__module__.split(".")[0] in _NETWORKS or isinstance(error, ConnectionError | TimeoutError):
        return _unreachable(api, where)
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"{api.endpoint} does not answer like the Hub; check HF_ENDPOINT", code="refused", where=where)
    if isinstance(error, ValueError):
        return HubError(f"the Hub refuses it: {_reason(error)}", code="refused", where=where)
    return None


def _from_status(error: Any, api: Any, where: str) -> HubError:
    status = getattr(error.response, "status_code", 0)
    reason = _reason(error.server_message or "")
    if status == 401:
        if has_token(api):
            message = "the Hub does not know the token: it is wrong, or it has expired; `hf auth login` sets a new one"
            return HubError(message, code="bad-token", where=where)
        return _no_token(api, "the Hub asks for a token", where)
    if status == 403:
        message = "the token may not do this; it needs the right to write to the repository"
        return HubError(f"{message}{f' (the Hub says: {reason})' if reason else ''}", code="forbidden", where=where)
    if status == 412:
        return HubError("somebody else changed it at the same time; try again", code="changed", where=where)
    if status == 429 or status >= 500:
        return HubError(f"the Hub cannot answer now (status {status}); try again later", code="busy", where=where)
    return HubError(f"the Hub refuses it (status {status}): {reason or 'no reason given'}", code="refused", where=where)


def _from_upload_status(status: int, api: Any, where: str) -> HubError:
    """Return the error for a status that Xet, the Hub's store of large files, answered to an upload.

    The client raises ConnectionError for it, although the connection is good.
    """
    if status == 429 or status >= 500:
        return HubError(
            f"the Hub cannot take the file now (status {status}); try again later", code="busy", where=where
        )
    message = f"{api.endpoint} refuses the upload (status {status})"
    if status == 404:
        message += "; if it has no Xet storage, as other servers than huggingface.co, set HF_HUB_DISABLE_XET=1"
    return HubError(message, code="refused", where=where)


def _no_token(api: Any, why: str, where: str = "") -> HubError:
    pages = f"{api.endpoint}/settings/tokens"
    message = f"{why}: `hf auth login`, or HF_TOKEN with a token from {pages}"
    return HubError(message, code="no-token", where=where)


def offline(where: str) -> HubError:
    """Return the error for what needs the network when the network is forbidden."""
    message = "it is not in the cache, and the Hub may not be asked (HF_HUB_OFFLINE, NOLA_CODEC_OFFLINE or --offline)"
    return HubError(message, code="offline", where=where)


def _unreachable(api: Any, where: str) -> HubError:
    if is_offline():
        return offline(where)
    message = f"{api.endpoint} cannot be reached; check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT"
    return HubError(message, code="no-connection", where=where)


def _reason(text: object) -> str:
    """Return the text of an error as one short line, without anything that looks like a token."""
    line = " ".join(_TOKEN.sub("(a token)", str(text)).split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "..."
