"""Copy files of the Hugging Face Hub with huggingface_hub, into the cache that other programs share with us."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from nola_codec.errors import RemoteError, require_package
from nola_codec.progress import Progress
from nola_codec.remote.addresses import HubAddress
from nola_codec.remote.failures import is_offline, no_connection, offline, reason_of
from nola_codec.remote.http_files import hub_name, raise_hub_refusal
from nola_codec.remote.listing import is_plain
from nola_codec.remote.selection import MAX_FILES, select_files

_CONFIGS = ("adapter_config.json", "params.json")
# What the Hub calls the reason of a refusal, by the name of huggingface_hub's error.
_REFUSALS = (
    ("GatedRepoError", "GatedRepo"), ("RepositoryNotFoundError", "RepoNotFound"),
    ("RevisionNotFoundError", "RevisionNotFound"), ("RemoteEntryNotFoundError", "EntryNotFound"),
)  # fmt: skip


def fetch_from_hub(
    address: HubAddress, progress: Progress | None, *, wants_nola: bool = False, only_cached: bool = False
) -> Path:
    """Return the path of a copy of a file or folder of the Hub, in the cache of huggingface_hub.

    Files that are downloaded anew are compared with the SHA-256 that the Hub tells, if it does. Offline, what the cache
    has of the revision is taken.

    Args:
        address: The repository, file or folder.
        progress: Called as (stage, kilobytes done, kilobytes in all).
        wants_nola: Take the only `.nola` file of a repository, even if there is an adapter or a model too.
        only_cached: Take what the cache has, and ask nobody.

    Raises:
        MissingPackage: ``needs-huggingface_hub``.
        RemoteError: ``not-found``, ``forbidden``, ``no-connection``, ``offline``, ``bad-download``, ``server-error``.
    """
    require_package("reading from hf://", "huggingface_hub", "hub")
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    common: dict[str, Any] = {"repo_type": address.repo_type, "revision": address.revision}
    if only_cached or is_offline("hf"):
        try:
            # Without a pattern, huggingface_hub refuses copies that lack files which nobody needed.
            home = snapshot_download(address.repo, local_files_only=True, allow_patterns=["//"], **common)
            place = Path(home) / address.path
        except Exception:  # whatever the reason, there is no copy
            raise offline(hub_name(address)) from None
        if not place.exists():
            raise offline(hub_name(address))
        return _only_nola_in(place, address) if wants_nola and not address.path else place
    try:
        info: Any = HfApi().repo_info(address.repo, files_metadata=True, timeout=30, **common)
        names = _needed(address, {file.rfilename for file in info.siblings or ()}, wants_nola)
        old = {n for n in names if isinstance(_cached(try_to_load_from_cache, address, n, info.sha), str)}
        patterns = [glob.escape(name) for name in names]
        with without_bars():
            home = Path(
                snapshot_download(address.repo, allow_patterns=patterns, tqdm_class=_quiet_bar(progress), **common)
            )
    except RemoteError:
        raise
    except Exception as error:  # requests in older versions of huggingface_hub, httpx in newer ones
        raise_hub_error(error, address)
    _check_digests(home, {f.rfilename: f.lfs for f in info.siblings or () if f.rfilename in names - old and f.lfs})
    is_file = len(names) == 1 and next(iter(names)).endswith(".nola")
    return home / (next(iter(names)) if is_file else address.path)


def lone_file(address: HubAddress) -> HubAddress:
    """Return the address of the only `.nola` file of a repository.

    Raises:
        RemoteError: ``not-found``: there is none; ``several-files``; and what `fetch_from_hub` raises.
    """
    require_package("reading from hf://", "huggingface_hub", "hub")
    from huggingface_hub import HfApi

    try:
        info: Any = HfApi().repo_info(address.repo, repo_type=address.repo_type, revision=address.revision, timeout=30)
    except Exception as error:
        raise_hub_error(error, address)
    name = _lone_name(address, {file.rfilename for file in info.siblings or ()})
    if not name:
        raise RemoteError("no .nola file in the repository", code="not-found", where=hub_name(address))
    return replace(address, path=name)


def _only_nola_in(home: Path, address: HubAddress) -> Path:
    """Return the only `.nola` file in the copy of a repository; the copy itself if it has none."""
    name = _lone_name(address, {path.relative_to(home).as_posix() for path in home.rglob("*.nola")})
    return home / name if name else home


def _lone_name(address: HubAddress, names: set[str]) -> str:
    """Return the only `.nola` file among names, or nothing. Raises RemoteError ``several-files``."""
    found = sorted(name for name in names if name.endswith(".nola") and is_plain(name))
    if len(found) > 1:
        message = f"{len(found)} .nola files ({', '.join(found[:5])}); put the name of the one that is meant behind it"
        raise RemoteError(message, code="several-files", where=hub_name(address))
    return found[0] if found else ""


def _needed(address: HubAddress, names: set[str], wants_nola: bool) -> set[str]:
    """Return the names of the files of a repository that an address means, and those that a reader needs with them."""
    if not address.path and wants_nola and (lone := _lone_name(address, names)):
        return {lone}
    plain = {name for name in names if is_plain(name)}
    if len(names) > MAX_FILES and not address.path:
        message = f"more than {MAX_FILES} files; give the folder of one adapter or model"
        raise RemoteError(message, code="limit", where=hub_name(address))
    if address.path in plain:
        folder = address.path.rpartition("/")[0]
        beside = (f"{folder}/{leaf}" if folder else leaf for leaf in _CONFIGS)
        return {address.path, *plain.intersection(beside)}
    prefix = f"{address.path}/" if address.path else ""
    inside = [name[len(prefix) :] for name in plain if name.startswith(prefix) and name.count("/") < 20]
    chosen = select_files(inside, hub_name(address))
    if not chosen:
        what = "no adapter and no model in it" if inside or not address.path else "no such file or folder in it"
        files = sorted(name for name in inside if name.endswith(".nola"))
        if files and not address.path:
            return {_lone_name(address, names)}
        hint = f"; a .nola file is {files[0]}: give {hub_name(address)}/{files[0]}" if files else ""
        raise RemoteError(what + hint, code="not-found", where=hub_name(address))
    return {prefix + name for name in chosen}


def _cached(look: Any, address: HubAddress, name: str, commit: str | None) -> object:
    return look(address.repo, name, repo_type=address.repo_type, revision=commit)


def _check_digests(home: Path, lfs: Mapping[str, Any]) -> None:
    """Compare the SHA-256 of files that were just downloaded. Raises RemoteError ``bad-download``."""
    for name, facts in lfs.items():
        expected = facts.get("sha256") if isinstance(facts, dict) else getattr(facts, "sha256", None)
        if not isinstance(expected, str) or not re.fullmatch(r"[0-9a-f]{64}", expected):
            continue
        sha256 = hashlib.sha256()
        with (home / name).open("rb") as stream:
            while piece := stream.read(1 << 20):
                sha256.update(piece)
        if sha256.hexdigest() != expected:
            damaged = (home / name).resolve()
            damaged.unlink()
            (home / name).unlink(missing_ok=True)
            message = "the download has another SHA-256 than the Hub tells; it was removed, so try again"
            raise RemoteError(message, code="bad-download", where=name)


def raise_hub_error(error: Exception, address: HubAddress) -> NoReturn:
    """Raise the RemoteError for an error of huggingface_hub, or of the HTTP library that it uses."""
    name = hub_name(address)
    kinds = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    for kind, code in _REFUSALS:
        if kind in kinds:
            raise_hub_refusal(name, code, status)
    if "OfflineModeIsEnabled" in kinds:
        raise offline(name) from None
    if isinstance(status, int):
        raise_hub_refusal(name, "", status)
        raise RemoteError(f"the Hub answers with status {status}", code="server-error", where=name) from None
    if kinds & {"HFValidationError", "HfUriError"}:
        raise RemoteError("is no valid name of a repository", code="bad-url", where=name) from None
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        raise error
    raise no_connection(name, reason_of(error)) from None


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep huggingface_hub from showing bars of its own."""
    from huggingface_hub import utils

    bars: Any = utils
    was_disabled = bars.are_progress_bars_disabled()
    if not was_disabled:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            bars.enable_progress_bars()


def _quiet_bar(progress: Progress | None) -> type:
    """Return a bar for huggingface_hub that shows nothing, and tells our function what was downloaded."""
    from tqdm import tqdm  # huggingface_hub needs it

    lock = threading.Lock()

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore] # tqdm has no types everywhere
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            self._counts = options.get("unit") == "B" and not str(options.get("desc", "")).startswith("Downloading b")
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                self.n += n or 0
                if progress is not None and self._counts and self.total:
                    progress("download, KB", int(self.n) // 1000, int(max(self.total, self.n)) // 1000)
            return None

    return Bar
