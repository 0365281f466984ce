"""The files of `spec/conformance`, for the tests.

for name, entry in INVALID.items():
    entry["code"], read(entry)      # the code for which the file is refused, and its bytes
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parents[2] / "spec" / "conformance"
MANIFEST: dict[str, Any] = json.loads((KIT / "files.json").read_text(encoding="utf-8"))
INVALID: dict[str, dict[str, Any]] = {entry["fault"]: entry for entry in MANIFEST["invalid"]}
"""The entries of invalid files, by what is wrong with them."""


def read(entry: dict[str, Any]) -> bytes:
    """Return the bytes of a file."""
    return (KIT / entry["file"]).read_bytes()


def references_of(entry: dict[str, Any]) -> list[bytes]:
    """Return the bytes of the files that are decoded before a file."""
    return [(KIT / name).read_bytes() for name in entry.get("references", [])]
