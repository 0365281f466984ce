"""Directories as the cache sees them; links are never followed."""

from __future__ import annotations

import os
from pathlib import Path


def listed(directory: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a directory, or nothing if it is not there."""
    try:
        with os.scandir(directory) as items:
            return list(items)
    except (FileNotFoundError, NotADirectoryError):
        return []


def tree_size(directory: Path) -> int:
    """Return the sum of the sizes of the files in a directory and below."""
    items = listed(directory)
    deeper = sum(tree_size(Path(item.path)) for item in items if item.is_dir(follow_symlinks=False))
    return deeper + sum(i.stat(follow_symlinks=False).st_size for i in items if not i.is_dir(follow_symlinks=False))


def write_through(path: Path, *, deep: bool = True) -> None:
    """Have the system write a file or a directory to the disk, with all that is in it."""
    if os.name == "nt":  # Windows writes only files through that are open for writing
        return
    if deep and path.is_dir():
        for item in path.iterdir():
            if not item.is_symlink():
                write_through(item)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
