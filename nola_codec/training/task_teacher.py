"""Keep what a distance needs of the adapter's outputs, so that a training step is one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import torch

from nola_codec.spool import Arena
from nola_codec.training.task_distance import Distance, Kept


class Teacher:
    """The kept outputs of the adapter, by batch. They are made when they are first asked for.

    Large ones lie on disk (`nola_codec.spool`).
    """

    def __init__(self, distance: Distance, limit: int) -> None:
        """Make an empty store.

        Args:
            distance: The distance that says what is kept.
            limit: The most bytes that are kept; outputs beyond it are made again each time.
        """
        self._distance, self._left = distance, limit
        self._arenas: dict[np.dtype[np.generic], Arena] = {}
        self._kept: dict[Hashable, tuple[np.ndarray[tuple[int, ...], np.dtype[np.generic]], ...]] = {}

    def wanted(
        self, key: Hashable, outputs: Callable[[], torch.Tensor], base: Callable[[], torch.Tensor], device: torch.device
    ) -> Kept:
        """Return what `Distance.measure` needs of a batch.

        Args:
            key: The name of the batch.
            outputs: A function that returns the outputs with the adapter.
            base: A function that returns the outputs without it.
            device: The device of the result.
        """
        if key in self._kept:
            return tuple(torch.from_numpy(array).to(device) for array in self._kept[key])
        made = self._distance.keep(outputs(), base)
        size = sum(tensor.numel() * tensor.element_size() for tensor in made)
        if size <= self._left:
            self._left -= size
            self._kept[key] = tuple(self._store(tensor) for tensor in made)
        return made

    def _store(self, tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        array = tensor.detach().cpu().numpy()
        return self._arenas.setdefault(array.dtype, Arena(array.dtype)).copy(array)
