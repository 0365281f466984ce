"""`pull` and `from_hub`: one `.nola` file of a repository, by way of the Hub's own cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nola_codec.api.inspecting import FileFacts, inspect
from nola_codec.api.opened import NolaFile, load
from nola_codec.container.limits import Limits, resolve_limits
from nola_codec.errors import AdapterError, ChecksumMismatch, FormatError, HubError, NolaError
from nola_codec.integrations.hub.addresses import check_path, is_path, parse_address
from nola_codec.integrations.hub.connection import clear_errors, is_no_answer, is_offline, offline, open_api
from nola_codec.references.finding import References
from nola_codec.remote import is_url, shown_url
from nola_codec.rendering import list_first
from nola_codec.stores.files import atomic_file, require_free

_LISTED = 8
_ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Pulled:
    """A file of a repository that is here now.

    Attributes:
        path: The file: in the Hub's cache, or where it was copied to.
        repo: The repository.
        file: The path of the file in the repository.
        revision: The branch, tag or commit that was asked for.
        commit: The id of the commit that the file is from.
        bytes: The size.
        content_sha256: The hash in the file over the rest of it, hexadecimal. It was compared.
        from_cache: True if the Hub was not asked, or gave no answer, so that a newer file may be there.
        reference: For a file that holds the difference to an earlier version: what `inspect` says of that version;
            else None.
    """

    path: Path
    repo: str
    file: str
    revision: str
    commit: str
    bytes: int
    content_sha256: str
    from_cache: bool
    reference: Mapping[str, Any] | None = None


def pull(
    repo: str,
    filename: str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Pulled:
    """Get a `.nola` file of a repository on the Hugging Face Hub, and check it.

    The file comes through the cache of `huggingface_hub`; what is there is not downloaded again. Its content SHA-256 is
    compared, and the SHA-256 that the Hub keeps of it. If the Hub cannot be reached, a cached file of that revision
    serves.

    Args:
        repo: ``owner/name``; ``owner/name:file.nola`` names the file too. Addresses of the Hub's pages are taken as
            well.
        filename: The path of the file in the repository; not needed if there is one `.nola` file.
        out: Copy the file there: a path, or a directory that is there. None leaves it in the cache.
        overwrite: True replaces what is at `out`.
        revision: A branch, a tag or a commit; None is ``main``.
        token: A token; None for that of ``HF_TOKEN`` or of ``hf auth login``; False for none.
        endpoint: The address of the Hub; None for ``HF_ENDPOINT``, else the public one.
        cache_dir: Another directory for the Hub's cache.
        local_files_only: Ask nothing; use the cache. ``HF_HUB_OFFLINE=1`` does so for the whole process.

    Raises:
        NolaError: ``option``: a name that cannot be.
        OutputExists: `out` is there.
        HubError: ``not-found``, ``no-revision``, ``no-file``, ``which-file``, ``no-token``, ``bad-token``,
            ``forbidden``, ``gated``, ``refused``, ``busy``, ``offline``, ``no-connection``.
        AdapterError, FormatError, ChecksumMismatch: The file is no `.nola` file, or damaged.
        MissingPackage: ``needs-huggingface_hub``.
    """
    if is_url(out):
        raise NolaError(f"expected a local path to copy the file to, found {shown_url(str(out))}", code="option")
    api = open_api(token, endpoint)
    address = parse_address(repo)
    wanted = filename or address.file
    if filename is not None:
        check_path(filename)
        if address.file not in (None, filename):
            raise NolaError(f"two files are named: {address.file} and {filename}", code="option")
    if None not in (revision, address.revision) and revision != address.revision:
        raise NolaError(f"two revisions are named: {address.revision} and {revision}", code="option")
    target = None if out is None else Path(out)
    if target is not None and not target.is_dir():
        require_free(target, overwrite=overwrite)  # before anything is downloaded
    asked = revision or address.revision or "main"
    source = _Source(api, address.repo, asked, None if cache_dir is None else str(cache_dir))
    file, path, from_cache = source.get(wanted, offline_only=local_files_only or is_offline())
    facts = _check(path, f"{address.repo}:{file}")
    commit = _commit_of(path, file)
    if target is not None:
        target = target / Path(file).name if target.is_dir() else target
        require_free(target, overwrite=overwrite)
        with path.open("rb") as stream, atomic_file(target) as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        path = target
    return Pulled(
        path, address.repo, file, asked, commit, path.stat().st_size, facts.content_sha256, from_cache, facts.reference
    )


def from_hub(
    repo: str,
    filename: str | None = None,
    *,
    device: object = "cpu",
    verify: bool = True,
    rung: int | None = None,
    limits: Limits | None = None,
    references: References = None,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> NolaFile[Any]:
    """Open a `.nola` file of a repository on the Hugging Face Hub, as `load` opens one on disk.

    Args:
        repo: As for `pull`.
        filename: As for `pull`.
        device: As for `load`.
        verify: As for `load`; `pull` has compared the content SHA-256 already.
        rung: As for `load`.
        limits: As for `load`.
        references: As for `load`. None looks in the cache of the Hub, among the pulled files of this commit.
        revision: As for `pull`.
        token: As for `pull`.
        endpoint: As for `pull`.
        cache_dir: As for `pull`.
        local_files_only: As for `pull`.

    Raises:
        NolaError: What `pull` and `load` raise.
    """
    pulled = pull(repo, filename, revision=revision, token=token, endpoint=endpoint, cache_dir=cache_dir,
                  local_files_only=local_files_only)  # fmt: skip
    return load(pulled.path, device, verify=verify, rung=rung, limits=limits, references=references)


@dataclass(frozen=True)
class _Source:
    """A revision of a repository, on the Hub and in the cache."""

    api: Any
    repo: str
    revision: str
    cache_dir: str | None

    def get(self, wanted: str | None, *, offline_only: bool) -> tuple[str, Path, bool]:
        """Return the path of the file in the repository, its path here, and whether the Hub gave no answer."""
        if not offline_only:
            try:
                file = self._choose(wanted, self._listed())
                return file, self._download(file), False
            except HubError as error:
                if not is_no_answer(error):
                    raise
                try:
                    return self._cached(wanted)
                except HubError:
                    raise error from None
        return self._cached(wanted)

    def _listed(self) -> list[str]:
        with clear_errors(self.api, self.repo):
            info = self.api.model_info(self.repo, revision=self.revision)
            return [each.rfilename for each in info.siblings or ()]

    def _choose(self, wanted: str | None, names: Sequence[str]) -> str:
        """Return the one file that is meant.

        Raises:
            HubError: ``no-file`` or ``which-file``.
        """
        found = sorted(name for name in names if name.endswith(".nola") and is_path(name))
        if wanted is not None:
            if wanted in names:
                return wanted
            listed = list_first(found, _LISTED) or "none"
            raise HubError(f"no file {wanted!r}; its .nola files: {listed}", code="no-file", where=self.repo)
        if len(found) == 1:
            return found[0]
        if found:
            message = f"{len(found)} .nola files: {list_first(found, _LISTED)}; name one as {self.repo}:{found[0]}"
            raise HubError(message, code="which-file", where=self.repo)
        adapters = [name for name in names if name.rsplit("/", 1)[-1] in _ADAPTERS]
        message = "it holds no .nola file"
        if adapters:
            message += f"; {adapters[0]} is an adapter that `nola-codec encode` makes one of"
        raise HubError(message, code="no-file", where=self.repo)

    def _download(self, file: str) -> Path:
        with clear_errors(self.api, f"{self.repo}:{file}"):
            return Path(self.api.hf_hub_download(self.repo, file, revision=self.revision, cache_dir=self.cache_dir))

    def _cached(self, wanted: str | None) -> tuple[str, Path, bool]:
        """Return a file of the newest cached snapshot of the revision, without asking the Hub."""
        from huggingface_hub import snapshot_download

        with clear_errors(self.api, self.repo):
            try:
                folder = Path(snapshot_download(self.repo, revision=self.revision, cache_dir=self.cache_dir,
                                                local_files_only=True))  # fmt: skip
            except OSError as error:  # LocalEntryNotFoundError is one
                raise offline(self.repo) from error
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        try:
            file = self._choose(wanted, names)
        except HubError as error:
            if error.code == "no-file":
                raise offline(f"{self.repo}:{wanted}" if wanted else self.repo) from error
            raise
        return file, folder / file, True


def _commit_of(path: Path, file: str) -> str:
    """Return the commit in the path of a cached file: ``snapshots/<commit>/<file>``."""
    return path.parents[file.count("/")].name


def _check(path: Path, where: str) -> FileFacts:
    """Compare the digests of a cached file, and return what `inspect` says of it.

    Raises:
        AdapterError, FormatError, ChecksumMismatch: With the advice to download it again.
    """
    try:
        known = path.resolve().name  # in the cache, a large file has the SHA-256 that the Hub keeps as its name
        if re.fullmatch("[0-9a-f]{64}", known) and _sha256(path) != known:
            raise ChecksumMismatch("the bytes are not those that the Hub has", code="content-checksum")
        load(path, "numpy").close()  # compares the content SHA-256
        return inspect(path, limits=resolve_limits(None))
    except (FormatError, AdapterError) as error:
        blob = path.resolve()
        advice = type(error)(f"{error}; if the repository has the right file, delete {blob} and pull again",
                             code=error.code, where=where)  # fmt: skip
        raise advice from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
