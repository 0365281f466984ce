"""`merge`, `unmerge`: one or several `.nola` files into the weights of a model, exact and resumable, and out again."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nola_codec.api.arguments import require_model_path, require_path, require_source
from nola_codec.container.limits import Limits
from nola_codec.errors import AdapterError
from nola_codec.merger.engine import run_merge, run_unmerge
from nola_codec.merger.request import PIECE_BYTES, MergeReport, MergeRequest, UnmergeRequest, WeightedSource
from nola_codec.progress import Progress
from nola_codec.references.finding import References
from nola_codec.remote import accepts_urls
from nola_codec.stores.tensor_files import SUFFIXES


@accepts_urls("base", nola="sources", out="out")
def merge(
    sources: Sequence[WeightedSource],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    keep_undo: bool = False,
    progress: Progress | None = None,
    piece_bytes: int = PIECE_BYTES,
    references: References = None,
    limits: Limits | None = None,
    any_base: bool = False,
) -> MergeReport:
    """Write a model directory with the deltas of one or more files added to its weights.

    Each delta is computed as for one file, multiplied by its file's weight, and added to the others in the order given:
    float64, one rounding each. The sum is added to the weight, with one rounding to the weight's dtype. The bits depend
    neither on threads nor on shards. Run again after it was killed, a merge keeps what was finished.

    The content SHA-256 and the decoded SHA-256 of every file are compared before anything is written.

    Args:
        sources: `.nola` files, or pairs of file and weight; a weight that is not given is 1.
        base: A model directory of Transformers, or of a component of Diffusers. A pipeline of Diffusers, a lone
            safetensors file and PyTorch's pickles are merged too, but a killed run of these begins again.
        out: The merged model, a directory; for a lone file a path that ends in ``.safetensors``.
        rung: The rung of progressive files to decode, counted from 0; None is the last.
        device: The device that factors are synthesized on; it changes no bit.
        overwrite: Replace `out`, if it is a model directory.
        keep_undo: Write ``nola_undo.bin`` beside the weights, with which `unmerge` restores the base to the bit.
        progress: Called as (stage, done, total).
        piece_bytes: Bytes that a thread works on at once; it changes no bit of the weights.
        references: Where the earlier versions are that files need which were encoded against one, as in `decode`.
        limits: As in `load`.
        any_base: Merge even if a file was encoded with ``base``, and that was another model than this one.

    Returns:
        How many shards were written, and how many of them an earlier, killed run had finished.

    Raises:
        FormatError, ChecksumMismatch: A file is damaged, or the decoded SHA-256 is not the encoder's.
        AdapterError: ``base-mismatch`` and others if the base does not fit; ``other-base`` if a file was
            made for another one; ``merge-conflict``, ``merge-weight`` for
            files that cannot be combined; ``not-nola``: a source is an adapter, which must be encoded first;
            ``source-type``, ``target-type``: an argument of a wrong type.
        OutputExists: `out` is there and `overwrite` is False.
    """
    require_sources(sources)
    require_model_path(base)
    require_path(out)
    _require_directory_name(out, base)
    return run_merge(MergeRequest(
        sources, Path(base), Path(out), rung=rung, device=device, overwrite=overwrite, keep_undo=keep_undo,
        progress=progress, piece_bytes=piece_bytes, references=references,
        limits=limits, any_base=any_base,
    ))  # fmt: skip


@accepts_urls("merged", nola="sources", out="out")
def unmerge(
    sources: Sequence[WeightedSource],
    merged: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> MergeReport:
    """Write the base model out of a model that was merged with `keep_undo`: its shards byte for byte.

    The SHA-256 of every restored shard is compared with that of the base's own.

    Args:
        sources: The same files and weights, in the same order, as they were merged with.
        merged: The merged model.
        out: The base model.
        rung: The rung that the files were merged at.
        device: The device that factors are synthesized on; it changes no bit.
        overwrite: Replace `out`, if it is a model directory.
        progress: Called as (stage, done, total).
        references: As in `merge`.
        limits: As in `load`.

    Raises:
        AdapterError: ``no-undo``: the model was merged without `keep_undo`; ``unmerge-files``: with other files or
            weights; ``unmerge-mismatch``: the merged model was changed since.
        OutputExists: `out` is there and `overwrite` is False.
    """
    require_sources(sources)
    require_model_path(merged)
    require_path(out)
    _require_directory_name(out, merged)
    request = UnmergeRequest(sources, Path(merged), Path(out), rung, device, overwrite, progress, references, limits)
    return run_unmerge(request)


def _require_directory_name(out: str | os.PathLike[str], model: str | os.PathLike[str]) -> None:
    """Refuse a name of a file of tensors for a model that becomes a directory. Raises AdapterError ``target-type``."""
    if Path(model).is_dir() and Path(out).suffix in SUFFIXES and not Path(out).is_dir():
        message = f"a model is written as a directory; give a name that does not end in {Path(out).suffix}"
        raise AdapterError(message, code="target-type", where=os.fspath(out))


def require_sources(sources: object, require: Callable[[object], None] = require_source) -> None:
    """Refuse anything but a list of files and of pairs of a file and a number.

    Args:
        sources: The list.
        require: Refuses what is no source.

    Raises:
        AdapterError: ``source-type``; ``merge-weight``.
    """
    if isinstance(sources, str | bytes | os.PathLike) or not isinstance(sources, Sequence):
        found = repr(sources) if isinstance(sources, str) else type(sources).__qualname__
        message = f"expected a list of files, or of pairs (file, weight), found {found}; put it into a list"
        raise AdapterError(message, code="source-type")
    for source in sources:
        if isinstance(source, tuple):
            if len(source) != 2 or not isinstance(source[1], numbers.Real):
                raise AdapterError(f"expected a pair (file, number), found {source!r:.80}", code="merge-weight")
            source = source[0]
        require(source)
