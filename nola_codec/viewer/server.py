"""An HTTP server on the loopback interface that gives one page and some `.nola` files, and nothing else.

Other programs and other web pages of the same machine can reach it too. So every path begins with a token that nobody
can guess, a request must name this server as its host (which stops names that are bound to 127.0.0.1 later), and no
answer may be read by a page of another origin.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import quote, urlencode

from nola_codec.viewer.page import content_policy, read_page

ADDRESS = "127.0.0.1"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_PIECE = 1 << 20
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Viewer:
    """A server that is open until `close`.

    with Viewer([Path("task.nola")]) as viewer:
        print(viewer.url)
        viewer.serve()  # until an interrupt

    Attributes:
        url: The address of the page, which opens the first file.
    """

    def __init__(self, files: Sequence[Path], port: int = 0) -> None:
        """Bind the port.

        Args:
            files: The file to show, and after it the earlier versions that it needs.
            port: The port; 0 stands for any free one.

        Raises:
            NolaError: ``no-page``: The installation has no page.
            OSError: A file cannot be read, or the port is taken.
        """
        for file in files:
            file.open("rb").close()
        self.page = read_page()
        self.policy = content_policy(self.page)
        self.token = secrets.token_urlsafe(18)
        names = [f"{number}/{file.name}" for number, file in enumerate(files)]
        self.files = dict(zip((quote(name) for name in names), files, strict=True))
        self._server = _Server((ADDRESS, port), _Handler)
        self._server.viewer = self
        self.hosts = {f"{name}:{self._server.server_port}" for name in (ADDRESS, "localhost")}
        query = urlencode([("local", ""), *(("url", quote(name)) for name in names)])
        self.url = f"http://{ADDRESS}:{self._server.server_port}/{self.token}/?{query}"

    def serve(self) -> None:
        """Answer requests until an exception, such as an interrupt, ends it."""
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Free the port."""
        self._server.server_close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    viewer: Viewer

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that leaves in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "nola-codec"
    sys_version = ""
    timeout = 60  # seconds without a byte
    server: _Server

    def do_GET(self) -> None:
        viewer = self.server.viewer
        if self.headers.get("Host", "").lower() not in viewer.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return
        path = self.path.partition("?")[0]
        token, _, name = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), viewer.token.encode()) or path == f"/{token}":
            self._refuse(HTTPStatus.NOT_FOUND)
        elif name == "":
            self._start(HTTPStatus.OK, "text/html; charset=utf-8", len(viewer.page))
            if self.command != "HEAD":
                self.wfile.write(viewer.page)
        elif name in viewer.files:
            try:
                file = viewer.files[name].open("rb")
            except OSError:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            with file:
                self._send_file(file)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _send_file(self, file: BinaryIO) -> None:
        """Answer with a file, or with the part of it that one range asks for; other forms of ranges get all of it."""
        size = os.fstat(file.fileno()).st_size
        start, end, status = 0, size, HTTPStatus.OK
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is not None and any(asked.groups()):
            first, last = asked.groups()
            start = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            status = HTTPStatus.PARTIAL_CONTENT
            if first and last and int(last) < int(first):
                start, end, status = 0, size, HTTPStatus.OK  # no range, by RFC 9110
            elif start >= end:
                self._start(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, None, 0, {"Content-Range": f"bytes */{size}"})
                return
        extra = {"Accept-Ranges": "bytes"}
        if status == HTTPStatus.PARTIAL_CONTENT:
            extra["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._start(status, "application/octet-stream", end - start, extra)
        if self.command == "HEAD":
            return
        file.seek(start)
        left = end - start
        while left > 0:
            piece = file.read(min(left, _PIECE))
            if not piece:  # the file became shorter: the browser sees that bytes are missing
                self.close_connection = True
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._start(status, None, 0)

    def _start(self, status: HTTPStatus, kind: str | None, length: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fields = {**_HEADERS, "Content-Security-Policy": self.server.viewer.policy, **(extra or {})}
        if kind is not None:
            fields["Content-Type"] = kind
        for field, value in {**fields, "Content-Length": str(length)}.items():
            self.send_header(field, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: paths hold the token."""
