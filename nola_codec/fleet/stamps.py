"""Tell if a source is still what it was: quickly by sizes and times, or surely by its bytes.

The *digest* of a source that is one file is its SHA-256, as `sha256sum` prints it. Of several files, such as weights
and their configuration, it is the SHA-256 of the lines that `sha256sum` prints for them, sorted by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from nola_codec.adapters.folders import adapter_files
from nola_codec.fleet.items import Verb

_PIECE = 1 << 20


def source_files(path: Path, verb: Verb) -> tuple[Path, ...]:
    """Return the files that a job reads of a local source, sorted by name.

    Raises:
        AdapterError: The directory has no adapter, or several.
        OSError: The directory cannot be read.
    """
    return (path,) if verb != "encode" else adapter_files(path)


def stamp(files: Iterable[Path]) -> tuple[str, int]:
    """Return 16 digits that change when a file gets another size or time of change, and the bytes of all files.

    Raises:
        OSError: A file is not there.
    """
    digest, total = hashlib.sha256(), 0
    for file in files:
        found = file.stat()
        total += found.st_size
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16], total


def digest_files(files: Iterable[Path]) -> str:
    """Return the digest of a source, 64 digits. Raises OSError if a file cannot be read."""
    lines = [(hash_file(file), file.name) for file in files]
    if len(lines) == 1:
        return lines[0][0]
    return hashlib.sha256(
        "".join(f"{sha256}  {name}\n" for sha256, name in lines).encode("utf-8", "surrogateescape")
    ).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def output_files(output: Path) -> list[Path]:
    """Return the files of an output, a file or a directory, sorted by path; none if there is no output."""
    if not output.is_dir():
        return [output] if output.is_file() else []
    return sorted(path for path in output.rglob("*") if path.is_file())


def digest_output(output: Path) -> tuple[str, int]:
    """Return the digest of an output and its bytes; in a directory, a name is relative to it. Raises OSError."""
    files = output_files(output)
    total = sum(os.path.getsize(file) for file in files)
    if not output.is_dir():
        return hash_file(output), total
    lines = "".join(f"{hash_file(file)}  {file.relative_to(output).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest(), total
