"""Read files over HTTP by ranges: of any server, and of the Hugging Face Hub.

fsspec asks for the size first, and does not notice that a file changes between two reads. Here the first range tells
size and version at once, and later ones name the version that they want.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from nola_codec.errors import RemoteError, require_package
from nola_codec.remote.addresses import HubAddress
from nola_codec.remote.contract import TransientError, VersionedFile, changed
from nola_codec.remote.failures import forbidden, no_connection, not_found, reason_of, refused
from nola_codec.version import __version__

if TYPE_CHECKING:
    import requests

MAX_WHOLE = 8 << 30
"""Bytes that are read at most from a server that does not tell the length of a file."""
_PIECE = 64 << 10
_SLOW_SECONDS = 60.0
_SLOW_RATE = 500  # bytes a second; a server that sends less after the first minute holds us up
_TIMEOUT = (10, 30)  # seconds to connect, and between two pieces
_MAX_REDIRECTS = 10
_MOST_REDIRECT = 64 << 10  # bytes of the body of a redirection, which nobody needs
_MAX_WAIT = 30.0  # seconds that a server may ask to wait
_RANGE = re.compile(r"bytes (?P<first>\d{1,19})-(?P<last>\d{1,19})/(?P<size>\d{1,19}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(?P<size>\d{1,19})")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpFile(VersionedFile):
    """A file of an HTTP server, as a `RemoteFile`."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Name a file; nothing is asked yet. Raises MissingPackage ``needs-requests``."""
        require_package("reading from https://", "requests", "remote")
        super().__init__(url)
        self._headers = dict(headers or {})
        self._session: requests.Session | None = None

    def stream(self, start: int, stop: int | None) -> Iterator[bytes]:
        """Yield bytes; see `RemoteFile.stream`."""
        import requests

        headers = {**self._headers, "Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if "Range" in headers and self.tag and not self.tag.startswith("W/"):  # a weak ETag says nothing about bytes
            headers["If-Range"] = self.tag
        try:
            with self._open_session().get(self._url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
                yield from self._read(answer, start, stop)
        except requests.exceptions.TooManyRedirects:
            raise refused(self._url, f"more than {_MAX_REDIRECTS} redirections") from None
        except requests.exceptions.SSLError:
            message = "the server's certificate cannot be checked; is the address right, and the clock of this machine?"
            raise RemoteError(message, code="bad-certificate", where=self.name) from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
            raise refused(self._url, "the server redirects to an address that is none") from None
        except requests.exceptions.RequestException as error:  # no address, refused, reset, time-out, body cut short
            raise TransientError(no_connection(self._url, reason_of(error))) from None

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open_session(self) -> requests.Session:
        if self._session is None:
            self._session = _session()
            self._session.headers["User-Agent"] = f"nola-codec/{__version__}"
            self._session.max_redirects = _MAX_REDIRECTS
        return self._session

    def _read(self, answer: requests.Response, start: int, stop: int | None) -> Iterator[bytes]:
        """Check the head of an answer, and yield its body as far as the head says."""
        self._see(answer)
        if answer.status_code == 416:
            return self._check_end(answer, start)
        if _is_directory(answer, self._url):
            raise not_found(self._url, "a directory, not a file")
        if answer.status_code not in (200, 206):
            self._refuse(answer)
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise refused(self._url, "the server compresses the file although it was asked not to")
        left: int | None
        size: int | None
        if answer.status_code == 206:
            left, size = self._range(answer, start, stop)
            skip = 0
        else:
            self.has_ranges = False if start or "Range" in answer.request.headers else self.has_ranges
            left = size = _length(answer)
            skip = start
        self._pin.fix(self.name, size, _tag(answer))
        got = 0
        begin = time.monotonic()
        for piece in _pieces(answer):
            got += len(piece)
            if time.monotonic() - begin > _SLOW_SECONDS and got < _SLOW_RATE * (time.monotonic() - begin):
                message = f"the server sends less than {_SLOW_RATE} bytes a second; try again later"
                raise RemoteError(message, code="server-error", where=self.name)
            if got > (MAX_WHOLE if left is None else left):
                raise refused(self._url, f"the server sends more than the {left or MAX_WHOLE} bytes that are expected")
            kept = piece[max(0, skip - (got - len(piece))) :]
            if kept:
                yield kept
        if left is not None and got < left:
            raise TransientError(no_connection(self._url, f"it ended after {got} of {left} bytes"))

    def _range(self, answer: requests.Response, start: int, stop: int | None) -> tuple[int, int]:
        """Return the length of a part, and that of the file."""
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if match is not None and match["size"] == "*":
            raise refused(self._url, "the server does not tell the length of the file")
        # More than was asked for could be without end.
        end = 0 if match is None else int(match["size"]) if stop is None else min(stop, int(match["size"]))
        if match is None or int(match["first"]) != start or not start <= int(match["last"]) < end:
            found, asked = answer.headers.get("Content-Range", "nothing")[:80], answer.request.headers.get("Range", "")
            raise refused(self._url, f"asked for {asked!r}, and the server says that it sends {found!r}")
        return int(match["last"]) - start + 1, int(match["size"])

    def _check_end(self, answer: requests.Response, start: int) -> None:
        """Accept the answer that there is nothing from `start` on, if the file ends there."""
        match = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", "").strip())
        size = self.size if match is None else int(match["size"])
        if size is None or size != start:
            raise changed(self.name) if self.size is not None else refused(self._url, "the server has no such range")
        self._pin.fix(self.name, size, "")

    def _see(self, answer: requests.Response) -> None:
        """Look at the whole answer, before its status is judged."""

    def _refuse(self, answer: requests.Response) -> NoReturn:
        """Raise the error for a status that is no success."""
        status = answer.status_code
        if status in (401, 403, 407):
            raise forbidden(self._url, status)
        if status in (404, 410):
            raise not_found(self._url)
        error = RemoteError(f"the server answers with status {status}", code="server-error", where=self.name)
        if status in _BUSY:
            asked = answer.headers.get("Retry-After", "")
            raise TransientError(error, min(float(asked), _MAX_WAIT) if asked.isdigit() and len(asked) < 9 else None)
        raise error


class HubFile(HttpFile):
    """A file of the Hugging Face Hub. The first answer fixes the commit, which later ones are asked of."""

    def __init__(self, address: HubAddress) -> None:
        """Name a file. Raises MissingPackage ``needs-huggingface_hub``."""
        require_package("reading from hf://", "huggingface_hub", "hub")
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

        self._address = address
        super().__init__(self._resolve(hf_hub_url, address.revision), build_hf_headers())
        at = f"@{address.revision}" if address.revision else ""
        self.name = f"hf://{_PREFIXES[address.repo_type]}{address.repo}{at}/{address.path}"
        self._url_of = hf_hub_url
        self._has_commit = False

    def _resolve(self, url_of: Any, revision: str | None) -> str:
        address = self._address
        url: str = url_of(address.repo, address.path, repo_type=address.repo_type, revision=revision)
        return url

    def _see(self, answer: requests.Response) -> None:
        first = answer.history[0] if answer.history else answer
        commit = first.headers.get("X-Repo-Commit", "")
        if not self._has_commit and re.fullmatch(r"[0-9a-f]{40}", commit):
            self._url, self._has_commit = self._resolve(self._url_of, commit), True

    def _refuse(self, answer: requests.Response) -> NoReturn:
        raise_hub_refusal(self.name, answer.headers.get("X-Error-Code", ""), answer.status_code)
        super()._refuse(answer)


def raise_hub_refusal(name: str, code: str, status: int | None) -> None:
    """Raise RemoteError for a refusal that the Hub explains by a code of its own; return for any other one."""
    if code == "EntryNotFound":
        raise RemoteError("no such file in the repository", code="not-found", where=name)
    if code == "RevisionNotFound":
        raise RemoteError("no such branch, tag or commit in the repository", code="not-found", where=name)
    if code == "RepoNotFound":  # the Hub does not tell the two apart, so that private names stay private
        message = "no such repository, or it is private; `hf auth login` or HF_TOKEN gives access to your own"
        raise RemoteError(message, code="not-found", where=name)
    if code == "GatedRepo":
        message = "a gated repository: accept its conditions on its page, and log in with `hf auth login` or HF_TOKEN"
        raise RemoteError(message, code="forbidden", where=name)
    if status in (401, 403):
        message = f"the Hub refuses access (status {status}); check the token of `hf auth login` or HF_TOKEN"
        raise RemoteError(message, code="forbidden", where=name)


_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def hub_name(address: HubAddress) -> str:
    """Return the ``hf://`` URL of an address."""
    at = f"@{quote(address.revision, safe='/')}" if address.revision else ""
    path = f"/{address.path}" if address.path else ""
    return f"hf://{_PREFIXES[address.repo_type]}{address.repo}{at}{path}"


def _session() -> requests.Session:
    """Return a session that follows no redirection from HTTPS to HTTP, and none with an endless body."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target: str | None = super().get_redirect_target(resp)
            if target and urlsplit(resp.url).scheme == "https":
                scheme = urlsplit(urljoin(resp.url, target)).scheme
                if scheme != "https":
                    raise refused(resp.url, f"the server redirects from https to {scheme}, which is not safe")
            if target and len(resp.raw.read(_MOST_REDIRECT + 1, decode_content=False)) > _MOST_REDIRECT:
                # requests reads the rest of it into memory, however long it is.
                raise refused(resp.url, f"a redirection with a body of more than {_MOST_REDIRECT} bytes")
            return target

    return Session()


def _is_directory(answer: requests.Response, url: str) -> bool:
    """Return True if the server sent us on to the same path with a slash, and has no file there.

    Web servers answer so for a directory: behind the slash is a page that lists it, or nothing that they would show.
    """
    path, reached = urlsplit(url).path, urlsplit(answer.url).path
    if not answer.history or path.endswith("/") or reached != path + "/":
        return False
    is_page = answer.headers.get("Content-Type", "").lower().startswith("text/html")
    return answer.status_code in (403, 404) or is_page


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """Yield the body as it comes, without waiting for a piece to be full."""
    import requests
    import urllib3

    read = getattr(answer.raw, "read1", None)
    if read is None:  # an older urllib3
        yield from answer.iter_content(_PIECE)
        return
    try:
        while piece := read(_PIECE, decode_content=False):
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ConnectionError(error) from None


def _length(answer: requests.Response) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdigit() and len(text) < 20 else None


def _tag(answer: requests.Response) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
