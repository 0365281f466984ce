"""Whole models: the change from a base to a fine-tuned model as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from nola_codec.adapters.dialects import weight_changes as dialect
from nola_codec.adapters.dialects.weight_changes import Pairing, Selection, Weights
from nola_codec.api.encoding import checked
from nola_codec.array_types import Float32Array
from nola_codec.checkpoints.checkpoint import WeightInfo
from nola_codec.encoder.dense import SplitOptions, split_changes
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import Adapter
from nola_codec.progress import Progress
from nola_codec.stores.files import atomic_file
from nola_codec.stores.safetensors_io import num_bytes

AnyPath = str | os.PathLike[str]


def encode_delta(tuned: AnyPath, base: AnyPath, out: AnyPath | BinaryIO | None = None, **options: Any) -> EncodeReport:
    """Encode what a training changed in a model; arguments and errors are those of `encode_delta_bytes`."""
    return encode_delta_bytes(tuned, base, out, **options)[1]


def encode_delta_bytes(
    tuned: AnyPath,
    base: AnyPath,
    out: AnyPath | BinaryIO | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    residue: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    size: int | str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> tuple[bytes, EncodeReport]:
    """Encode what a training changed in a model; return the file's bytes and the report.

    Equal weights take no place in the file. A changed matrix is split into its strongest singular components and the
    rest; norms, biases and that rest are coded as vectors; one Lagrangian decides over all of it. The reported errors
    are the sums of the parts' errors, as if these were at right angles, which the parts themselves are.

    Weights are read one at a time. Beside them, the low-rank factors and the file are held in memory; the rest of a
    large model lies in temporary files, about 9 bytes a changed parameter under $TMPDIR.

    Args:
        tuned: A model directory, or a safetensors file.
        base: What it was trained from, likewise.
        out: Where the file goes, whole or not at all; None encodes and reports without writing.
        rank: Greatest number of components of a matrix.
        energy: Share of a matrix' energy at which its components end.
        residue: Code what the components leave, too.
        include: Take only weights whose names contain a match of one of these regular expressions.
        exclude: Leave out weights whose names contain a match of one of these.
        embeddings: Take the input embeddings too.
        head: Take the output layer too.
        size: Bytes that the file may take, as a number or as ``"5MB"``.
        overwrite: Replace an existing file.
        **options: Of `encode`: nmse, ratio, error, objective, importance, seed, generator, entropy, thorough,
            progressive, rungs, progress.

    Raises:
        AdapterError: ``base-mismatch``, ``nothing-selected``, ``nothing-changed``, ``not-float``, ``not-finite``, or a
            checkpoint cannot be read.
        EncodeError: bad options, or a target that cannot be reached.
        OutputExists: `out` is there and `overwrite` is false.
    """
    chosen = checked(out if isinstance(out, str | os.PathLike) else None, size=size, overwrite=overwrite, **options)
    if chosen.is_factor_form:
        raise EncodeError(
            "num_basis and bits make a file of the factor form, which has no dense changes", code="option"
        )
    if chosen.weighting is not None:
        raise EncodeError("fit activations weighs the components of adapters only", code="option")
    split = SplitOptions(rank, energy, residue, chosen.seed)
    selection = Selection(tuple(include), tuple(exclude), embeddings, head)
    change = _read_change(tuned, base, selection, split, chosen.progress)
    data, report = encode_adapter(
        change.adapter, chosen, source_bytes=change.source_bytes, parameters=change.parameters
    )
    if isinstance(out, str | os.PathLike):
        with atomic_file(out) as stream:
            stream.write(data)
    elif out is not None:
        out.write(data)
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
