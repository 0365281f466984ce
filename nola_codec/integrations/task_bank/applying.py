"""Apply a rebuilt task to a model, and restore the bits of the base model; or hand its factors to a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.errors import AdapterError
from nola_codec.integrations.task_bank.branches import Branch, has_branch, make_branch, run_beside
from nola_codec.integrations.task_bank.pairs import WeightPair, float_factors
from nola_codec.integrations.task_bank.rebuilding import RebuiltTask
from nola_codec.merger.arithmetic.sum import merge_factors
from nola_codec.merger.memory_change import MemoryChange, add_deltas
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.model.records import CodedKind
from nola_codec.parallel import parallel_each

if TYPE_CHECKING:
    import torch

ApplyHook = Callable[[str | None, "Mapping[str, tuple[torch.Tensor, torch.Tensor]]"], None]
"""``apply(name, factors)`` of a server: ``factors`` has lora_A (r, in) and lora_B (out, r) of each module, the scaling
multiplied into lora_B. On leaving, the name is None and ``factors`` is empty."""


class Applier(Protocol):
    """Applies tasks, one at a time.

    Attributes:
        applied: As in `BankUsage`.
        kept: As in `BankUsage`.
    """

    @property
    def applied(self) -> int: ...
    @property
    def kept(self) -> int: ...

    def check(self, kinds: Mapping[str, CodedKind], rest: MemoryChange | None) -> None:
        """Refuse a task that cannot be applied.

        Args:
            kinds: The kind of each pair of factors, by weight.
            rest: What the task has besides.

        Raises:
            AdapterError: ``tied-weights``, ``not-expressible``.
        """

    def apply(self, name: str | None, task: RebuiltTask) -> None:
        """Apply a task in place of the one before; an empty one restores the base model.

        If this fails, the task before is applied, as it was.

        Raises:
            AdapterError: ``overflow``.
        """


class ModelApplier:
    """Applies tasks to a model of PyTorch.

    A pair of factors runs beside its module, which leaves the weight alone; or it is merged into the weight, as
    everything else that a task changes is. A copy of each weight that is written is kept, and gives it back its bits.
    """

    def __init__(self, memory: MemoryModel, dtype: torch.dtype | None, *, beside: bool) -> None:
        """Take a model.

        Args:
            memory: The model.
            dtype: The dtype that factors beside modules have; None is that of the weight.
            beside: True to run pairs beside their modules where that is possible; False merges all.
        """
        self._memory, self._dtype, self._beside = memory, dtype, beside
        self._written: tuple[Mapping[str, WeightPair], MemoryChange | None] = {}, None
        self._kept: dict[str, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.applied = 0

    @property
    def kept(self) -> int:
        """As in `BankUsage`."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    def check(self, kinds: Mapping[str, CodedKind], rest: MemoryChange | None) -> None:
        """See `Applier`."""
        self._memory.require_untied((weight, weight) for weight, kind in kinds.items() if not self._runs(weight, kind))
        if rest is not None:
            rest.require_untied(self._memory)

    def apply(self, name: str | None, task: RebuiltTask) -> None:
        """See `Applier`."""
        beside = {weight: pair for weight, pair in task.pairs.items() if self._runs(weight, pair.kind)}
        merged = {weight: pair for weight, pair in task.pairs.items() if pair.rank and weight not in beside}
        branches = self._branches({weight: pair for weight, pair in beside.items() if pair.rank})
        try:
            self._restore()
            self._write(merged, task.rest)
        except BaseException:
            self._restore()
            self._write(*self._written)
            raise
        for handle in self._handles:
            handle.remove()
        self._handles = [run_beside(module, branch) for module, branch in branches]
        self._written = merged, task.rest
        self.applied = sum(pair.nbytes for pair in beside.values())

    def _runs(self, weight: str, kind: CodedKind) -> bool:
        """Return True if a pair runs beside its module."""
        return self._beside and has_branch(self._memory.owners[weight], weight, kind)

    def _branches(self, beside: Mapping[str, WeightPair]) -> list[tuple[torch.nn.Module, Branch]]:
        parameters = [self._memory.parameters[weight] for weight in beside]
        made = float_factors(
            list(beside.values()),
            [self._dtype or parameter.dtype for parameter in parameters],
            [parameter.device for parameter in parameters],
        )
        modules = [self._memory.owners[weight] for weight in beside]
        return [
            (own, make_branch(own, *factors)) for own, factors in zip(modules, made, strict=True) if own is not None
        ]

    def _restore(self) -> None:
        """Give all weights that were written the bits of the base model."""
        if self._kept:
            parallel_each(lambda weight: _copy(self._memory.parameters[weight], self._kept[weight]), self._kept)

    def _write(self, merged: Mapping[str, WeightPair], rest: MemoryChange | None) -> None:
        """Write what a task merges into weights, which have the bits of the base model."""
        import torch

        weights = (*merged, *(rest.weights if rest is not None else ()))
        parameters, kept = self._memory.parameters, self._kept
        self._kept = {w: kept[w] if w in kept else parameters[w].detach().clone() for w in weights}
        if rest is not None:
            rest.write(self._memory)
        on_threads = {w: pair for w, pair in merged.items() if pair.xp.has_threads}
        if on_threads:
            add_deltas((parameters[w], pair.delta(tuple(parameters[w].shape))) for w, pair in on_threads.items())
        with torch.no_grad():
            for weight in merged.keys() - on_threads.keys():
                pair = merged[weight]
                merge_factors(parameters[weight], pair.decoded, pair.kind, pair.xp, transposed=pair.transposed)


class HookApplier:
    """Hands the factors of tasks to a function of a server. The model is not touched.

    Attributes:
        applied: 0: the server holds the factors.
        kept: 0.
    """

    applied = 0
    kept = 0

    def __init__(self, hook: ApplyHook, memory: MemoryModel, dtype: torch.dtype | None, device: torch.device) -> None:
        """Take the function.

        Args:
            hook: The function.
            memory: The model, which tells the names and dtypes of weights.
            dtype: The dtype of the factors; None is that of the weight.
            device: The device of the factors.
        """
        self._hook, self._memory, self._dtype, self._device = hook, memory, dtype, device

    def check(self, kinds: Mapping[str, CodedKind], rest: MemoryChange | None) -> None:
        """See `Applier`."""
        require_pairs(rest)

    def apply(self, name: str | None, task: RebuiltTask) -> None:
        """See `Applier`."""
        dtypes = [self._dtype or self._memory.parameters[weight].dtype for weight in task.pairs]
        made = float_factors(list(task.pairs.values()), dtypes, [self._device] * len(dtypes))
        self._hook(name, {module_of(weight): factors for weight, factors in zip(task.pairs, made, strict=True)})


def _copy(weight: torch.Tensor, bits: torch.Tensor) -> None:
    """Copy a tensor into a weight, on the CPU by NumPy, whose copies do not wait for PyTorch's other threads."""
    import torch

    with torch.no_grad():
        if weight.device.type == "cpu" and weight.is_contiguous() and weight.dim():
            np.copyto(_bytes(weight), _bytes(bits))
        else:
            weight.copy_(bits)


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return a view of the bytes of a contiguous tensor on the CPU."""
    import torch

    view: npt.NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return view


def module_of(weight: str) -> str:
    """Return the path of the module of a weight; the name itself if the weight is no ``.weight``."""
    return weight.removesuffix(".weight")


def require_pairs(rest: MemoryChange | None) -> None:
    """Refuse a task that is more than pairs of factors. Raises AdapterError ``not-expressible``."""
    if rest is not None:
        weights = rest.weights
        message = f"it changes {weights[0]} by more than a pair of factors"
        message += f", and {len(weights) - 1} other weights" if len(weights) > 1 else ""
        raise AdapterError(f"{message}; such a task has no factors to hand out", code="not-expressible")
