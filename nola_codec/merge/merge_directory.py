"""Write a model directory with the weights of a plan changed: shard by shard, in pieces, resumable, never half.

What is added to a weight is not decided here: the decoder hands in `open_weight`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError, OutputExists
from nola_codec.merge.checksums import Sums, file_sums
from nola_codec.merge.journal import Partial, partial_directory
from nola_codec.merge.plan import MergePlan
from nola_codec.merge.stream import PIECE_BYTES, ChangeRows, FileJob, Part, write_files
from nola_codec.merge.undo import UNDO_NAME, SegmentWriter, file_sha256, text_of, write_undo
from nola_codec.merge.undo import VERSION as UNDO_VERSION
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64
from nola_codec.stores.files import dump_json, require_free
from nola_codec.stores.safetensors_io import SafetensorsFile, encode_header, num_bytes
from nola_codec.version import __version__

OpenWeight = Callable[[str, str, tuple[int, ...]], ChangeRows]
"""``open_weight(weight name, dtype, shape)``: what adds a delta to rows of that weight, in place.

Called when the weight's turn comes; the result is dropped after its last row, and is called from several threads.
"""

# Never copied: weights (the old ones would be loaded in place of the merged), and files that make Transformers load an
# adapter on top.
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".npz", ".tflite"}
)
_NOT_COPIED = frozenset({"adapter_config.json"})
_COPIED_DIRECTORIES = frozenset({"additional_chat_templates"})


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        output: The directory.
        shards: Weight files in it.
        resumed: Those of them that an interrupted run with the same input had finished.
        weights: Weights that were changed.
    """

    output: Path
    shards: int
    resumed: int
    weights: int


@dataclass(frozen=True)
class Undoing:
    """What the decoder hands in for a merge that is to be undone.

    Attributes:
        recorder: ``recorder(name, dtype, shape, save)`` is an `OpenWeight` that also calls ``save(start, stop, block)``
            with what restores those rows.
        adapters: Said in the undo file of the files that were merged.
        terms: By weight name, said in the undo file of its delta.
    """

    recorder: Callable[[str, str, tuple[int, ...], Callable[[int, int, bytes], None]], ChangeRows]
    adapters: list[Any]
    terms: Mapping[str, list[Any]]


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a merged shard: its value before the delta, in memory or in the base shard, and its dtype and shape.

    Attributes:
        source: Stored tensor that holds the base value, or empty.
        value: Takes the place of the stored one, or None.
        changed: A delta is added.
    """

    dtype: str
    shape: tuple[int, ...]
    source: str
    value: RawTensor | None
    changed: bool


def merge_directory(
    base_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    plan: MergePlan,
    open_weight: OpenWeight,
    *,
    key: str,
    overwrite: bool = False,
    on_weight: Callable[[str], None] | None = None,
    keep: Undoing | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> MergeReport:
    """Write the merged model; ``out_dir`` appears whole, at the end, or not at all.

    Untouched tensors keep their bytes and their order in the shard. Configuration, tokenizer, code and licences are
    copied; weights in other formats are not. Killed and started again with the same input, it keeps the shards that
    were finished.

    Args:
        base_dir: The base model.
        out_dir: The merged model.
        plan: From `plan_merge` on the same checkpoint.
        open_weight: Called once for every name in ``plan.matches`` of a shard that is not finished yet.
        key: Says what the plan and the deltas were made from; a run of another key is not resumed.
        overwrite: Replace ``out_dir``, if it is a model directory.
        on_weight: Called with each name in ``plan.matches`` when its last rows are taken up, for progress.
        keep: Write what is needed to undo the merge, too.
        piece_bytes: Worked on at once by a thread; it changes no bit of the weights.

    Raises:
        OutputExists: ``out_dir`` is there and ``overwrite`` is False, or it is not a model directory.
        AdapterError: ``same-directory``; ``busy``; a shard cannot be read; and whatever `open_weight` raises.
    """
    base, out = Path(os.path.realpath(base_dir)), Path(os.path.realpath(out_dir))
    check_places(base, out, overwrite=overwrite)
    checkpoint = Checkpoint(base)
    key = json.dumps([key, keep is not None, piece_bytes if keep is not None else 0])
    with partial_directory(out, _identity(checkpoint, key), replace=overwrite) as partly:
        layouts = {shard: _layout(checkpoint, plan, shard) for shard in checkpoint.shards}
        jobs = (
            _job(checkpoint, shard, layout, partly, open_weight, on_weight, keep, piece_bytes)
            for shard, layout in layouts.items()
            if shard not in partly.finished
        )
        write_files(jobs, piece_bytes)
        if keep is not None:
            _write_undo(checkpoint, partly.files, keep, piece_bytes)
        remove_others(partly.files, {*checkpoint.shards, UNDO_NAME} if keep is not None else set(checkpoint.shards))
        copy_other_files(base, partly.files)
        if checkpoint.index is not None:
            (partly.files / checkpoint.index_name).write_bytes(dump_json(_new_index(checkpoint, layouts)))
        if plan.unties:
            (partly.files / "config.json").write_bytes(dump_json(_untied_config(checkpoint.config)))
    resumed = sum(shard in partly.finished for shard in checkpoint.shards)
    return MergeReport(Path(out_dir), len(checkpoint.shards), resumed, len(plan.matches))


def check_places(source: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse an output that would replace its own input, or what is not a model."""
    if out == source or out in source.parents or source in out.parents:
        raise AdapterError("lies inside the base model, or holds it", code="same-directory", where=str(out))
    require_free(out, overwrite=overwrite)
    model = not out.is_dir() or not any(out.iterdir()) or (out / "config.json").exists()
    if not model and not any(out.glob("*.safetensors")):
        raise OutputExists("is not a model directory, so it is not replaced", where=str(out))


def _identity(checkpoint: Checkpoint, key: str) -> str:
    """Of everything that decides the bytes of the merged shards."""
    sha = hashlib.sha256(json.dumps([__version__, key, checkpoint.config], sort_keys=True).encode())
    for shard in checkpoint.shards:
        status = (checkpoint.directory / shard).stat()
        with checkpoint.open_shard(shard) as file:
            header = hashlib.sha256(file.header_bytes()).hexdigest()
        sha.update(json.dumps([shard, status.st_size, status.st_mtime_ns, header]).encode())
    return sha.hexdigest()


def _layout(checkpoint: Checkpoint, plan: MergePlan, shard: str) -> dict[str, TensorPlan]:
    """A merged shard's tensors by name, in the order of writing."""
    with checkpoint.open_shard(shard) as file:
        sources = {name: name for name in file.tensors}
        sources |= {name: source for name, source in plan.untied.items() if source in file.tensors}
        if shard == checkpoint.shards[-1]:
            new = (name for name in plan.replaced if name not in checkpoint.weights and name not in plan.untied)
            sources |= dict.fromkeys(new, "")
        tensors = {}
        for name, source in sources.items():
            value = plan.replaced.get(name) or plan.reloaded.get(source)
            if name in plan.bias_terms:
                value = _with_bias(value or file.read(source), *plan.bias_terms[name], name)
            of = value or file.tensors[source]
            tensors[name] = TensorPlan(of.dtype, of.shape, source, value, name in plan.matches)
        return tensors


def _with_bias(value: RawTensor, term: RawTensor, scaling: float, name: str) -> RawTensor:
    # Elementwise IEEE operations in a fixed order: the same bits everywhere.
    return from_float64(to_float64(value) + to_float64(term) * scaling, value.dtype, where=name)


def _job(
    checkpoint: Checkpoint,
    shard: str,
    layout: Mapping[str, TensorPlan],
    partly: Partial,
    open_weight: OpenWeight,
    on_weight: Callable[[str], None] | None,
    keep: Undoing | None,
    piece_bytes: int,
) -> FileJob:
    segment = None if keep is None else SegmentWriter(partly.files / (shard + ".undo.part"))
    facts: dict[str, Any] = {}
    with checkpoint.open_shard(shard) as file:
        specs = {name: (tensor.dtype, tensor.shape) for name, tensor in layout.items()}
        header = encode_header(specs, file.metadata or {"format": "pt"})
        if keep is not None and segment is not None:
            facts = _store_replaced(file, layout, segment, piece_bytes)
            facts["terms"] = {n: t for n, t in keep.terms.items() if n in facts["tensors"] and n not in facts["stored"]}
            open_weight = partial(_recorded, open_weight, keep, segment, set(facts["terms"]))
        parts = tuple(_parts(file, layout, open_weight, on_weight))
    part_path = partly.files / (shard + ".part")
    part_path.unlink(missing_ok=True)

    def finish(sums: Sums) -> None:
        files = {shard: sums}
        if segment is not None:
            segment.close(facts | {"sha256": file_sha256(checkpoint.directory / shard)})
            files[shard + ".undo"] = file_sums(partly.files / (shard + ".undo.part"))
        partly.finish(shard, files)

    return FileJob(checkpoint.directory / shard, part_path, header, parts, finish)


def _recorded(
    open_weight: OpenWeight,
    keep: Undoing,
    segment: SegmentWriter,
    recorded: set[str],
    name: str,
    dtype: str,
    shape: tuple[int, ...],
) -> ChangeRows:
    """`open_weight`, what restores the rows being saved on the way for weights of the base."""
    if name not in recorded:
        return open_weight(name, dtype, shape)
    return keep.recorder(name, dtype, shape, partial(segment.add, name))


def _store_replaced(
    file: SafetensorsFile, layout: Mapping[str, TensorPlan], segment: SegmentWriter, piece_bytes: int
) -> dict[str, Any]:
    """Put base tensors that are replaced whole into the segment; returns what is to be known of the shard."""
    stored = [name for name in file.tensors if layout[name].value is not None]
    for name in stored:
        data = file.read(name).data
        for start in range(0, len(data), piece_bytes):
            part = data[start : start + piece_bytes]
            segment.add(name, start, start + len(part), zstandard.ZstdCompressor(level=3).compress(part))
    tensors = {name: [info.dtype, list(info.shape)] for name, info in file.tensors.items()}
    return {"header": text_of(file.header_bytes()), "tensors": tensors, "stored": stored}


def _write_undo(checkpoint: Checkpoint, files: Path, keep: Undoing, piece_bytes: int) -> None:
    kept = [checkpoint.directory / name for name in ("config.json", checkpoint.index_name) if name]
    facts = {
        "version": UNDO_VERSION,
        "writer": f"nola-codec {__version__}",
        "adapters": keep.adapters,
        "piece_bytes": piece_bytes,
        "files": {path.name: text_of(path.read_bytes()) for path in kept if path.exists()},
    }
    write_undo(files / UNDO_NAME, {shard: files / (shard + ".undo") for shard in checkpoint.shards}, facts)


def _parts(
    file: SafetensorsFile,
    layout: Mapping[str, TensorPlan],
    open_weight: OpenWeight,
    on_weight: Callable[[str], None] | None,
) -> Iterator[Part]:
    for name, tensor in layout.items():
        origin = file.offset(tensor.source) if tensor.value is None else tensor.value.data
        nbytes = num_bytes(tensor.dtype, tensor.shape)
        if not tensor.changed:
            yield Part(name, nbytes, origin)
        else:
            change = partial(open_weight, name, tensor.dtype, tensor.shape)
            done = None if on_weight is None else partial(on_weight, name)
            yield Part(name, nbytes, origin, tensor.shape[0] if tensor.shape else 1, change, done)


def _new_index(checkpoint: Checkpoint, layouts: Mapping[str, Mapping[str, TensorPlan]]) -> dict[str, Any]:
    index = dict(checkpoint.index or {})
    tensors = [tensor for layout in layouts.values() for tensor in layout.values()]
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(num_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    weight_map = {name: shard for shard, layout in layouts.items() for name in layout}
    return index | {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(config)) | {"tie_word_embeddings": False}
    if isinstance(result.get("text_config"), dict):
        result["text_config"]["tie_word_embeddings"] = False
    return result


def remove_others(directory: Path, kept: set[str]) -> None:
    """Remove what a killed run left that is not a finished file."""
    for path in directory.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy_other_files(base: Path, directory: Path) -> None:
    """Configuration, tokenizer, code, licences: all but weights, hidden files and adapters."""
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or path.name in _NOT_COPIED:
            continue
        if path.is_dir():
            if path.name in _COPIED_DIRECTORIES:
                shutil.copytree(path, directory / path.name)
        elif path.suffix not in _WEIGHT_SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache
