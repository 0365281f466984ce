"""Moments of an adapter's layers over a calibration set (`nola_codec.fit.weighting` says of what, and what for).

Each row is run forward and back once, with the adapter at half its strength: by the midpoint rule, the gradient there
times the delta is what the loss gains on the way from the base model to the adapted one. At full strength, where
training has stopped, that gradient says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.errors import EncodeError, require_torch
from nola_codec.fit.weighting import Moments
from nola_codec.integrations.calibration_data import Row, read_rows, tokenize
from nola_codec.integrations.causal import load_causal
from nola_codec.model.adapter import LoraModule

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]

STRENGTH = 0.5
"""Of the adapter while it is measured."""
SKETCH = 128
"""Rows of the sketch of a layer's inputs."""
ROWS = 64
TOKENS = 512
"""Tokens of a row that are used."""


def collect_moments(
    base: str | os.PathLike[str],
    modules: Sequence[LoraModule],
    calibration: str | os.PathLike[str],
    *,
    rows: int = ROWS,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Moments from a causal language model and text.

    Args:
        base: A Transformers model directory with its tokenizer; loaded in float32, on the CPU.
        modules: Of the adapter. Its biases, DoRA magnitudes and modules saved whole are left out of the model.
        calibration: See `read_rows`; text of the adapter's task, and none that it is tested on.
        rows: Rows used at most.
        progress: Called as (stage, done, total).

    Returns:
        `Moments` by module name.

    Raises:
        EncodeError: Transformers is missing, or the base model is not one it can run (``calibration-model``); a module
            that the model does not have (``calibration-module``); a calibration file that is none (``calibration``).
    """
    if rows < 1:
        raise EncodeError(f"calibration rows: expected a positive number, found {rows}", code="option")
    texts = read_rows(calibration, rows)
    model, tokenizer = load_causal(Path(base))
    return collect_from(model, modules, texts, _causal_loss(tokenizer), progress=progress)


def collect_from(
    model: torch.nn.Module,
    modules: Sequence[LoraModule],
    batches: Iterable[Any],
    forward: Callable[[torch.nn.Module, Any], torch.Tensor],
    *,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Moments from any model: images, audio, losses of one's own.

    Args:
        model: The base model, in evaluation mode, without the adapter. Its weights are not changed.
        modules: Of the adapter; names are looked up among the model's, with and without ``base_model_prefix``.
        batches: What `forward` takes. Gradients are squared batch by batch: batches of one row say most.
        forward: Runs the model and returns the loss of a batch, summed over what is scored, a scalar.
        progress: Called as (stage, done, total).

    Returns:
        `Moments` by module name. A layer that no batch reaches has zeros.

    Raises:
        EncodeError: a module that the model does not have or cannot be measured (``calibration-module``).

    Example:
        >>> moments = collect_from(vit, modules, batches, lambda m, b: m(**b).loss)  # doctest: +SKIP
        >>> nola_codec.encode("lora", "x.nola", size="20KB", fit="activations", weighting=moments)  # doctest: +SKIP
    """
    require_torch("calibration")
    import torch

    from nola_codec.integrations.probes import Probe
    from nola_codec.training.attach import find_modules, frozen

    places = find_modules(model, modules)
    items = list(batches)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(frozen(model))
        probes = [stack.enter_context(Probe(places[m.name], m, STRENGTH, SKETCH)) for m in modules]
        for done, batch in enumerate(items):
            if progress is not None:
                progress("calibration", done, len(items))
            loss = forward(model, batch)
            if loss.requires_grad:  # no layer with an adapter took part otherwise
                loss.backward()  # type: ignore[no-untyped-call]
            for probe in probes:
                probe.take()
        if progress is not None:
            progress("calibration", len(items), len(items))
        return {probe.name: probe.moments() for probe in probes}


def _causal_loss(tokenizer: Any) -> Callable[[torch.nn.Module, Row], torch.Tensor]:
    """Nats of a row's scored tokens, summed."""
    import torch

    def forward(model: torch.nn.Module, row: Row) -> torch.Tensor:
        ids, prompt = tokenize(tokenizer, row, TOKENS)
        device = next(model.parameters()).device
        tokens = torch.tensor(np.array(ids, np.int64)[None], device=device)
        first = max(prompt, 1)  # the first token is predicted from nothing
        logits = model(input_ids=tokens, use_cache=False).logits[0, first - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.float(), tokens[0, first:], reduction="sum")

    return forward
