"""Whole models: the change from a base to a fine-tuned model as a file, and such a file back into a base model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nola_codec.adapters import delta as dialect
from nola_codec.adapters.checkpoint import WeightInfo, WeightMatch, mismatch_message
from nola_codec.adapters.delta import Pairing, Selection, Weights
from nola_codec.adapters.dtypes import FLOAT_DTYPES, from_float64, to_float64
from nola_codec.adapters.files import atomic_file, require_free
from nola_codec.adapters.merging import MergePlan, merge_directory
from nola_codec.adapters.safetensors_io import SafetensorsFile, SafetensorsWriter, num_bytes
from nola_codec.api.encoding import checked
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.dense_delta import DenseDelta
from nola_codec.encoder.dense import SplitOptions, split
from nola_codec.encoder.encode import encode_adapter
from nola_codec.encoder.options import Progress
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError, EncodeError, expected
from nola_codec.model import Adapter, Header, RawTensor

Path_ = str | os.PathLike[str]


def encode_delta(
    tuned: Path_,
    base: Path_,
    out: Path_ | BinaryIO | None = None,
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
) -> EncodeReport:
    """Encode what a training changed in a model.

    Weights that are equal take no place. A changed matrix is split into its strongest singular components and what
    they leave; norms and biases, and what is left, are coded as vectors; one Lagrangian decides over all of it. The
    errors reported add up those of the parts, as if they were at right angles, which the parts themselves are.

    Weights are read one at a time. Beside them, the low-rank factors and the file are held in memory; the rest of a
    large model lies in temporary files, about 9 bytes a changed parameter under $TMPDIR.

    Args:
        tuned: A model directory, or a safetensors file.
        base: What it was trained from, likewise.
        out: Where the file goes, whole or not at all; None encodes and reports without writing.
        rank: Components of a matrix at most.
        energy: Share of a matrix' energy at which its components end.
        residue: Code what the components leave, too.
        include: Only weights in whose names one of these regular expressions is found.
        exclude: No weights in whose names one of these is.
        embeddings: The input embeddings too.
        head: The output layer too.
        size: Bytes that the file may take, as a number or as ``"5MB"``.
        overwrite: Replace a file that is there.
        **options: Of `encode`: nmse, ratio, error, objective, importance, seed, generator, entropy, thorough,
            progressive, rungs, progress.

    Raises:
        AdapterError: ``base-mismatch``, ``nothing-selected``, ``nothing-changed``, ``not-float``, ``not-finite``, or a
            checkpoint cannot be read.
        EncodeError: bad options, or a target that cannot be reached.
        OutputExists: `out` is there and `overwrite` is false.
    """
    data, report = encode_delta_bytes(
        tuned, base, out, rank=rank, energy=energy, residue=residue, include=include, exclude=exclude,
        embeddings=embeddings, head=head, size=size, overwrite=overwrite, **options,
    )  # fmt: skip
    return report


def encode_delta_bytes(
    tuned: Path_,
    base: Path_,
    out: Path_ | BinaryIO | None = None,
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
    """`encode_delta` that hands back the file's bytes as well."""
    chosen = checked(out if isinstance(out, str | os.PathLike) else None, size=size, overwrite=overwrite, **options)
    if chosen.projected:
        raise EncodeError("num_basis and bits are the paper's form, which has no dense changes", code="option")
    if chosen.weighting is not None:
        raise EncodeError("fit activations weighs the components of adapters only", code="option")
    how = SplitOptions(rank, energy, residue, chosen.seed)
    selection = Selection(tuple(include), tuple(exclude), embeddings, head)
    with Weights(tuned) as mine, Weights(base) as other:
        pairing = dialect.pair(mine, other, selection)
        modules, vectors = split(_changes(mine, other, pairing, chosen.progress), how)
        if not modules and not vectors:
            raise AdapterError("no selected weight differs from the base", code="nothing-changed", where=mine.where)
        adapter = Adapter(dialect.name, modules, vectors=vectors)
        source = sum(_bytes(mine.infos[n]) for n in changed_weights(adapter))
        parameters = sum(_numbers(mine.infos[n]) for n in changed_weights(adapter))
        notes = (*pairing.notes, *_left_out(mine, other, pairing, adapter))
    data, report = encode_adapter(adapter, chosen, source_bytes=source, parameters=parameters)
    if isinstance(out, str | os.PathLike):
        with atomic_file(out) as stream:
            stream.write(data)
    elif out is not None:
        out.write(data)
    return data, replace(report, notes=(*report.notes, *notes))


def changed_weights(adapter: Adapter) -> list[str]:
    """Names of the weights that an adapter of this dialect changes."""
    names = [m.name for m in adapter.modules] + [dialect.weight_name(v.name) for v in adapter.vectors]
    return list(dict.fromkeys(names))


def merge_delta(
    decoder: Decoder, base: Path, out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Path:
    """Write a base model with a file's changes added, each sum rounded once to its weight's dtype.

    Args:
        decoder: Of a file of the dialect `delta`.
        base: A model directory, or a safetensors file.
        out: A directory; for a lone file a path that ends in ``.safetensors``.
        overwrite: Replace what is there.
        progress: Called as (stage, done, total).

    Raises:
        AdapterError: ``base-mismatch`` lists all changes that do not find their weight; ``quantized-base``;
            ``overflow``.
    """
    with Weights(base) as weights:
        infos = dict(weights.infos)
    deltas = dense_deltas(decoder, {n: info.shape for n, info in infos.items()}, str(base))
    wrong = sorted(n for n in deltas if infos[n].dtype not in FLOAT_DTYPES)
    if wrong:
        message = expected("dtype", ", ".join(FLOAT_DTYPES), infos[wrong[0]].dtype)
        raise AdapterError(f"{message} ({len(wrong)} such weights)", code="quantized-base", where=f"{base}: {wrong[0]}")
    done = 0

    def merge_weight(name: str, weight: RawTensor) -> RawTensor:
        nonlocal done
        done += 1
        if progress is not None:
            progress("merge", done, len(deltas))
        total = to_float64(weight)
        return from_float64(total + deltas[name].rows(0, weight.shape[0] if weight.shape else 1), weight.dtype,
                            where=name)  # fmt: skip

    if base.is_dir():
        plan = MergePlan({n: WeightMatch(n, n, n, transposed=False) for n in deltas})
        return merge_directory(base, out, plan, merge_weight, overwrite=overwrite)
    if out.suffix != ".safetensors":
        raise AdapterError("the base is a lone file: give a path that ends in .safetensors", code="needs-file",
                           where=str(out))  # fmt: skip
    require_free(out, overwrite=overwrite)
    with SafetensorsFile(base) as file, atomic_file(out) as stream:
        writer = SafetensorsWriter(stream, {n: (i.dtype, i.shape) for n, i in file.tensors.items()}, file.metadata)
        for n in file.tensors:
            writer.write(n, merge_weight(n, file.read(n)) if n in deltas else file.read(n))
        writer.finish()
    return out


def dense_deltas(decoder: Decoder, shapes: dict[str, tuple[int, ...]], where: str) -> dict[str, DenseDelta]:
    """What a file adds to each weight, decoded and checked against the digest.

    Raises:
        AdapterError: ``base-mismatch``: a weight is not there, or has another shape.
    """
    header: Header = decoder.header
    wanted: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    for record in header.lowrank:
        wanted[record.name] = (record.kind.rows, *record.kind.a_shape[1:])
    for vector in header.vectors:
        name = dialect.weight_name(vector.name)
        if wanted.setdefault(name, vector.kind.shape) != vector.kind.shape:
            problems.append(f"{name}: " + expected("shape", list(wanted[name]), list(vector.kind.shape)))
    for name, shape in wanted.items():
        if name not in shapes:
            problems.append(f"{name}: no such weight")
        elif shapes[name] != shape:
            problems.append(f"{name}: " + expected("shape", list(shape), list(shapes[name])))
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch", where=where)
    factors, vectors = decoder.checked()
    xp = decoder.xp
    pairs = {
        record.name: (replace(made, lora_B=xp.numpy(made.lora_B), lora_A=xp.numpy(made.lora_A)), record.kind)
        for record, made in zip(header.lowrank, factors, strict=True)
    }
    rest = {
        dialect.weight_name(record.name): replace(made, values=xp.numpy(made.values))
        for record, made in zip(header.vectors, vectors, strict=True)
    }
    return {name: DenseDelta(shape, pairs.get(name), rest.get(name)) for name, shape in wanted.items()}


def _changes(
    mine: Weights, other: Weights, pairing: Pairing, progress: Progress | None
) -> Iterator[tuple[str, str, dialect.Delta]]:
    for number, name in enumerate(pairing.compared):
        delta = dialect.difference(mine, other, name)
        if delta is not None:
            yield name, mine.infos[name].dtype, delta
        if progress is not None:
            progress("comparing weights", number + 1, len(pairing.compared))


def _left_out(mine: Weights, other: Weights, pairing: Pairing, adapter: Adapter) -> Iterator[str]:
    """A sentence for each embedding or head that is left out although it changed."""
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
    return int(np.prod(info.shape, dtype=np.int64))


def _bytes(info: WeightInfo) -> int:
    return num_bytes(info.dtype, info.shape)


__all__ = ["changed_weights", "dense_deltas", "encode_delta", "encode_delta_bytes", "merge_delta"]
