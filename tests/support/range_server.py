"""An HTTP server of files on the loopback interface, with ranges, that counts what it answers and fails when told to.

    with RangeServer({"a.nola": data}) as server:
        server.url("a.nola"), server.requests, server.sent

Each fault takes the next answer: ``"503"`` and other statuses, ``"reset"`` (the connection ends without an answer),
``"cut"`` (it ends in the middle of the body), ``"stall"`` (no byte comes for longer than a client waits),
``"drip"`` (bytes come one by one).
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class RangeServer:
    """The server.

    Attributes:
        files: The bytes of each file, by its path without the first ``/``.
        has_ranges: False answers requests for a part with the whole file.
        has_tags: False sends neither ETag nor date.
        has_lengths: False sends bodies in chunks, without their length.
        password: A ``user:password`` that each request must have, or None.
        redirects: Locations by path.
        redirect_body: The body of these answers.
        headers: Further headers of each answer; they replace the usual ones.
        faults: What happens to the next answers.
        requests: (path, Range header, status) of each answer.
        sent: The bytes of all bodies.
    """

    files: dict[str, bytes]
    has_ranges: bool = True
    has_tags: bool = True
    has_lengths: bool = True
    password: str | None = None
    redirects: dict[str, str] = field(default_factory=dict)
    redirect_body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self._http = _QuietServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.state = self  # type: ignore[attr-defined]
        self.port = self._http.server_address[1]

    def url(self, path: str, user: str = "") -> str:
        """Return the address of a file."""
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self.port}/{path}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _drips = False

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        state: RangeServer = self.server.state  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path).lstrip("/")
        asked = self.headers.get("Range", "")
        fault = state.faults.pop(0) if state.faults else ""
        if fault == "reset":
            self._note(path, asked, 0)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "stall":
            self._note(path, asked, 0)
            time.sleep(0.6)
            self.close_connection = True
            return
        if fault.isdigit():
            self._answer(path, asked, int(fault), b"no", {"Retry-After": "0"})
        elif path in state.redirects:
            self._answer(path, asked, 302, state.redirect_body, {"Location": state.redirects[path]})
        elif state.password is not None and not self._is_authorized(state.password):
            self._answer(path, asked, 401, b"who are you?", {"WWW-Authenticate": "Basic"})
        elif path not in state.files:
            self._answer(path, asked, 404, b"not here", {})
        else:
            self._drips = fault == "drip"
            self._send_file(path, asked, is_cut=fault == "cut")

    def _is_authorized(self, password: str) -> bool:
        import base64

        return self.headers.get("Authorization") == "Basic " + base64.b64encode(password.encode()).decode()

    def _send_file(self, path: str, asked: str, *, is_cut: bool) -> None:
        state: RangeServer = self.server.state  # type: ignore[attr-defined]
        data = state.files[path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'} if state.has_tags else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        condition = self.headers.get("If-Range")
        if wanted is None or not state.has_ranges or (condition is not None and condition != headers.get("ETag")):
            return self._answer(path, asked, 200, data, headers, is_cut=is_cut)
        first = int(wanted[1])
        last = min(int(wanted[2]) if wanted[2] else len(data) - 1, len(data) - 1)
        if first >= len(data):
            return self._answer(path, asked, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(path, asked, 206, data[first : last + 1], headers, is_cut=is_cut)

    def _answer(
        self, path: str, asked: str, status: int, body: bytes, headers: Mapping[str, str], *, is_cut: bool = False
    ) -> None:
        state: RangeServer = self.server.state  # type: ignore[attr-defined]
        self._note(path, asked, status)
        self.send_response(status)
        length = {"Content-Length": str(len(body))} if state.has_lengths else {"Transfer-Encoding": "chunked"}
        for name, value in {**length, **headers, **state.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        kept = body[: len(body) // 2] if is_cut else body
        state.sent += len(kept)
        try:
            if self._drips:
                for byte in kept[:200]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.01)
            elif state.has_lengths:
                self.wfile.write(kept)
            else:
                for start in range(0, len(kept), 1 << 16):
                    piece = kept[start : start + (1 << 16)]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if not is_cut:
                    self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has seen enough
            self.close_connection = True
        if is_cut:
            self.close_connection = True

    def _note(self, path: str, asked: str, status: int) -> None:
        state: RangeServer = self.server.state  # type: ignore[attr-defined]
        state.requests.append((path, asked, status))
