"""What a push did, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nola_codec.rendering import render_size


@dataclass(frozen=True)
class PushedFile:
    """One file of a push.

    Attributes:
        path: The path in the repository.
        bytes: The size.
        sha256: The SHA-256 of the file, hexadecimal.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PushReport:
    """What a push did. `print(report)` shows it.

    Attributes:
        repo: The repository, ``owner/name``.
        url: The address of its page.
        revision: The branch.
        commit: The id of the commit; None for a dry run.
        is_new: True if the repository was made, or would be.
        is_private: True if only some may see it; None if that is not known.
        changed: False if the repository held all of it already, so that no commit was made; None for a dry run.
        files: The `.nola` files, and the README if a card was written.
        card: The text of the README; None without a card.
        dry_run: True if nothing was sent.
        notes: Sentences that the user should read.
    """

    repo: str
    url: str
    revision: str
    commit: str | None
    is_new: bool
    is_private: bool | None
    changed: bool | None
    files: tuple[PushedFile, ...]
    card: str | None
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        plain: Mapping[str, Any] = asdict(self)
        return dict(plain)

    def __str__(self) -> str:
        done = "would push" if self.dry_run else "pushed" if self.changed else "unchanged"
        kind = f"{'new, ' if self.is_new else ''}{'private' if self.is_private else 'public'}"
        shown = f"{self.url}{'' if self.revision == 'main' else f'/tree/{self.revision}'}"
        lines = [
            f"{done:<11}{shown} ({kind if self.is_private is not None or self.is_new else 'the Hub was not asked'})"
        ]
        lines += [f"{'':<11}{file.path}, {render_size(file.bytes)}" for file in self.files]
        if self.commit is not None:
            lines.append(f"{'commit':<11}{self.commit}")
        at = "" if self.revision == "main" else f" --revision {self.revision}"
        for file in self.files:
            if file.path.endswith(".nola"):
                lines.append(f"{'load':<11}nola-codec pull {self.repo}:{file.path}{at} -o {file.path.split('/')[-1]}")
        return "\n".join(lines)
