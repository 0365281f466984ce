"""Names of repositories on the Hub, and of files in them, checked before anything is asked or written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from nola_codec.errors import NolaError

_LONGEST_PATH = 500
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[\w](?:[\w.-]{0,94}\w)?/[\w](?:[\w.-]{0,94}\w)?", re.ASCII)
_MODEL = re.compile(r"(?!.*(--|\.\.))(?:[\w](?:[\w.-]{0,94}\w)?/)?[\w](?:[\w.-]{0,94}\w)?", re.ASCII)
_ADDRESS = re.compile(
    r"(?:hf://(?:models/)?|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[^/:@\s]+/[^/:@\s]+)(?:@(?P<revision>[^/:\s]+))?(?:[:/](?P<file>.+))?"
)
_OTHER_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
_PAGE = re.compile(r"(?:blob|resolve|tree)/(?P<revision>[^/]+)(?:/(?P<file>.+))?")


@dataclass(frozen=True)
class RepositoryAddress:
    """A repository of models, with the revision and the file if the address names them.

    Attributes:
        repo: ``owner/name``.
        revision: A branch, a tag or a commit; None if none is named.
        file: The path of a file in the repository; None if none is named.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


def parse_address(text: str) -> RepositoryAddress:
    """Read an address of a repository: ``owner/name``, ``owner/name:file``, ``hf://...``, or that of its page.

    Raises:
        NolaError: ``option``: it is no address of a repository of models.
    """
    match = _ADDRESS.fullmatch(text.strip().rstrip("/"))
    if match is None or not is_repository(match["repo"]) or match["repo"].split("/")[0] in _OTHER_KINDS:
        message = f"expected the name of a repository on the Hub, such as owner/name, found {text!r}"
        raise NolaError(message, code="option")
    revision, file = match["revision"], match["file"]
    page = _PAGE.fullmatch(file or "") if "://" in text or text.startswith(("huggingface.co/", "hf.co/")) else None
    if page is not None:
        revision, file = page["revision"], page["file"]
    if file is not None:
        check_path(file)
    return RepositoryAddress(match["repo"], revision, file)


def is_repository(name: str) -> bool:
    """Return True for ``owner/name`` as the Hub allows it."""
    return _REPOSITORY.fullmatch(name) is not None and not name.endswith(".git")


def is_model_name(name: object) -> bool:
    """Return True if a base model's name can be that of a repository on the Hub, not a path on somebody's disk."""
    return isinstance(name, str) and _MODEL.fullmatch(name) is not None and not name.endswith(".git")


def is_path(path: str) -> bool:
    """Return True for the path of a file in a repository that is relative, without ``..``, and the same anywhere."""
    return (
        len(path) <= _LONGEST_PATH
        and path.isprintable()
        and not any(char in '\\:*?"<>|`' for char in path)
        and all(part not in ("", ".", "..") and part == part.strip() and part[0] != "-" for part in path.split("/"))
    )


def check_path(path: str) -> None:
    """Check the path of a file in a repository, as `is_path` does.

    Raises:
        NolaError: ``option``.
    """
    if not is_path(path):
        raise NolaError(f"expected the path of a file in a repository, found {path[:80]!r}", code="option")


def path_in_repository(local: PurePosixPath, wanted: str | None, *, alone: bool) -> str:
    """Return the path that a file gets in the repository.

    Args:
        local: The path of the file here; its name is kept unless the user gave another one.
        wanted: A name that ends in ``.nola``, for a file that is alone; or a folder.
        alone: True if no other file is pushed with it.

    Raises:
        NolaError: ``option``.
    """
    path = local.name if wanted is None else wanted.strip("/")
    if wanted is not None and (not path.endswith(".nola") or wanted.endswith("/")):
        path = f"{path}/{local.name}" if path else local.name
    elif wanted is not None and not alone:
        raise NolaError(f"{wanted} names one file, but several are pushed: name a folder", code="option")
    if not path.endswith(".nola"):
        path += ".nola"
    check_path(path)
    return path
