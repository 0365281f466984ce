"""A stand-in for the Hugging Face Hub: its HTTP API on the loopback interface, for the real `huggingface_hub`.

    with HubServer() as hub:
        hub.accounts["hf_secret"] = Account("me")
        HfApi(endpoint=hub.endpoint, token="hf_secret").create_repo("me/lora")

It answers as the Hub did in 2026 where the client looks: status codes, `X-Error-Code`, `X-Repo-Commit`, ETags, links
to further pages, large files behind a redirect to another host that refuses credentials, SHA-256 checks of uploads,
ranges. `hub_routes.py` has the answers, and `hub_storage.py` what is stored. `requests` lists what was asked; `fail`
makes the next requests for a path fail. `connect` points `huggingface_hub`, which reads the environment once when it
is imported, at a server for one test.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_routes import ROUTES, Refusal, history
from hub_storage import Account, Commit, Repository, Storage

__all__ = ["Account", "HubServer", "Request", "connect"]

_LARGEST_BODY = 64 << 20


@dataclass(frozen=True)
class Request:
    """One answered request. `sent` counts the bytes of the answer's body."""

    method: str
    path: str
    status: int
    sent: int
    range: str
    authorized: bool


@dataclass
class _Fault:
    path: str
    status: int
    left: int
    message: str


class HubServer:
    """The server, with what it stores. `endpoint` is its address; `page` is how many files a page of a listing has."""

    def __init__(self, *, page: int = 1000) -> None:
        self.storage = Storage()
        self.accounts = self.storage.accounts
        self.repositories = self.storage.repositories
        self.requests: list[Request] = []
        self.page = page
        self._faults: list[_Fault] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self.port = self._http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.content_host = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def put(self, name: str, files: dict[str, bytes], **options: Any) -> Commit:
        """Add files to a repository without a request."""
        return self.storage.put(name, files, **options)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        commit = self.repositories[name].find(revision)
        assert commit is not None
        return {path: file.content for path, file in commit.files.items()}

    def titles(self, name: str, branch: str = "main") -> list[str]:
        """The titles of the commits of a branch, the newest first."""
        repository = self.repositories[name]
        return [commit.title for commit in history(repository, repository.branches[branch])]

    def fail(self, path: str, status: int, times: int = 1, message: str = "the server was told to fail") -> None:
        """Answer the next requests whose path has this text with an error."""
        self._faults.append(_Fault(path, status, times, message))

    def take_fault(self, path: str) -> Refusal | None:
        """Return the error that this request was told to get; None for none."""
        with self.storage.lock:
            for fault in self._faults:
                if fault.left and fault.path in path:
                    fault.left -= 1
                    return Refusal(fault.status, fault.message)
        return None


@contextmanager
def connect(hub: HubServer, home: Path, token: str | None = None) -> Iterator[None]:
    """Have the `huggingface_hub` of this process talk to a server, with a cache and a token of its own."""
    from huggingface_hub import constants

    values = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
              "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
              "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        for name, value in (("HF_HUB_CACHE", str(home / "hub")), ("HUGGINGFACE_HUB_CACHE", str(home / "hub")),
                            ("HF_TOKEN_PATH", str(home / "token")), ("HF_HOME", str(home)), ("ENDPOINT", hub.endpoint),
                            ("HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))):  # fmt: skip
            patch.setattr(constants, name, value)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # the oldest versions lack it
        yield


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ThreadingHTTPServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *values: object) -> None:
        """Print nothing: `requests` has it."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self._read_body()
        fault = self.hub.take_fault(parts.path)
        try:
            if fault is not None:
                raise fault
            self.account = self._account(parts.path)
            for method, pattern, function in ROUTES:
                found = pattern.fullmatch(parts.path)
                if found and self.command in method.split():
                    with self.hub.storage.lock:
                        function(self, *(unquote(group or "") for group in found.groups()))
                    return
            raise Refusal(404, f"no such route: {self.command} {parts.path}")
        except Refusal as refused:
            headers = {"X-Error-Message": refused.message, **refused.headers}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        assert length <= _LARGEST_BODY
        return self.rfile.read(length)

    def _account(self, path: str) -> Account | None:
        header = self.headers.get("Authorization")
        if path.startswith("/cdn/") or header is None:
            return None
        account = self.hub.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = b"" if self.command == "HEAD" or status in (204, 304) else body
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        self.hub.requests.append(Request(
            self.command, urlsplit(self.path).path, status, len(sent), self.headers.get("Range", ""),
            "Authorization" in self.headers,
        ))  # fmt: skip

    def send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Refusal(400, "the body is no JSON") from None

    def repository(self, name: str, *, writing: bool = False) -> Repository:
        """The repository, if this account may see it, or write to it."""
        found = self.hub.repositories.get(name)
        if found is None or (found.is_private and (self.account is None or self.account.user != found.owner)):
            if self.account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if writing and self.account is None:
            raise Refusal(401, "Invalid username or password.")
        if writing and self.account is not None and (self.account.user != found.owner or not self.account.can_write):
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        return found

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        found = repository.find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found
