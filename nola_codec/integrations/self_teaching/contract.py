"""The contract of a family of models that an adapter can teach its own code with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nola_codec.adapters import AnySource
from nola_codec.progress import Progress

if TYPE_CHECKING:
    from nola_codec.training import TaskSettings, TaskTuner


@dataclass(frozen=True)
class TeachingRequest:
    """What the user gave.

    Attributes:
        base: The folder of the base model.
        source: The adapter.
        prompts: A file of prompts, or of texts for models that write none; None if the user has none.
        settings: The settings of the training; `against` is ``adapter``. Samples that are slow to draw are kept beside
            its checkpoint (`samples.keep_samples`).
        batch: The number of rows in a batch.
        scale: The scaling of an adapter that does not say it.
        seed: The seed of everything that is drawn.
        progress: Called as (stage, done, total), or None.
    """

    base: Path
    source: AnySource
    prompts: Path | None
    settings: TaskSettings
    batch: int
    scale: float | None = None
    seed: int = 0
    progress: Progress | None = None

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(stage, done, total)


class Family(Protocol):
    """A family of models, such as causal language models."""

    name: str
    """The name in the plural, for messages."""
    batch: int
    """Rows in a batch by default."""

    def recognizes(self, base: Path) -> bool:
        """Return True if the folder holds a model of this family. It reads configurations alone, and never raises."""

    def make_tuner(self, request: TeachingRequest) -> TaskTuner:
        """Load the model, draw its inputs, and return the tuner.

        Raises:
            EncodeError: ``base-model``, ``rows``, ``task-data``, ``task-form``: see `self_tuner`.
        """
