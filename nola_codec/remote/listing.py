"""List the files behind a URL: one file with what lies beside it, or the needed files of a directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nola_codec.errors import RemoteError
from nola_codec.remote.addresses import beside_url, is_chain, is_http, shown_url
from nola_codec.remote.contract import RemoteFile
from nola_codec.remote.failures import not_found
from nola_codec.remote.fsspec_files import FsspecFile, open_filesystem, translated
from nola_codec.remote.http_files import HttpFile
from nola_codec.remote.selection import MAX_FILES, select_files
from nola_codec.remote.transfer import stream_range

_CONFIGS = ("adapter_config.json", "params.json")
_ADAPTER_FILE = re.compile(r".+\.(safetensors|npz|bin|pt|pth)", re.IGNORECASE)
# What tools call the files of an adapter or a model, for servers that list no directory.
_STANDARD = (
    "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapters.safetensors", "adapter_model.bin",
    "model.safetensors",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"
_MOST_INDEX = 64_000_000  # bytes
_MODEL_PARTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
                "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """The files to copy.

    Attributes:
        files: The remote files, by their path in the local copy. The version of each is known.
        is_directory: True if the URL means a directory.
    """

    files: dict[str, RemoteFile]
    is_directory: bool


def list_url(url: str, name: str) -> Listing:
    """List what lies behind a URL, which is not of the Hub.

    Args:
        url: The URL of a file or a directory.
        name: The name that a file gets in the local copy.

    Raises:
        RemoteError, MissingPackage: Those of `open_url`; ``several-checkpoints``; ``limit``.
    """
    return _list_http(url, name) if is_http(url) else _list_fsspec(url, name)


def _list_http(url: str, name: str) -> Listing:
    if not url.split("?")[0].endswith("/"):
        try:
            files = _present(url, [(name, url)])
        except RemoteError as error:
            if error.code != "not-found":
                raise
            return _probe(url + "/", error)
        return Listing(files | _present_beside(url, name), is_directory=False)
    return _probe(url, not_found(url))


def _probe(url: str, missing: RemoteError) -> Listing:
    """Ask for the usual names in a directory, since HTTP has no way to list one."""
    if "?" in url:
        raise missing
    for leaf in _STANDARD:
        files = _present(url, [(leaf, beside_url(url, leaf))], optional=True)
        if files:
            parts = _MODEL_PARTS if leaf == "model.safetensors" else _CONFIGS
            beside = [(part, beside_url(url, part)) for part in parts]
            return Listing(files | _present(url, beside, optional=True), is_directory=True)
    sharded = _present_shards(url)
    if sharded:
        others = [(part, beside_url(url, part)) for part in _MODEL_PARTS]
        return Listing(sharded | _present(url, others, optional=True), is_directory=True)
    message = f"no such file, and as a directory none of {', '.join(_STANDARD)} is in it; name the file itself"
    raise RemoteError(message, code="not-found", where=shown_url(url))


def _present_shards(url: str) -> dict[str, RemoteFile]:
    """Return the index of a model's shards and the shards that it names; nothing if there is no index."""
    found = _present(url, [(_INDEX, beside_url(url, _INDEX))], optional=True)
    if not found:
        return {}
    text = bytearray()
    for piece in stream_range(found[_INDEX], 0, None):
        text += piece
        if len(text) > _MOST_INDEX:
            raise RemoteError(f"an index of more than {_MOST_INDEX} bytes", code="limit", where=found[_INDEX].name)
    try:
        names = sorted({str(name) for name in json.loads(text)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RemoteError("not the index of a model's shards", code="bad-answer", where=found[_INDEX].name) from None
    if len(names) > MAX_FILES or not all(is_plain(name) and "/" not in name for name in names):
        message = "the index names files that are not in its directory, or too many"
        raise RemoteError(message, code="bad-answer", where=found[_INDEX].name)
    return found | _present(url, [(name, beside_url(url, name)) for name in names])


def _present(url: str, wanted: Iterable[tuple[str, str]], *, optional: bool = False) -> dict[str, RemoteFile]:
    """Return files whose version one short request has told; those that are not there are left out if optional."""
    found: dict[str, RemoteFile] = {}
    for name, place in wanted:
        file = HttpFile(place)
        try:
            for _ in stream_range(file, 0, 1):
                break
        except RemoteError as error:
            file.close()
            # Stores that hide what there is answer "forbidden" for a file that is not there.
            if optional and error.code in ("not-found", "forbidden"):
                continue
            raise
        found[name] = file
    return found


def _present_beside(url: str, name: str) -> dict[str, RemoteFile]:
    """Return the configurations beside an adapter's file, without which its scaling would be wrong."""
    if not _ADAPTER_FILE.fullmatch(name):
        return {}
    beside = [(leaf, beside_url(url, leaf)) for leaf in _CONFIGS if leaf != name]
    return _present(url, beside, optional=True)


def _list_fsspec(url: str, name: str) -> Listing:
    filesystem, path = open_filesystem(url)
    with translated(url):
        info = filesystem.info(path)
    if info.get("type") != "directory":
        files: dict[str, RemoteFile] = {name: FsspecFile(url, filesystem, path, info)}
        if _ADAPTER_FILE.fullmatch(name):
            files |= _beside_in_store(url, filesystem, path)
        return Listing(files, is_directory=False)
    found = _listed(url, filesystem, path)
    chosen = select_files(found, shown_url(url))
    if not chosen:
        message = "no adapter and no model in this directory" if found else "no such file, or an empty directory"
        raise RemoteError(message, code="not-found", where=shown_url(url))
    return Listing(
        {leaf: FsspecFile(_below(url, leaf), filesystem, found[leaf]["name"], found[leaf]) for leaf in chosen},
        is_directory=True,
    )


def _below(url: str, leaf: str) -> str:
    return url if is_chain(url) else f"{url.rstrip('/')}/{leaf}"


def _beside_in_store(url: str, filesystem: Any, path: str) -> dict[str, RemoteFile]:
    folder = path.rpartition("/")[0]
    found: dict[str, RemoteFile] = {}
    for leaf in _CONFIGS:
        place = f"{folder}/{leaf}" if folder else leaf
        try:
            with translated(url):
                info = filesystem.info(place)
        except RemoteError as error:
            if error.code in ("not-found", "forbidden"):
                continue
            raise
        if info.get("type") != "directory":
            found[leaf] = FsspecFile(_below(url.rpartition("/")[0], leaf), filesystem, place, info)
    return found


def _listed(url: str, filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return what the store says of each file in a directory and two levels below, by its relative path."""
    found: dict[str, dict[str, Any]] = {}
    with translated(url):
        base = str(filesystem._strip_protocol(path)).strip("/")
        for folder, _, files in filesystem.walk(path, maxdepth=3, detail=True):  # not `find`, which has no bound
            inside = str(folder).strip("/").removeprefix(base).strip("/")
            for leaf, info in files.items():
                relative = f"{inside}/{leaf}" if inside else str(leaf)
                if info.get("type") == "file" and is_plain(relative):
                    found[relative] = info
            if len(found) > MAX_FILES:
                message = f"more than {MAX_FILES} files; give the directory of one adapter or model"
                raise RemoteError(message, code="limit", where=shown_url(url))
    return found


def is_plain(relative: str) -> bool:
    """Return True for a relative path that stays in its directory on every system. Names come from strangers."""
    parts = relative.split("/")
    return (
        bool(relative)
        and len(relative) < 1024
        and not any(part in ("", ".", "..") or re.search(r'[\\:\0-\x1f*?"<>|]', part) for part in parts)
    )
