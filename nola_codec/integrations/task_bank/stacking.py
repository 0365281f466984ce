"""Stack the factors of several tasks, for kernels that serve many tasks in one batch (S-LoRA, Punica, vLLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_codec.errors import AdapterError, NolaError, mismatch
from nola_codec.integrations.task_bank.rebuilding import RebuiltTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StackedFactors:
    """The factors of one module for several tasks. Task t adds ``lora_B[t] @ lora_A[t]`` to the weight (out, in).

    Components above a task's own rank are zero. vLLM's kernels want (tasks, 1, r, in) and (tasks, 1, out, r), which are
    ``lora_A.unsqueeze(1)`` and ``lora_B.unsqueeze(1)``.

    Attributes:
        lora_A: (tasks, r, in); (tasks, r, in * kh * kw) for a convolution, (tasks, r, vocab) for an embedding.
        lora_B: (tasks, out, r), with the scaling of each task multiplied in; (tasks, dim, r) for an embedding, whose
            delta (vocab, dim) is the transpose of the product.
        ranks: The rank of each task, 0 for a task that does not change the module.
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    ranks: tuple[int, ...]


def stack_pairs(
    tasks: Sequence[RebuiltTask], weight: str, dtype: torch.dtype, device: torch.device, rank: int | None
) -> StackedFactors | None:
    """Stack the pairs of one weight.

    Args:
        tasks: The tasks.
        weight: The name of the weight.
        dtype: The dtype of the result.
        device: The device of the result.
        rank: The rank r of the result; None is the largest of the tasks.

    Returns:
        The factors; None if no task has a component for the weight and no rank is given.

    Raises:
        NolaError: ``rank-limit``: a task has a larger rank than the one that is given.
        AdapterError: ``overflow``; ``not-expressible``: the tasks have factors of different shapes, since one of them
            takes the module for an embedding.
    """
    import torch

    pairs = [task.pairs.get(weight) for task in tasks]
    ranks = tuple(0 if pair is None else pair.rank for pair in pairs)
    largest = max(ranks)
    if rank is not None and largest > rank:
        raise NolaError(mismatch("rank", f"at most {rank}", largest), code="rank-limit", where=weight)
    whole = largest if rank is None else rank
    first = next((pair for pair in pairs if pair is not None), None)
    if first is None or not whole:
        return None
    out, width = first.kind.product_shape
    if any(pair is not None and pair.kind.product_shape != (out, width) for pair in pairs):
        message = "the tasks have factors of different shapes for it, and cannot be stacked"
        raise AdapterError(message, code="not-expressible", where=weight)
    lora_A = torch.zeros((len(tasks), whole, width), dtype=dtype, device=device)
    lora_B = torch.zeros((len(tasks), out, whole), dtype=dtype, device=device)
    for number, pair in enumerate(pairs):
        if pair is not None and pair.rank:
            own_A, own_B = pair.factors(dtype, device)
            lora_A[number, : pair.rank] = own_A
            lora_B[number, :, : pair.rank] = own_B
    return StackedFactors(lora_A, lora_B, ranks)
