"""`save`: whatever was parametrized, as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from nola_codec.adapters.files import atomic_file, require_free
from nola_codec.training.ensembles import state_of
from nola_codec.training.files import Dress, file_bytes
from nola_codec.training.peft_model import peft_dress


def save(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """Write what was trained as a `.nola` file, without loss: it decodes to the weights that evaluation uses.

    Args:
        model: Parametrized by `parametrize` or `parametrize_weights`.
        out: The file, written whole or not at all.
        overwrite: Replace a file that is there.
        measured: What the header shall say was measured, e.g. ``{"loss": 1.37}``.

    Returns:
        Its size in bytes.

    Raises:
        EncodeError: ``not-parametrized``, ``not-finite``.
        OutputExists: `out` is there and `overwrite` is false.
    """
    state = state_of(model)
    require_free(Path(out), overwrite=overwrite)
    dress = peft_dress(model, state.adapter) if state.dialect == "peft" else Dress(state.dialect)
    data = file_bytes(state.ensemble, dress, measured)
    with atomic_file(out) as stream:
        stream.write(data)
    return len(data)
