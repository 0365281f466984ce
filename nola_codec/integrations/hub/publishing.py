"""`push_to_hub`: `.nola` files and their model card to a repository, in one commit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.errors import HubError, NolaError
from nola_codec.integrations.hub.addresses import check_path, parse_address, path_in_repository
from nola_codec.integrations.hub.card import card_metadata, card_section, card_title
from nola_codec.integrations.hub.card_facts import CardFacts, CardOptions, read_card_facts
from nola_codec.integrations.hub.card_merging import LARGEST_README, README, merge_readme, new_readme
from nola_codec.integrations.hub.connection import (
    clear_errors,
    is_no_answer,
    is_offline,
    open_api,
    require_token,
)
from nola_codec.integrations.hub.escaping import plain
from nola_codec.integrations.hub.held_out import read_held_out
from nola_codec.integrations.hub.push_report import PushedFile, PushReport
from nola_codec.remote import accepts_urls

MAIN = "main"
_ATTEMPTS = 4
"""How often a commit is tried whose parent somebody else replaces in the same moment."""


@dataclass(frozen=True)
class _Head:
    """The repository as it is: its newest commit on the branch, and the README there. None where there is none."""

    commit: str | None = None
    readme: bytes | None = None
    is_private: bool | None = None
    is_known: bool = True


@accepts_urls("files", "metrics")
def push_to_hub(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    path_in_repo: str | None = None,
    message: str | None = None,
    card: bool = True,
    metrics: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    base_model: str | None = None,
    license: str | None = None,
    pipeline_tag: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> PushReport:
    """Upload `.nola` files and a model card to a repository on the Hugging Face Hub, in one commit.

    The repository and the branch are made if they are not there. A README that is there is kept: front matter that is
    missing is added, and a section for each file, which the next push of the file replaces. Each file is checked first:
    its content SHA-256 is compared.

    Args:
        files: The path or the URL of a `.nola` file, or several.
        repo: ``owner/name``.
        private: Make a new repository private. An existing one that is public is then refused.
        revision: The branch; None is ``main``.
        path_in_repo: Where the file goes: a path that ends in ``.nola``, or a folder. None keeps the file's name.
        message: The title of the commit.
        card: False leaves the README alone.
        metrics: Losses on held-out rows for the card: what ``nola-codec eval --json`` or ``nola-codec encode --json``
            printed, as a path or as the parsed object. The sizes of the files must be those that it names.
        base_model: The name of the base model on the Hub. None takes the one that the file names, if it is on the Hub.
        license: The Hub's name of the licence, such as ``apache-2.0``.
        pipeline_tag: The Hub's name of the task, such as ``text-generation``; None takes it from PEFT's ``task_type``.
        dry_run: Send nothing; the report says what would be sent. The repository is read, if it can be reached.
        token: A token; None for that of ``HF_TOKEN`` or of ``hf auth login``.
        endpoint: The address of the Hub; None for ``HF_ENDPOINT``, else the public one.

    Raises:
        NolaError: ``option``: a name or a path that cannot be.
        AdapterError: ``not-nola``: an adapter, which must be encoded first; ``not-found``; ``bad-metrics``.
        FormatError, ChecksumMismatch: A file is damaged.
        HubError: ``no-token``, ``bad-token``, ``forbidden``, ``gated``, ``not-found``, ``repository-public``,
            ``bad-card``, ``changed``, ``refused``, ``busy``, ``offline``, ``no-connection``.
        MissingPackage: ``needs-huggingface_hub``.
    """
    api = open_api(token, endpoint)
    address = parse_address(repo)
    if address.file is not None or (address.revision is not None and revision not in (None, address.revision)):
        raise NolaError(f"expected the name of a repository, such as owner/name, found {repo!r}", code="option")
    branch = revision or address.revision or MAIN
    check_path(branch)
    options = CardOptions(base_model=base_model, license=license, pipeline_tag=pipeline_tag)
    facts = _read_files(files, path_in_repo, metrics, options)
    if card and base_model is None and not is_offline():
        facts = tuple(_without_unknown_base(api, each) for each in facts)
    push = _Push(api, address.repo, branch, facts, card, private, message)
    return push.preview() if dry_run else push.send()


def _read_files(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    path_in_repo: str | None,
    metrics: str | os.PathLike[str] | Mapping[str, Any] | None,
    options: CardOptions,
) -> tuple[CardFacts, ...]:
    """Check every file, and read what the card says of it."""
    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    local = [Path(file) for file in given]
    if not local:
        raise NolaError("no file to push", code="option")
    paths = [path_in_repository(PurePosixPath(file.as_posix()), path_in_repo, alone=len(local) == 1) for file in local]
    if len(set(paths)) < len(paths):
        raise NolaError("two files have the same name; push them to two folders", code="option")
    if metrics is not None:
        sizes = {file.name: file.stat().st_size for file in local if file.is_file()}
        options = replace(options, held_out=read_held_out(metrics, sizes))
    return tuple(read_card_facts(file, path, options) for file, path in zip(local, paths, strict=True))


def _missing_base(facts: CardFacts, endpoint: str) -> str:
    """Return the note for a card that has no base model."""
    named = facts.file.base_model
    found = "names no base model" if not named else f"names the base model {plain(named)}, which is not on {endpoint}"
    return f"{facts.name} {found}, so the card has none; --base-model gives its name on the Hub"


def _missing_references(files: Sequence[CardFacts]) -> list[str]:
    """Return a note for each file that needs an earlier version which is not pushed with it."""
    decoded = {each.file.decoded_sha256 for each in files}
    return [
        f"{each.name} can only be decoded with an earlier version, {plain(str(reference['name'] or 'without a name'))} "
        f"(SHA-256 {reference['sha256'][:16]}...), which is not pushed here; push both in one command, or see that the "
        "repository has it"
        for each in files
        if (reference := each.file.reference) is not None and reference["sha256"] not in decoded
    ]


def _without_unknown_base(api: Any, facts: CardFacts) -> CardFacts:
    """Forget a base model that is not on the Hub: what an adapter names may be a directory on somebody's disk."""
    if facts.base_model is None:
        return facts
    try:
        with clear_errors(api, facts.base_model):
            api.model_info(facts.base_model)
    except HubError as error:
        if error.code == "not-found":
            return replace(facts, base_model=None)
        # Any other error is met again by the push itself, or concerns the base model alone, which is there then.
    return facts


@dataclass(frozen=True)
class _Push:
    """One push, with all that it needs."""

    api: Any
    repo: str
    branch: str
    facts: tuple[CardFacts, ...]
    has_card: bool
    private: bool
    message: str | None

    def preview(self) -> PushReport:
        """Return the report of what would be sent. Nothing is sent."""
        notes: list[str] = []
        try:
            head = _Head(is_known=False) if is_offline() else self._read_head()
        except HubError as error:
            if not is_no_answer(error):
                raise
            head = _Head(is_known=False)
        if not head.is_known:
            notes.append("the Hub was not asked, so this is the card of a new repository")
        self._require_privacy(head)
        readme, more = self._readme(head)
        return self._report(head, readme, None, None, (*notes, *more))

    def send(self) -> PushReport:
        """Make the repository and the branch, and commit.

        Raises:
            HubError: see `push_to_hub`.
        """
        if is_offline():
            raise HubError("a push needs the network, and HF_HUB_OFFLINE or NOLA_CODEC_OFFLINE forbids it",
                           code="offline", where=self.repo)  # fmt: skip
        require_token(self.api)
        head = self._read_head()
        self._require_privacy(head)
        self._readme(head)  # a README that cannot be extended is refused before a repository or a branch is made
        if head.is_private is None:
            with clear_errors(self.api, self.repo):
                self.api.create_repo(self.repo, private=self.private, exist_ok=True)
        if head.commit is None and self.branch != MAIN:
            with clear_errors(self.api, self.repo):
                self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
        is_new = head.is_private is None
        for attempt in range(_ATTEMPTS):
            now = self._read_head()
            self._require_privacy(now)
            readme, notes = self._readme(now)
            try:
                commit = self._commit(now, readme)
            except HubError as error:
                if error.code == "changed" and attempt + 1 < _ATTEMPTS:
                    continue
                raise
            return self._report(now, readme, commit, is_new, notes)
        raise AssertionError("the last attempt returns or raises")

    def _read_head(self) -> _Head:
        """Ask for the repository, its branch and its README; what is not there is None."""
        from huggingface_hub import errors

        with clear_errors(self.api, self.repo):
            try:
                is_private = bool(self.api.model_info(self.repo).private)
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return _Head()
            try:
                info = self.api.model_info(self.repo, revision=self.branch)
            except errors.RevisionNotFoundError:
                return _Head(is_private=is_private)
            names = [each.rfilename for each in info.siblings or ()]
            readme = self._read_readme(info.sha) if self.has_card and README in names else None
            return _Head(info.sha, readme, is_private)

    def _read_readme(self, commit: str) -> bytes:
        (found,) = self.api.get_paths_info(self.repo, [README], revision=commit)
        if found.size > LARGEST_README:
            message = f"{found.size} bytes, too large to extend; push with --no-card"
            raise HubError(message, code="bad-card", where=README)
        return Path(self.api.hf_hub_download(self.repo, README, revision=commit)).read_bytes()

    def _require_privacy(self, head: _Head) -> None:
        """Refuse to publish what the user wants to keep private."""
        if self.private and head.is_private is False:
            message = "the repository is there and is public, so nothing was sent; make it private in its settings"
            raise HubError(f"{message}, or push without --private", code="repository-public", where=self.repo)

    def _readme(self, head: _Head) -> tuple[str | None, tuple[str, ...]]:
        """Return the new README and notes; None without a card."""
        if not self.has_card:
            return None, ()
        revision = None if self.branch == MAIN else self.branch
        sections = {each.path: card_section(each, self.repo, revision) for each in self.facts}
        metadata = card_metadata(self.facts)
        notes = [_missing_base(each, self.api.endpoint) for each in self.facts if each.base_model is None]
        if head.readme is None:
            return new_readme(metadata, card_title(self.facts, self.repo), sections), tuple(notes)
        text, more = merge_readme(head.readme, metadata, sections)
        return text, (*notes, *more)

    def _commit(self, head: _Head, readme: str | None) -> str:
        """Commit all files at once on top of the commit that was read, and return the id of the commit."""
        from huggingface_hub import CommitOperationAdd

        names = ", ".join(each.name for each in self.facts)
        with clear_errors(self.api, self.repo):
            operations = [CommitOperationAdd(each.path, str(each.local)) for each in self.facts]
            for operation, each in zip(operations, self.facts, strict=True):
                if operation.upload_info.sha256.hex() != each.file_sha256:  # the card would tell of another file
                    message = "the file changed while it was pushed, and nothing was sent; push it again"
                    raise HubError(message, code="changed", where=str(each.local))
            if readme is not None:
                operations.append(CommitOperationAdd(README, readme.encode("utf-8")))
            made = self.api.create_commit(
                self.repo, operations, commit_message=self.message or f"Upload {names} with nola-codec",
                revision=self.branch, parent_commit=head.commit,
            )  # fmt: skip
        commit: str = made.oid
        return commit

    def _report(
        self, head: _Head, readme: str | None, commit: str | None, is_new: bool | None, notes: tuple[str, ...]
    ) -> PushReport:
        files = [PushedFile(each.path, each.file.bytes, each.file_sha256) for each in self.facts]
        if readme is not None:
            data = readme.encode("utf-8")
            files.append(PushedFile(README, len(data), hashlib.sha256(data).hexdigest()))
        missing = head.is_known and head.is_private is None
        return PushReport(
            repo=self.repo, url=f"{self.api.endpoint}/{self.repo}", revision=self.branch, commit=commit,
            is_new=missing if is_new is None else is_new,
            is_private=self.private if missing else head.is_private,
            changed=None if commit is None else commit != head.commit, files=tuple(files), card=readme,
            dry_run=commit is None, notes=(*_missing_references(self.facts), *notes),
        )  # fmt: skip
