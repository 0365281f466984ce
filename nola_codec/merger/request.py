"""The request of a merge, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.progress import Progress
from nola_codec.references.finding import References

PIECE_BYTES = 1 << 21
"""The number of bytes that a thread reads and writes at once; more if a single row is longer."""

WeightedSource = Source | tuple[Source, float]
"""A `.nola` file, or a file and the number that all its deltas are multiplied by."""


@dataclass(frozen=True)
class MergeRequest:
    """A request to merge files into a base model.

    Attributes:
        sources: The files, in the order in which their deltas are added.
        base: The base model: a model directory, a Diffusers pipeline, or a lone file of weights.
        out: The merged model.
        rung: The rung of progressive files to decode, counted from 0; None is the last.
        device: The device that factors are synthesized on; it changes no bit.
        overwrite: True if `out` may be replaced.
        keep_undo: True if ``nola_undo.bin`` is written.
        progress: A function that is called as (stage, done, total), or None.
        piece_bytes: The number of bytes that a thread works on at once; it changes no bit of the weights.
        references: Where the earlier versions are that files need which were encoded against one.
        limits: What a file may declare; None as in `open_container`.
        any_base: True if the base may be another model than the one that a file names.
    """

    sources: Sequence[WeightedSource]
    base: Path
    out: Path
    rung: int | None = None
    device: object = "cpu"
    overwrite: bool = False
    keep_undo: bool = False
    progress: Progress | None = None
    piece_bytes: int = PIECE_BYTES
    references: References = None
    limits: Limits | None = None
    any_base: bool = False


@dataclass(frozen=True)
class UnmergeRequest:
    """A request to subtract files from a merged model.

    Attributes:
        sources: The files and weights of the merge, in its order.
        merged: The merged model, a directory with ``nola_undo.bin``.
        out: The restored base model.
        rung: The rung that the files were merged at; None is the last.
        device: The device that factors are synthesized on; it changes no bit.
        overwrite: True if `out` may be replaced.
        progress: A function that is called as (stage, done, total), or None.
        references: As in `MergeRequest`.
        limits: As in `MergeRequest`.
    """

    sources: Sequence[WeightedSource]
    merged: Path
    out: Path
    rung: int | None = None
    device: object = "cpu"
    overwrite: bool = False
    progress: Progress | None = None
    references: References = None
    limits: Limits | None = None


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        output: The directory, or the lone file; a URL as it was given.
        shards: The number of weight files in it.
        resumed: The number of those that an interrupted run with the same input had already finished.
        weights: The number of weights that were changed.
    """

    output: Path | str
    shards: int
    resumed: int
    weights: int
