"""Find the page, and write the policy that says what it may load."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from nola_codec.errors import NolaError

PAGE = Path(__file__).resolve().parent / "reader.html"
"""The page, which `make web` builds. Wheels made by `make dist` hold it."""

_INLINE = re.compile(r"<(script|style)[^>]*>(.*?)</\1>", re.DOTALL)


def read_page() -> bytes:
    """Return the page.

    Raises:
        NolaError: ``no-page``: The installation was made without it.
    """
    try:
        return PAGE.read_bytes()
    except FileNotFoundError:
        raise NolaError(
            "this installation was made without the page; `make dist` in a checkout makes a wheel that has it, and "
            "`make web` puts it into the checkout (both need Node 20 or later)",
            code="no-page",
        ) from None


def content_policy(page: bytes) -> str:
    """Return the Content-Security-Policy of a page: its own scripts and styles, a worker, and files of its own server.

    >>> content_policy(b"<style>a{}</style>").split("; ")[1]
    "style-src 'sha256-GxhLbh7lqVIwGoTp4jDh4V1a3+6ABtw1wSzRFQGMhnc='"
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(page.decode()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    own = [f"{kind}-src {' '.join(values)}" for kind, values in hashes.items() if values]
    rest = "worker-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    return "; ".join(["default-src 'none'", *own, rest])
