"""What is measured: adapters, `.nola` files and whole models; and how each is put into a model in memory.

PEFT applies every adapter, as it does for a user who loads the directory that the tool saved, or that
`nola-codec decode` writes. Adapters of other tools are converted to PEFT's dialect first, which keeps their deltas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nola_codec import adapters
from nola_codec.adapters.base_config import read_base_config
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.sources import CONFIG_NAME
from nola_codec.api.decoding import decode, read_adapter
from nola_codec.api.inspecting import inspect
from nola_codec.container.limits import Limits, resolve_limits
from nola_codec.container.prelude import MAGIC
from nola_codec.errors import AdapterError, NolaError
from nola_codec.integrations.evaluation.live_base import LiveBase
from nola_codec.references.finding import References
from nola_codec.rendering import render_scalings
from nola_codec.stores.files import read_json

if TYPE_CHECKING:
    import torch

Kind = Literal["base", "adapter", "file", "change", "model"]
"""The base model; an adapter; a `.nola` file with one; one with the change of a whole model; a whole model."""
_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Subject:
    """One thing whose loss is measured.

    Attributes:
        name: The short name for the report.
        kind: What it is.
        place: The path that the user gave; of an adapter, the directory that PEFT can load.
        bytes: The size of its weights on disk.
        content_sha256: The content SHA-256 that a `.nola` file states, in hexadecimal; empty for all others.
        notes: Sentences that tell how it was read.
        references: Where the earlier version is that a change of a whole model needs, if it needs one.
        limits: What the `.nola` file of a change may declare.
    """

    name: str
    kind: Kind
    place: Path
    bytes: int = 0
    content_sha256: str = ""
    notes: tuple[str, ...] = ()
    references: References = None
    limits: Limits | None = None

    @property
    def is_nola(self) -> bool:
        """True for a `.nola` file."""
        return self.kind in ("file", "change")

    @contextmanager
    def put_into(self, base: LiveBase, folder: Path) -> Iterator[torch.nn.Module]:
        """Give the base model with this subject in it.

        Args:
            base: The base model.
            folder: An empty folder for a whole model, which a change is decoded to. Loading it rounds as a merge does.

        Raises:
            AdapterError, EncodeError: Those of `LiveBase.with_adapter` and `LiveBase.with_model`, and of `decode`.
        """
        if self.kind == "base":
            yield base.model
        elif self.kind in ("adapter", "file"):
            try:
                with base.with_adapter(self.place) as model:
                    yield model
            except AdapterError as error:
                raise _under_name(error, self) from error
        elif self.kind == "change":
            merged = decode(
                self.place, folder / "merged", base=base.path, references=self.references, limits=self.limits
            )
            with base.with_model(Path(merged)) as model:
                yield model
        else:
            with base.with_model(self.place) as model:
                yield model


def open_subjects(
    sources: Sequence[str | os.PathLike[str]],
    base: Path,
    folder: Path,
    scale: float | None,
    references: References = None,
    limits: Limits | None = None,
) -> list[Subject]:
    """Read all sources, and write those that are adapters as PEFT directories.

    Args:
        sources: The paths that the user gave.
        base: The directory of the base model; conversions of some dialects need its configuration.
        folder: An empty folder for PEFT directories.
        scale: The scaling of each adapter that does not say it.
        references: Where the earlier versions are that files need which were encoded against one.
        limits: What a `.nola` file may declare; as in `load`.

    Raises:
        AdapterError: A source is no adapter, model or `.nola` file; or it cannot be converted to PEFT's dialect.
        FormatError, ChecksumMismatch: A `.nola` file is damaged.
    """
    paths = [Path(source) for source in sources]
    names = _short_names(paths)
    subjects = []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        subjects.append(_open(path, name, base, folder / f"{number}", scale, references, limits))
    return subjects


def _open(
    path: Path,
    name: str,
    base: Path,
    out: Path,
    scale: float | None,
    references: References,
    limits: Limits | None,
) -> Subject:
    if not path.exists():
        raise AdapterError("no such file or directory", code="not-found", where=str(path))
    if _is_nola(path):
        limits = resolve_limits(limits)
        facts = inspect(path, limits=limits)
        if facts.dialect == "delta":
            return Subject(
                name, "change", path, path.stat().st_size, facts.content_sha256, references=references, limits=limits
            )
        notes = _scale_notes(name, facts.scale_origin, facts.scalings)
        decode(path, out, base=base, format="peft", references=references, limits=limits)
        return Subject(name, "file", out, path.stat().st_size, facts.content_sha256, notes)
    if path.is_dir() and (path / "config.json").is_file() and not (path / CONFIG_NAME).is_file():
        files = [file for file in path.iterdir() if file.suffix in _MODEL_SUFFIXES]
        return Subject(name, "model", path, sum(file.stat().st_size for file in files))
    own = _peft_weights(path)
    if own is not None:
        return Subject(name, "adapter", path, own.stat().st_size)
    adapter = read_adapter(path, scale=scale)
    notes = tuple(f"{name}: {note}" for note in adapter.notes)
    notes += _scale_notes(name, adapter.scale_origin, sorted({m.scaling for m in adapter.modules}))
    try:
        adapters.write(convert(adapter, "peft", read_base_config(base)), out)
    except AdapterError as error:
        message = f"it cannot be brought into PEFT's dialect, which puts it into the model: {error}"
        raise AdapterError(message, code=error.code, where=str(path)) from error
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.iterdir() if f.is_file())
    return Subject(name, "adapter", out, size, notes=notes)


def _is_nola(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC[:4]


def _peft_weights(path: Path) -> Path | None:
    """Return the file of weights of a directory that PEFT itself can load; None for any other path."""
    config = path / CONFIG_NAME
    if not config.is_file() or "peft_type" not in read_json(config):
        return None
    return next((path / name for name in _PEFT_WEIGHTS if (path / name).is_file()), None)


def _scale_notes(name: str, origin: str, scalings: Sequence[float]) -> tuple[str, ...]:
    """Return a note if the scaling of an adapter is a guess, since the loss is then one too."""
    return (f"{name}: scaling {render_scalings(scalings, origin)}",) if origin == "assumed" and scalings else ()


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last name of each path; where two are alike, their whole paths."""
    last = [path.resolve().name for path in paths]
    return [name if last.count(name) == 1 else str(path) for name, path in zip(last, paths, strict=True)]


def _under_name(error: NolaError, subject: Subject) -> NolaError:
    """Return an error that names the subject and not a temporary directory."""
    message = str(error).removeprefix(f"{error.where}: ")
    return type(error)(message, code=error.code, where=subject.name)
