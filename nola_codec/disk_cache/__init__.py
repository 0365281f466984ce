"""A cache of directories on disk that processes share: each entry is made once, appears whole, and leaves by last use.

    root/<kind>/<name>/             a finished entry
    root/<kind>/.building/          entries that are being made, or on their way out
    root/<kind>/.partial/<name>/    unfinished downloads, which the next try goes on with
    root/<kind>/.locks/<name>       an empty file that whoever makes or removes the entry locks
    root/.sessions/<id>/            what one process holds, beside a file that it locks as long as it lives

An entry gets its name by one rename, after its files were written through to the disk. So a process that is killed, and
a machine that loses its power, leave an entry whole or not at all, and the system releases the locks of a dead process.
The locks are those of `flock`. On a network file system they work between machines if its server keeps locks, as NFS 4
does; if it does not, give each machine a root of its own.

Its files: `cache.py` is the cache, `sessions.py` says who holds what, `locks.py` has locks and errors, and `trees.py`
reads and writes directories.
"""

from __future__ import annotations

from nola_codec.disk_cache.cache import CacheEntry, DiskCache, default_root

__all__ = ["CacheEntry", "DiskCache", "default_root"]
