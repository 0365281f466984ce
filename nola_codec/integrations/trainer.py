"""NOLA in a Transformers `Trainer`: a callback that writes the `.nola` file beside every checkpoint.

    parametrize(model, num_basis=128, bits=4)
    Trainer(model, ..., callbacks=[NolaCallback("task.nola")]).train()

Checkpoints hold the coefficients, and `resume_from_checkpoint` goes on with them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nola_codec.training.saving import save

NAME = "task.nola"
"""Of the file in a checkpoint's directory."""


class NolaCallback(TrainerCallback):
    """Writes what was trained: into every checkpoint, and at the end."""

    def __init__(self, out: str | os.PathLike[str] | None = None) -> None:
        """Say where the file goes at the end; None is ``task.nola`` in the output directory."""
        self._out = out

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Beside the checkpoint that was just written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save(model, folder / NAME, overwrite=True, measured=_measured(state))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Where the file was asked for."""
        if state.is_world_process_zero:
            out = Path(self._out) if self._out is not None else Path(args.output_dir) / NAME
            out.parent.mkdir(parents=True, exist_ok=True)
            save(model, out, overwrite=True, measured=_measured(state))


def _measured(state: Any) -> dict[str, float]:
    """The last evaluation's loss, where there was one."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return {"loss": float(losses[-1])} if losses else {}
