"""`publish`: write something on the disk, and upload it to a URL at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nola_codec.errors import NolaError, OutputExists, RemoteError, require_package
from nola_codec.remote.addresses import (
    HubAddress,
    check_url,
    file_url_path,
    hub_address,
    is_chain,
    is_http,
    last_name,
    scheme_of,
    shown_url,
)
from nola_codec.remote.failures import require_online
from nola_codec.remote.fsspec_files import open_filesystem, translated
from nola_codec.remote.hub_fetching import raise_hub_error, without_bars

# A reader looks for these first, so they are uploaded last: until then there is no adapter and no model. Where such
# files are replaced, the old ones go first, so that new weights are never read with an old configuration.
_LAST = ("adapter_config.json", "config.json", "model_index.json")


@contextlib.contextmanager
def publish(url: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write a file or a directory to, and upload that when the ``with`` block ends without an error.

    A file appears whole or not at all. The files of a directory appear one after another, the configuration last; on
    the Hub all of them appear at once, as one commit. If an upload fails, the files that it made are removed again.
    With `overwrite`, files of the same names are replaced, and others in the directory are left alone. The old
    configuration is removed first, so a reader finds the old directory, none that is whole, or the new one.

    Args:
        url: A URL of a protocol that can be written; for the Hub that of an existing repository and a path in it.
        overwrite: Replace what is there.

    Raises:
        OutputExists: There is something, and `overwrite` is False.
        MissingPackage: A package for the protocol is not installed.
        RemoteError: ``read-only-url``: HTTP, or a chain; and those of the upload, as of `fetch`.
    """
    check_url(url)
    local = file_url_path(url)
    if local is not None:
        yield local
        return
    target = _open_target(url)
    if not overwrite and target.exists():
        raise OutputExists("already exists", where=shown_url(url))
    with tempfile.TemporaryDirectory(prefix="nola-upload-") as folder:
        made = Path(folder) / last_name(url)
        yield made
        files = sorted((path for path in made.rglob("*") if path.is_file()), key=_order) if made.is_dir() else [made]
        target.upload(made, files)


def published_bytes(url: str) -> int:
    """Return the size of what lies behind a URL that was written to. Raises what `publish` raises."""
    local = file_url_path(url)
    if local is not None:
        found = local.rglob("*") if local.is_dir() else [local]
        return sum(path.stat().st_size for path in found)
    return _open_target(url).size()


def _order(path: Path) -> tuple[bool, str]:
    return (path.name in _LAST, str(path))


def _open_target(url: str) -> _StoreTarget | _HubTarget:
    if is_chain(url):
        raise RemoteError("a chain of URLs can only be read", code="read-only-url", where=shown_url(url))
    hub = hub_address(url)
    require_online(url, "hf" if hub is not None else scheme_of(url))
    if hub is not None:
        if not hub.path:
            message = "a repository; put a path behind it, or use `nola-codec push`, which writes a page for it too"
            raise RemoteError(message, code="bad-url", where=url)
        return _HubTarget(hub)
    if is_http(url):
        message = f"{scheme_of(url)}:// can only be read; write to a path, s3:// or another store, and upload that"
        raise RemoteError(message, code="read-only-url", where=shown_url(url))
    return _StoreTarget(url)


# A file of these appears at once, when all of it is there. Others get it under a name of its own, which is changed.
_WHOLE_AT_ONCE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"})


class _StoreTarget:
    """A place in a file system of fsspec."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store, path = open_filesystem(url)
        self._path = path.rstrip("/")

    def exists(self) -> bool:
        with translated(self._url):
            return bool(self._store.exists(self._path))

    def size(self) -> int:
        with translated(self._url):
            return int(self._store.du(self._path))

    def upload(self, made: Path, files: list[Path]) -> None:
        places = [self._path if file == made else f"{self._path}/{file.relative_to(made).as_posix()}" for file in files]
        new: list[str] = []
        try:
            with translated(self._url):
                for file, place in zip(files, places, strict=True):
                    if file != made and file.name in _LAST and self._store.exists(place):
                        self._store.rm_file(place)
                for file, place in zip(files, places, strict=True):
                    if not self._store.exists(place):
                        new.append(place)
                        if file != made:  # stores of objects need no folders, others do
                            self._store.makedirs(place.rpartition("/")[0], exist_ok=True)
                    self._put(file, place)
        except BaseException as error:
            for place in new:
                with contextlib.suppress(Exception):
                    self._store.rm_file(place)
            if isinstance(error, NolaError) or not isinstance(error, Exception):
                raise
            raise RemoteError("the upload failed", code="no-connection", where=shown_url(self._url)) from None

    def _put(self, file: Path, place: str) -> None:
        """Upload one file. Raise what the store raises."""
        if scheme_of(self._url) in _WHOLE_AT_ONCE:
            self._store.put_file(os.fspath(file), place)
            return
        folder, _, name = place.rpartition("/")
        hidden = f"{folder}/.{name}.{secrets.token_hex(6)}.tmp"
        try:
            self._store.put_file(os.fspath(file), hidden)
            self._store.mv(hidden, place)
        except BaseException:
            with contextlib.suppress(Exception):
                self._store.rm_file(hidden)
            raise


class _HubTarget:
    """A place in an existing repository of the Hugging Face Hub."""

    def __init__(self, address: HubAddress) -> None:
        require_package("writing to hf://", "huggingface_hub", "hub")
        from huggingface_hub import HfApi

        self._address = address
        self._api = HfApi()
        self._common: dict[str, Any] = {"repo_type": address.repo_type, "revision": address.revision}

    def exists(self) -> bool:
        return bool(self._files())

    def size(self) -> int:
        return sum(file.size or 0 for file in self._files())

    def upload(self, made: Path, files: list[Path]) -> None:
        from huggingface_hub import CommitOperationAdd

        path = self._address.path
        places = [path if file == made else f"{path}/{file.relative_to(made).as_posix()}" for file in files]
        operations = [
            CommitOperationAdd(path_in_repo=place, path_or_fileobj=os.fspath(file))
            for place, file in zip(places, files, strict=True)
        ]
        try:
            with without_bars():
                self._api.create_commit(
                    self._address.repo, operations, commit_message=f"Upload {path} with nola-codec", **self._common
                )
        except Exception as error:
            raise_hub_error(error, self._address)

    def _files(self) -> list[Any]:
        path = self._address.path
        try:
            info: Any = self._api.repo_info(self._address.repo, files_metadata=True, timeout=30, **self._common)
        except Exception as error:
            raise_hub_error(error, self._address)
        return [f for f in info.siblings or () if f.rfilename == path or f.rfilename.startswith(f"{path}/")]
