"""What the stand-in of the Hub stores: accounts, repositories, their commits and the objects of large files."""

from __future__ import annotations

import codecs
import hashlib
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StoredFile:
    """The content of one file at one commit. `is_lfs` says whether git holds it, or a pointer to it."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The text that git holds in place of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "\n".join([*lines, ""]).encode()

    @property
    def blob_id(self) -> str:
        """The SHA-1 by which git knows the file, or the pointer of a large one."""
        data = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def sibling(self, path: str, *, with_blobs: bool) -> dict[str, object]:
        """The file as the description of a repository shows it; only with blobs there are size and digests."""
        facts: dict[str, object] = {"rfilename": path}
        if with_blobs:
            facts |= {"size": len(self.content), "blobId": self.blob_id}
            if self.is_lfs:
                facts["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return facts

    def entry(self, path: str) -> dict[str, object]:
        """The file as listings show it."""
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    parent: str | None
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A repository of models, its branches, and who may see it."""

    name: str
    is_private: bool = False
    is_gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch or a commit's id names."""
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, branch: str, title: str, files: dict[str, StoredFile]) -> Commit:
        """Replace all files of a branch by these, as one commit."""
        parent = self.branches.get(branch)
        described = [title, parent or "", *(f"{path} {file.blob_id}" for path, file in sorted(files.items()))]
        oid = hashlib.sha1("\n".join([self.name, str(len(self.commits)), *described]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, parent, dict(files))
        self.branches[branch] = oid
        return self.commits[oid]


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and whether it may write."""

    user: str
    can_write: bool = True


class Storage:
    """Everything that the server knows. A lock guards it, since each request has a thread of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, name: str, *, is_private: bool = False) -> Repository:
        """Make a repository as the Hub does: with one commit that holds `.gitattributes`."""
        repository = self.repositories[name] = Repository(name, is_private)
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
        repository.commit("main", "initial commit", {".gitattributes": StoredFile(attributes, False)})
        return repository

    def put(self, name: str, files: dict[str, bytes], *, branch: str = "main", title: str = "Upload") -> Commit:
        """Add files to a repository, which is made if it is not there; for the set-up of a test."""
        with self.lock:
            repository = self.repositories.get(name) or self.create(name)
            head = repository.find(branch)
            now = dict(head.files) if head else {}
            now.update((path, StoredFile(data, wants_lfs(path, len(data), data[:512]))) for path, data in files.items())
            return repository.commit(branch, title, now)


def wants_lfs(path: str, size: int, sample: bytes) -> bool:
    """The Hub's rule: what is large, matches `.gitattributes` or is not text is no file for git itself."""
    if size == 0:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # which may end within a character
        is_text = b"\0" not in sample
    except UnicodeDecodeError:
        is_text = False
    return size > 10 << 20 or path.endswith((".safetensors", ".bin")) or not is_text
