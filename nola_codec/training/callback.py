"""A callback for the `Trainer` of Transformers that writes the `.nola` file beside every checkpoint.

    from nola_codec.training import NolaCallback, parametrize

    parametrize(model, num_basis=128, bits=4)
    Trainer(model, ..., callbacks=[NolaCallback("task.nola")]).train()

Checkpoints hold the coefficients, so `resume_from_checkpoint` resumes from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nola_codec.errors import require_package
from nola_codec.training.saving import save

require_package("NolaCallback", "transformers", "peft")

from transformers import TrainerCallback  # noqa: E402 - the line above says what to install if this cannot be imported

NAME = "task.nola"
"""The name of the file in the directory of a checkpoint."""


class NolaCallback(TrainerCallback):
    """Writes what was trained as a `.nola` file: into every checkpoint, and at the end."""

    def __init__(self, out: str | os.PathLike[str] | None = None) -> None:
        """Make the callback.

        Args:
            out: The file that is written at the end of training; None is ``task.nola`` in the output directory.
        """
        self._out = out

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the file beside the checkpoint that was just written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save(model, folder / NAME, overwrite=True, measured=_last_loss(state))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the file at the end of training."""
        if state.is_world_process_zero:
            out = Path(self._out) if self._out is not None else Path(args.output_dir) / NAME
            out.parent.mkdir(parents=True, exist_ok=True)
            save(model, out, overwrite=True, measured=_last_loss(state))


def _last_loss(state: Any) -> dict[str, float]:
    """Return the loss of the last evaluation as figures for a header; empty if there was no evaluation."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return {"loss": float(losses[-1])} if losses else {}
