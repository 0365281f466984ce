"""Whole models: the change from a base to a fine-tuned model as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from nola_codec.adapters.dialects import weight_changes as dialect
from nola_codec.adapters.dialects.weight_changes import Pairing, Selection, Weights
from nola_codec.api.arguments import require_model_path, write_output
from nola_codec.api.encoding import check_options
from nola_codec.api.keywords import DeltaKeywords, check_keywords
from nola_codec.array_types import Float32Array
from nola_codec.checkpoints.checkpoint import WeightInfo
from nola_codec.encoder.base_tensors import make_base_entry
from nola_codec.encoder.change_splitting import SplitOptions, split_changes
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.progress import Progress
from nola_codec.remote import accepts_urls
from nola_codec.stores.safetensors_io import num_bytes

if TYPE_CHECKING:
    from typing_extensions import Unpack

AnyPath = str | os.PathLike[str]


def encode_delta(
    tuned: AnyPath,
    base: AnyPath,
    out: AnyPath | BinaryIO | None = None,
    *,
    size: int | str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    residue: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    overwrite: bool = False,
    **options: Unpack[DeltaKeywords],
) -> EncodeReport:
    """Encode what a training changed in a model; arguments and errors as of `encode_delta_bytes`."""
    return encode_delta_bytes(
        tuned, base, out, size=size, rank=rank, energy=energy, residue=residue, include=include, exclude=exclude,
        embeddings=embeddings, head=head, overwrite=overwrite, **options,
    )[1]  # fmt: skip


@accepts_urls("tuned", "base", out="out")
def encode_delta_bytes(
    tuned: AnyPath,
    base: AnyPath,
    out: AnyPath | BinaryIO | None = None,
    *,
    size: int | str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    residue: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    overwrite: bool = False,
    **options: Unpack[DeltaKeywords],
) -> tuple[bytes, EncodeReport]:
    """Encode what a training changed in a model; the file's bytes and the report.

    Weights that are equal take no place. A changed matrix is split into its strongest singular components and what
    they leave; norms and biases, and what is left, are coded as vectors; one Lagrangian decides over all of it. The
    errors reported add up those of the parts, as if they were at right angles, which the parts themselves are.

    The file names the base model and has a fingerprint of its weights, so that merging into another model is refused.

    Three weights at most are in memory at a time. Beside them, the low-rank factors and the file are held in memory;
    the rest of a large model lies in temporary files, about 9 bytes a changed parameter under $TMPDIR.

    Args:
        tuned: The trained model: a directory, or a safetensors file.
        base: The model that it was trained from: a directory, or a safetensors file.
        out: Path or binary stream that the file is written to, whole or not at all; None only reports.
        size: Most bytes that the file may take, as a number or as ``"5MB"``.
        rank: Most singular components that are taken of a matrix; 64 if neither rank nor energy is given.
        energy: Components are taken until they hold this share of a matrix' energy.
        residue: True codes what the components leave, too.
        include: Regular expressions; only weights in whose names one is found are coded.
        exclude: Regular expressions; weights in whose names one is found are not coded.
        embeddings: True codes the input embeddings too.
        head: True codes the output layer too.
        overwrite: True replaces a file that is there.
        **options: Those of `nola_codec.api.keywords.DeltaKeywords`: nmse, ratio, error, objective, progressive, rungs,
            importance, seed, entropy, block_size, thorough, progress.

    Raises:
        AdapterError: ``base-mismatch``, ``nothing-selected``, ``nothing-changed``, ``not-float``, ``not-finite``, or a
            checkpoint cannot be read.
        EncodeError: bad options, or a target that cannot be reached.
        OutputExists: `out` is there and `overwrite` is false.
    """
    for model in (tuned, base):
        require_model_path(model)
    check_keywords("encode_delta", {"energy": energy, "rank": rank, **options}, DeltaKeywords, "energy", "rank")
    chosen = check_options(out, size=size, overwrite=overwrite, **options)
    split = SplitOptions(rank, energy, residue, chosen.seed)
    selection = Selection(tuple(include), tuple(exclude), embeddings, head)
    change = _read_change(tuned, base, selection, split, chosen.progress)
    data, report = encode_adapter(
        change.adapter, chosen, source_bytes=change.source_bytes, parameters=change.parameters
    )
    write_output(out, data)
    return data, replace(report, notes=(*report.notes, *change.notes))


@dataclass(frozen=True)
class _ModelChange:
    """The change of a model as an adapter.

    Attributes:
        adapter: Modules and vectors.
        source_bytes: Size of the weights that differ.
        parameters: The number of parameters in them.
        notes: Sentences for the report.
    """

    adapter: Adapter
    source_bytes: int
    parameters: int
    notes: tuple[str, ...]


def _read_change(
    tuned: AnyPath, base: AnyPath, selection: Selection, split: SplitOptions, progress: Progress | None
) -> _ModelChange:
    """Compare two models, and split what differs into modules and vectors."""
    with Weights(tuned) as mine, Weights(base) as other:
        pairing = dialect.pair(mine, other, selection)
        modules, vectors = split_changes(_changes(mine, other, pairing, progress), split)
        if not modules and not vectors:
            raise AdapterError("no selected weight differs from the base", code="nothing-changed", where=mine.where)
        adapter = Adapter(dialect.WEIGHT_CHANGES.name, modules, vectors=vectors)
        adapter = replace(adapter, base=make_base_entry(adapter, base, other))
        changed = [mine.infos[name] for name in changed_weights(adapter)]
        return _ModelChange(
            adapter=adapter,
            source_bytes=sum(_bytes(info) for info in changed),
            parameters=sum(_numbers(info) for info in changed),
            notes=(*pairing.notes, *_left_out_notes(mine, other, pairing, adapter)),
        )


def changed_weights(adapter: Adapter) -> list[str]:
    """Return the names of the weights that an adapter of this dialect changes."""
    names = [m.name for m in adapter.modules] + [dialect.weight_name(v.name) for v in adapter.vectors]
    return list(dict.fromkeys(names))


def _changes(
    mine: Weights, other: Weights, pairing: Pairing, progress: Progress | None
) -> Iterator[tuple[str, str, Float32Array]]:
    """Yield (weight name, dtype, change) of each selected weight that differs."""
    for number, name in enumerate(pairing.compared):
        delta = dialect.difference(mine, other, name)
        if delta is not None:
            yield name, mine.infos[name].dtype, delta
        if progress is not None:
            progress("comparing weights", number + 1, len(pairing.compared))


def _left_out_notes(mine: Weights, other: Weights, pairing: Pairing, adapter: Adapter) -> Iterator[str]:
    """Yield a sentence for each embedding or head that is left out although it changed."""
    energies = {}
    for name in pairing.left_out:
        if mine.infos[name].shape == other.infos[name].shape:
            delta = dialect.difference(mine, other, name)
            energies[name] = 0.0 if delta is None else float(np.square(delta, dtype=np.float64).sum())
        else:
            yield f"{name} is left out; it has another shape than in the base"
    own = sum(float(np.square(total).sum()) for _, total in dialect.totals(adapter)) if any(energies.values()) else 0.0
    for name, energy in energies.items():
        if energy:
            share = energy / (own + sum(energies.values()))
            yield f"{name} is left out, with {share:.1%} of the change's energy (--embeddings, --head take them in)"


def _numbers(info: WeightInfo) -> int:
    """Return the number of parameters of a weight."""
    return int(np.prod(info.shape, dtype=np.int64))


def _bytes(info: WeightInfo) -> int:
    """Return the size of a weight."""
    return num_bytes(info.dtype, info.shape)


__all__ = ["changed_weights", "encode_delta", "encode_delta_bytes"]
