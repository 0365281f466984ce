"""What a model card says about a file: read from the file itself, and from what the user gives. Nothing is guessed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nola_codec.api.inspecting import FileFacts, inspect
from nola_codec.api.opened import load
from nola_codec.container.limits import resolve_limits
from nola_codec.errors import AdapterError, NolaError
from nola_codec.integrations.hub.addresses import is_model_name
from nola_codec.integrations.hub.held_out import HeldOut

DIFFUSION = ("kohya", "diffusers", "diffusers-old")
"""The dialects that Diffusers loads, as they are or converted. That of cloneofsimo numbers its modules."""
WHOLE_CHANGES = ("delta", "parameters")
"""The dialects of files that hold no adapter."""

_AUTO_CLASSES = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", None),
    "TOKEN_CLS": ("AutoModelForTokenClassification", "token-classification"),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", "question-answering"),
    "FEATURE_EXTRACTION": ("AutoModel", "feature-extraction"),
}
"""For PEFT's `task_type`: the class of Transformers that loads the base model, and the Hub's name of the task."""
_REVISION = re.compile(r"[\w./-]{1,100}", re.ASCII)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


@dataclass(frozen=True)
class CardOptions:
    """What the user says for the card, because no file says it.

    Attributes:
        base_model: The base model's name on the Hub, in place of the one that the file names.
        license: The Hub's name of a licence, such as ``apache-2.0``.
        pipeline_tag: The Hub's name of a task, such as ``text-generation``.
        held_out: Losses on held-out rows by the name of the file.
    """

    base_model: str | None = None
    license: str | None = None
    pipeline_tag: str | None = None
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base_model is not None and not is_model_name(self.base_model):
            message = f"expected the name of a base model on the Hub, such as owner/name, found {self.base_model!r}"
            raise NolaError(message, code="option")
        for name, value in (("license", self.license), ("pipeline_tag", self.pipeline_tag)):
            if value is not None and not _IDENTIFIER.fullmatch(value):
                message = f"{name}: expected the Hub's name, such as {_EXAMPLES[name]}, found {value!r}"
                raise NolaError(message, code="option")


_EXAMPLES = {"license": "apache-2.0", "pipeline_tag": "text-generation"}


@dataclass(frozen=True)
class CardFacts:
    """What the card of one file says.

    Attributes:
        path: The path in the repository.
        local: The path here.
        file: What `inspect` says of the file.
        file_sha256: The SHA-256 of the file, which `sha256sum` prints and the Hub shows.
        base_model: The name of the base model on the Hub; None if it is not known.
        auto_class: The class of Transformers that loads the base model; None if it is not known.
        pipeline_tag: The Hub's name of the task; None if it is not known.
        license: The Hub's name of the licence; None if it is not known.
        held_out: Losses on held-out rows; None if they are not known.
    """

    path: str
    local: Path
    file: FileFacts
    file_sha256: str
    base_model: str | None
    auto_class: str | None
    pipeline_tag: str | None
    license: str | None
    held_out: HeldOut | None

    @property
    def name(self) -> str:
        """The name of the file without its folders."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_diffusion(self) -> bool:
        """True for an adapter of an image or video model that Diffusers loads."""
        return self.file.dialect in DIFFUSION

    @property
    def is_adapter(self) -> bool:
        """True if the file holds an adapter, not the change of a whole model."""
        return self.file.dialect not in WHOLE_CHANGES

    @property
    def base_revision(self) -> str | None:
        """The revision of the base model, if the file names one that can be a revision."""
        revision = self.file.base_revision
        return revision if isinstance(revision, str) and _REVISION.fullmatch(revision) else None


def read_card_facts(local: Path, path: str, options: CardOptions) -> CardFacts:
    """Check a file, and read what its card says. The file's content SHA-256 is compared.

    Raises:
        AdapterError: ``not-nola`` with the command that makes a `.nola` file; ``not-found``, ``unreadable``.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    _check(local)
    facts = inspect(local, limits=resolve_limits(None))
    config = facts.config or {}
    auto_class, task = _AUTO_CLASSES.get(str(config.get("task_type")), (None, None))
    named = facts.base_model
    with local.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _hash(stream)
    return CardFacts(
        path=path,
        local=local,
        file=facts,
        file_sha256=digest,
        base_model=options.base_model or (named if is_model_name(named) else None),
        auto_class=auto_class if facts.dialect == "peft" else None,
        pipeline_tag=options.pipeline_tag or (task if facts.dialect == "peft" else None),
        license=options.license,
        held_out=options.held_out.get(local.name),
    )


def _hash(stream: Any) -> str:
    """Return the SHA-256 of a stream, for Python 3.10."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _check(local: Path) -> None:
    """Compare the content SHA-256; an adapter is refused with the command that makes a `.nola` file of it."""
    makes = f"make one first: `nola-codec encode {local} -o {local.stem or 'task'}.nola`"
    if local.is_dir():
        raise AdapterError(f"a directory, not a .nola file; {makes}", code="not-nola", where=str(local))
    try:
        load(local, "numpy").close()
    except AdapterError as error:
        if error.code != "not-nola":
            raise
        raise AdapterError(f"an adapter, not a .nola file; {makes}", code="not-nola", where=str(local)) from error
