"""The levels of quantized vectors, in a workspace that the drafts of a search share.

A search makes a handful of drafts, each with the levels of all vectors. The levels take a quarter of the memory of the
canonical form, so there is one set of arrays, and a new draft writes over the levels of the draft before. All reading
goes through `DraftLevels`, which raises an error once its draft is no longer the newest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, LevelArray
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.model.quantizers import Book, Trellis
from nola_codec.spool import allocate_array

Sides = tuple[dict[int, LevelArray], dict[int, LevelArray]]


class StaleDraftError(RuntimeError):
    """An internal error: the symbols of a draft are read after a newer draft has begun to write over them."""


@dataclass
class Workspace:
    """The levels of all vectors, kept from draft to draft: a vector that keeps its coder is not searched again.

    Attributes:
        levels: For each rung and side, {length: int8 (vectors of the form, length)}: the levels around 0, or the bits
            of a trellis' steps in the first columns.
        owner: For each side, {length: int16 (vectors,)}: the coder that made the levels of rung 0, -1 for none.
        tables: For each rung and dependent coder, the points and code lengths that its search uses.
        generation: The number of drafts that were begun.
        searches: The number of drafts that had a vector to code.
    """

    levels: list[Sides] = field(default_factory=list)
    owner: tuple[dict[int, npt.NDArray[np.int16]], dict[int, npt.NDArray[np.int16]]] = ({}, {})
    tables: dict[tuple[int, int], tuple[Float64Array, Float64Array]] = field(default_factory=dict)
    generation: int = 0
    searches: int = 0

    def begin_draft(self, form: CanonicalForm, rungs: int) -> DraftLevels:
        """Make room for the levels of a draft of so many rungs. Earlier drafts become stale."""
        while len(self.levels) < rungs:
            self.levels.append(matrices_like(form, lambda matrix: allocate_array(matrix.shape, np.int8)))
        if not self.owner[0]:
            self.owner = matrices_like(form, lambda matrix: np.full(len(matrix), -1, np.int16))
        self.generation += 1
        return DraftLevels(self, self.generation, rungs)


@dataclass(frozen=True)
class DraftLevels:
    """The levels of one draft, which can be read as long as it is the newest of its workspace.

    Attributes:
        workspace: The workspace with the arrays.
        generation: The draft's number in the workspace.
        rungs: The number of rungs.
    """

    workspace: Workspace = field(repr=False)
    generation: int
    rungs: int

    def matrix(self, rung: int, side: int, length: int) -> LevelArray:
        """Return the levels of all vectors of one side and length, int8 (vectors of the form, length).

        Raises:
            StaleDraftError: A newer draft was begun in the same workspace.
        """
        if self.generation != self.workspace.generation:
            raise StaleDraftError(
                f"draft {self.generation} was written over by draft {self.workspace.generation}; make it again"
            )
        return self.workspace.levels[rung][side][length]


def matrices_like(form: CanonicalForm, make: Callable[[Float32Array], Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """Make something for each matrix of a form: one dictionary by length for each side."""
    u, v = ({length: make(matrix) for length, matrix in side.items()} for side in form.matrices)
    return u, v


def levels_to_symbols(book: Book, levels: LevelArray) -> npt.NDArray[np.uint8]:
    """Return the symbols of levels that come from a workspace, uint8 of the same shape."""
    symbols = levels.view(np.uint8)
    return symbols if isinstance(book, Trellis) else np.asarray(symbols + np.uint8(book.size // 2))
