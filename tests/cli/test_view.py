"""`view`: what its server gives and to whom, how it ends, and the page in Chromium."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import nola_codec
from nola_codec.viewer import page as page_module
from nola_codec.viewer.page import PAGE, content_policy
from nola_codec.viewer.server import Viewer

Run = Callable[..., Any]
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[2]
OPEN_PAGE = """
import { chromium } from "playwright-core";
const [executablePath, url] = process.argv.slice(1);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage();
const errors = [];
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(error.stack));
await page.goto(url);
await page.locator("#status.good").waitFor();
const text = await page.innerText("body");
const [status, asksForAddress] = [await page.innerText("#status"), await page.isVisible("#url")];
if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/view.png`, fullPage: true });
console.log(JSON.stringify({ text, status, asksForAddress, errors }));
await browser.close();
"""
RUN = """
import signal
import sys
from nola_codec.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
main(sys.argv[1:])
"""
SMALL_PAGE = b"<html><style>p{}</style><script>let a</script></html>"


@pytest.fixture
def small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A page that stands for the one that `make web` builds, so that these tests run without it."""
    path = tmp_path / "reader.html"
    path.write_bytes(SMALL_PAGE)
    monkeypatch.setattr(page_module, "PAGE", path)
    return SMALL_PAGE


@pytest.fixture
def viewer(encoded: Path, small_page: bytes) -> Iterator[Viewer]:
    """A server of a file whose name must be escaped, in a thread."""
    shutil.copy(encoded, encoded.with_name("my löra #1.nola"))
    with Viewer([encoded.with_name("my löra #1.nola")]) as running:
        thread = threading.Thread(target=running.serve)
        thread.start()
        yield running
        running.stop()
        thread.join()


def ask(viewer: Viewer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of an answer."""
    parts = urlsplit(viewer.url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_comes_with_a_policy_and_only_for_the_token(viewer: Viewer, small_page: bytes) -> None:
    parts = urlsplit(viewer.url)
    assert parts.hostname == "127.0.0.1"
    status, headers, body = ask(viewer, f"{parts.path}?{parts.query}")
    assert (status, body, headers["Content-Type"]) == (200, small_page, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    assert policy == content_policy(small_page)
    assert re.match(r"default-src 'none'; style-src 'sha256-\S+'; script-src 'sha256-\S+'; worker-src blob:; ", policy)
    assert "unsafe" not in policy
    assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert "Access-Control-Allow-Origin" not in headers
    name = next(iter(viewer.files))
    wrong = f"/{'x' * len(viewer.token)}/"
    for path in ("/", wrong, wrong + name, f"/{viewer.token}", f"/{name}", f"/{viewer.token[:-1]}/"):
        assert ask(viewer, path)[::2] == (404, b"")


@pytest.mark.parametrize("name", ["1/a.nola", "0/", "0", "..", "../", "0/../0/x", "%2e%2e/", "/etc/passwd", "a.nola"])
def test_no_other_file_and_no_listing(name: str, viewer: Viewer) -> None:
    assert ask(viewer, f"/{viewer.token}/{name}")[::2] == (404, b"")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", ""])
def test_another_host_is_refused(host: str, viewer: Viewer) -> None:
    """A page whose name was bound to 127.0.0.1 after it was loaded sends its own name."""
    path = urlsplit(viewer.url).path
    assert ask(viewer, path, Host=host)[::2] == (421, b"")
    port = urlsplit(viewer.url).port
    assert ask(viewer, path, Host=f"LOCALHOST:{port}")[0] == 200


def test_only_reading(viewer: Viewer) -> None:
    path = urlsplit(viewer.url).path
    assert [ask(viewer, path, method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [501] * 4
    status, headers, body = ask(viewer, path, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(SMALL_PAGE)), b"")


def test_ranges(viewer: Viewer) -> None:
    (name, file), data = next(iter(viewer.files.items())), next(iter(viewer.files.values())).read_bytes()
    assert file.name == "my löra #1.nola"
    size, path = len(data), f"/{viewer.token}/{name}"
    for asked, start, end in (
        ("bytes=0-9", 0, 10), ("bytes=5-", 5, size), ("bytes=-7", size - 7, size), (f"bytes=9-{size * 2}", 9, size),
        (f"bytes=-{size * 2}", 0, size),
    ):  # fmt: skip
        status, headers, body = ask(viewer, path, Range=asked)
        assert (status, body, headers["Content-Range"]) == (206, data[start:end], f"bytes {start}-{end - 1}/{size}")
    for asked in ("bytes=9-5", "bytes=-", "bytes=0-1,4-5", "lines=0-1", f"bytes={'9' * 19}-"):
        status, headers, body = ask(viewer, path, Range=asked)
        assert (status, body, headers["Accept-Ranges"]) == (200, data, "bytes")
    for asked in (f"bytes={size}-", "bytes=-0"):
        status, headers, body = ask(viewer, path, Range=asked)
        assert (status, body, headers["Content-Range"]) == (416, b"", f"bytes */{size}")
    status, headers, body = ask(viewer, path, "HEAD", Range="bytes=0-9")
    assert (status, headers["Content-Length"], body) == (206, "10", b"")
    file.unlink()
    assert ask(viewer, path)[0] == 404


def test_without_the_page_an_error_says_how_to_get_it(
    run: Run, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "PAGE", tmp_path / "none.html")
    done = run("view", encoded, "--no-browser")
    assert (done.status, done.out) == (3, "")
    assert "`make dist`" in done.err
    assert done.err.endswith(" [no-page]\n")


def test_what_is_no_file_is_refused_before_a_server_starts(run: Run, adapter: Path, small_page: bytes) -> None:
    done = run("view", adapter, "--no-browser")
    assert (done.status, done.out) == (3, "")


built = pytest.mark.skipif(not PAGE.is_file(), reason="the page is not built (make web)")


@pytest.fixture
def command(encoded: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it prints."""
    words = [sys.executable, "-c", RUN, "view", str(encoded), "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        yield process, url
        process.kill()


@built
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_ends_with_a_signal(number: int, status: int, command: tuple[subprocess.Popen[str], str]) -> None:
    process, url = command
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{24}/\?local=&url=0%2Fa\.nola", url), url
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert " than fp16; " in err


@built
def test_chromium_checks_the_file(encoded: Path, command: tuple[subprocess.Popen[str], str]) -> None:
    """The page keeps its policy, opens the file by range requests, and says the decoded SHA-256."""
    node, browser = shutil.which("node"), CHROMIUM
    if node is None or browser is None or not (ROOT / "web" / "node_modules").is_dir():
        assert not os.environ.get("REQUIRE_CHROMIUM")
        pytest.skip("there is no Node or no Chromium here (CHROMIUM names one), or web/ is not built")
    words = [node, "--input-type=module", "--eval", OPEN_PAGE, browser, command[1]]
    done = subprocess.run(words, cwd=ROOT / "web", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "all checks passed" in found["status"]
    assert nola_codec.inspect(encoded).decoded_sha256 in found["text"]
    assert not found["asksForAddress"]
    assert found["errors"] == []
