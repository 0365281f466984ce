"""Measure the moments of an adapter's layers over a calibration set; `nola_codec.fit.weighting` says what they mean.

Each row is run forward and backward once, with the adapter at half its strength. By the midpoint rule, the gradient
there times the delta is what the loss gains on the way from the base model to the adapted one. At full strength, where
training has stopped, that gradient is near zero and says nothing.
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
from nola_codec.progress import Progress
from nola_codec.remote import accepts_urls

if TYPE_CHECKING:
    import torch

require_torch("nola_codec.integrations.calibration")


STRENGTH = 0.5
"""The strength of the adapter while it is measured."""
SKETCH = 128
"""Rows in the sketch of the inputs of a layer."""
ROWS = 64
"""The most rows that are used by default."""
TOKENS = 512
"""The most tokens of a row that are used."""


@accepts_urls("base", "calibration")
def collect_moments(
    base: str | os.PathLike[str],
    modules: Sequence[LoraModule],
    calibration: str | os.PathLike[str],
    *,
    rows: int = ROWS,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Measure moments with a causal language model and text.

    Args:
        base: A Transformers model directory with its tokenizer. The model is loaded in float32, on the CPU.
        modules: The modules of the adapter. Its biases, DoRA magnitudes and modules saved whole are not used.
        calibration: A file of text of the adapter's task, but not the text that it will be tested on; see `read_rows`.
        rows: The most rows that are used.
        progress: Called as (stage, done, total).

    Returns:
        `Moments` by module name.

    Raises:
        EncodeError: ``calibration-model``: Transformers is missing, or cannot run the base model;
            ``calibration-module``: the model lacks a module; ``calibration``: the file is no calibration file;
            ``option``: `rows` is not positive.
    """
    if rows < 1:
        raise EncodeError(f"calibration rows: expected a positive number, found {rows}", code="option")
    texts = read_rows(calibration, rows)
    if progress is not None:
        progress("loading the base model", 0, 0)
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
    """Measure moments with any model and any loss, for images, audio and so on.

    Args:
        model: The base model, in evaluation mode, without the adapter. Its weights are not changed.
        modules: The modules of the adapter; their names are looked up in the model with and without its
            ``base_model_prefix``.
        batches: The batches, each passed to `forward`. Gradients are squared batch by batch, so batches of one row tell
            the most.
        forward: Runs the model and returns the loss of a batch, a scalar, summed over all scored items.
        progress: Called as (stage, done, total).

    Returns:
        `Moments` by module name. A layer that no batch reaches has zeros.

    Raises:
        EncodeError: ``calibration-module``: the model lacks a module, or it cannot be measured.

    Example:
        >>> moments = collect_from(vit, modules, batches, lambda m, b: m(**b).loss)  # doctest: +SKIP
        >>> nola_codec.encode("lora", "x.nola", size="20KB", fit="activations", weighting=moments)  # doctest: +SKIP
    """
    import torch

    from nola_codec.integrations.probes import Probe
    from nola_codec.training.attach import find_modules, freeze_weights

    layers = find_modules(model, modules)
    items = list(batches)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(freeze_weights(model))
        probes = [stack.enter_context(Probe(layers[m.name], m, STRENGTH, SKETCH)) for m in modules]
        for done, batch in enumerate(items):
            if progress is not None:
                progress("calibration", done, len(items))
            loss = forward(model, batch)
            if loss.requires_grad:  # it does not if no layer with an adapter took part
                loss.backward()  # type: ignore[no-untyped-call]
            for probe in probes:
                probe.take()
        if progress is not None:
            progress("calibration", len(items), len(items))
        return {probe.name: probe.moments() for probe in probes}


def _causal_loss(tokenizer: Any) -> Callable[[torch.nn.Module, Row], torch.Tensor]:
    """Return a function that computes the loss of a row: the sum over its scored tokens, in nats."""
    import torch

    def forward(model: torch.nn.Module, row: Row) -> torch.Tensor:
        ids, prompt = tokenize(tokenizer, row, TOKENS)
        device = next(model.parameters()).device
        tokens = torch.tensor(np.array(ids, np.int64)[None], device=device)
        first = max(prompt, 1)  # nothing predicts the first token
        logits = model(input_ids=tokens, use_cache=False).logits[0, first - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.float(), tokens[0, first:], reduction="sum")

    return forward
