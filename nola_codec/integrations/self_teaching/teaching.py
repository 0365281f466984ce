"""Choose the family of a base model, and let it make the tuner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nola_codec.adapters import AnySource
from nola_codec.errors import EncodeError, require_torch
from nola_codec.integrations.causal import require_model_folder
from nola_codec.integrations.self_teaching.contract import Family, TeachingRequest
from nola_codec.integrations.self_teaching.diffusion import DiffusionModels
from nola_codec.integrations.self_teaching.encoders import EncoderModels
from nola_codec.integrations.self_teaching.language import CausalModels
from nola_codec.integrations.task_text import require_trainable
from nola_codec.progress import Progress
from nola_codec.remote import accepts_urls

if TYPE_CHECKING:
    from nola_codec.training import TaskSettings, TaskTuner

require_torch("nola_codec.integrations.self_teaching")

FAMILIES: Sequence[Family] = (CausalModels(), EncoderModels(), DiffusionModels())


@accepts_urls("base", "source", "prompts")
def self_tuner(
    base: str | os.PathLike[str],
    source: AnySource,
    *,
    prompts: str | os.PathLike[str] | None = None,
    settings: TaskSettings | None = None,
    batch: int | None = None,
    scale: float | None = None,
    progress: Progress | None = None,
) -> TaskTuner:
    """Make the tuner with which `encode --fit task --data self` trains: the adapter teaches its own code.

    Args:
        base: The folder of the base model. The model is loaded in float32, on the CPU.
        source: The adapter.
        prompts: A file of prompts that the adapter answers; see `read_rows`. A dozen serve. None lets the adapter write
            text from nothing. An encoder model, which writes no text, takes the rows as its texts; with None they are
            random words. A denoising model takes none: all its inputs are drawn at random.
        settings: The settings of the training; None is `TaskSettings()`. Its `against` is always ``adapter``, and its
            `seed` also draws the samples.
        batch: The number of rows in a batch; None is that of the family: 8 for language models, 32 for encoder models,
            2 for denoising models.
        scale: The scaling of an adapter that does not say it, as in `encode`.
        progress: Called as (stage, done, total).

    Raises:
        EncodeError: ``base-model``: the base model cannot be loaded, or is of no known family; ``rows``:
            the prompts; ``task-data``: nothing to train on; ``task-form``: the adapter cannot be trained.
    """
    from nola_codec.training import TaskSettings

    folder = Path(base)
    chosen = replace(settings or TaskSettings(), against="adapter")
    family = find_family(folder)
    require_trainable(source, scale)
    request = TeachingRequest(
        folder, source, None if prompts is None else Path(prompts), chosen, batch or family.batch, scale, chosen.seed,
        progress,
    )  # fmt: skip
    return family.make_tuner(request)


def find_family(base: Path) -> Family:
    """Return the family of the model in a folder. Raises EncodeError ``base-model`` if there is none."""
    require_model_folder(base)
    for family in FAMILIES:
        if family.recognizes(base):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    message = (
        f"an adapter can teach its own code with {known}, and this folder holds none of them; for another model, give "
        "encode a TaskTuner with a loss of your own (docs/training.md)"
    )
    raise EncodeError(message, code="base-model", where=str(base))


def require_language_model(base: Path) -> None:
    """Refuse a model of another family, which cannot be trained on rows of text with their answers.

    Raises:
        EncodeError: ``base-model``.
    """
    family = next((family for family in FAMILIES if family.recognizes(base)), None)
    if family is None or isinstance(family, CausalModels):  # what is no model at all is refused when it is loaded
        return
    message = (
        f"this is one of the {family.name}, and rows of text train causal language models. Leave --data out: the "
        "adapter then teaches its own code, and an encoder model takes the texts of --prompts FILE"
    )
    raise EncodeError(message, code="base-model", where=str(base))
