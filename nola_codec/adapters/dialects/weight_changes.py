"""The dialect `delta`: the change that any training made to the weights of a model.

The change of a weight has up to two records: a low-rank pair under the name of the weight (``...up_proj.weight``), and
a vector under this name with ``.diff`` after it. The change is their sum. Weights are read one at a time from two
checkpoints, which are model directories or lone safetensors files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.adapter_delta import CHANGE_SUFFIX as SUFFIX
from nola_codec.adapters.adapter_delta import AdapterDelta, multiply_factors
from nola_codec.adapters.base_model import BaseModel, MergeTarget
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.sources import AdapterSource
from nola_codec.array_types import Float32Array
from nola_codec.checkpoints.checkpoint import Checkpoint, WeightInfo
from nola_codec.checkpoints.embeddings import embedding_names
from nola_codec.checkpoints.fingerprint import fingerprint
from nola_codec.errors import AdapterError, EncodeError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.stores.dtypes import FLOAT_DTYPES, from_float64, require_finite, to_float64
from nola_codec.stores.files import require_free
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.stores.safetensors_writer import write_file
from nola_codec.stores.tensor_store import Closing

_PIECE = 1 << 22
"""The number of elements that are subtracted at once."""


class Weights(Closing):
    """The tensors of a model directory or of a lone safetensors file, read one at a time.

    Attributes:
        where: The path.
        infos: `WeightInfo` by name.
        config: The parsed ``config.json`` of a directory; empty for a lone file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the headers. Raise what `Checkpoint` and `SafetensorsFile` raise."""
        self.where = os.fspath(path)
        self._checkpoint = Checkpoint(path) if Path(path).is_dir() else None
        self._open: tuple[str, SafetensorsFile] | None = None
        self.config: Mapping[str, Any] = {} if self._checkpoint is None else self._checkpoint.config
        if self._checkpoint is not None:
            self.infos: Mapping[str, WeightInfo] = self._checkpoint.weights
        else:
            file = SafetensorsFile(path)
            self._open = ("", file)
            self.infos = {name: WeightInfo("", info.dtype, info.shape) for name, info in file.tensors.items()}

    def read(self, name: str) -> RawTensor:
        """Read one tensor. Its shard stays open for the next one."""
        shard = self.infos[name].shard
        if self._open is None or self._open[0] != shard:
            self.close()
            assert self._checkpoint is not None
            self._open = (shard, self._checkpoint.open_shard(shard))
        return self._open[1].read(name)

    def fingerprint(self) -> bytes:
        """Return the fingerprint of the weights, 32 bytes (`checkpoints.fingerprint`)."""
        if self._checkpoint is not None:
            return self._checkpoint.fingerprint()
        assert self._open is not None
        return fingerprint(self.infos, self._open[1].read_start)

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass(frozen=True)
class Selection:
    """The selection of the weights of two checkpoints that are compared.

    Attributes:
        include: Regular expressions; a weight is compared if one of them is found in its name, or if there are none.
        exclude: Regular expressions; a weight is left out if one of them is found in its name.
        embeddings: True to compare the input embeddings too.
        head: True to compare the output layer too.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    embeddings: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise EncodeError(f"{pattern!r} is not a regular expression: {error}", code="option") from error

    def wants(self, name: str) -> bool:
        """Return True if `include` and `exclude` select a name."""
        return (not self.include or any(re.search(p, name) for p in self.include)) and not any(
            re.search(p, name) for p in self.exclude
        )


@dataclass(frozen=True)
class Pairing:
    """The result of matching the weights of two checkpoints.

    Attributes:
        compared: The names of selected weights that both have, in the order of the tuned checkpoint.
        left_out: The names of embeddings and output layers that were not asked for.
        notes: Sentences for the user.
    """

    compared: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def pair(tuned: Weights, base: Weights, selection: Selection) -> Pairing:
    """Match the weights of two checkpoints by name and shape. No tensor is read.

    A tied output layer that only one of the two stores is left out, since it is the same as the embeddings.

    Args:
        tuned: The checkpoint after the training.
        base: The checkpoint before the training.
        selection: The weights to compare.

    Raises:
        AdapterError: ``base-mismatch``, with one line for each weight that only one has or that has another shape;
            ``nothing-selected``.
    """
    shapes = {n: info.shape for infos in (base.infos, tuned.infos) for n, info in infos.items()}
    inputs, outputs = embedding_names(shapes)
    special = dict.fromkeys(inputs, selection.embeddings) | dict.fromkeys(outputs, selection.head)
    compared, left_out, problems, notes = [], [], [], []
    for n in [*tuned.infos, *(n for n in base.infos if n not in tuned.infos)]:
        if not selection.wants(n):
            continue
        mine, other = tuned.infos.get(n), base.infos.get(n)
        if mine is None or other is None:
            has, lacks = (base, tuned) if mine is None else (tuned, base)
            if n in special and any(m in tuned.infos and m in base.infos for m in special):
                notes.append(f"{n} is left out: it is stored by {has.where} alone, and {lacks.where} ties it")
            else:
                problems.append(f"{n}: {lacks.where} has no such weight")
        elif n in special and not special[n]:
            left_out.append(n)
        elif mine.shape != other.shape:
            problems.append(f"{n}: " + mismatch("shape", list(other.shape), list(mine.shape)))
        else:
            compared.append(n)
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        message = f"{len(problems)} weights do not match (--exclude leaves them out):\n  {shown}"
        raise AdapterError(message, code="base-mismatch", where=tuned.where)
    if not compared:
        raise AdapterError("no weight is selected", code="nothing-selected", where=tuned.where)
    kinds = {(tuned.infos[n].dtype, base.infos[n].dtype) for n in compared}
    for mine_dtype, base_dtype in sorted(kinds):
        if mine_dtype != base_dtype:
            notes.append(f"weights in {mine_dtype} are compared with a base in {base_dtype}: rounding counts as change")
    return Pairing(tuple(compared), tuple(left_out), tuple(notes))


def difference(tuned: Weights, base: Weights, n: str) -> Float32Array | None:
    """Return the change of a weight in float32, with one rounding; None if it did not change.

    Args:
        tuned: The checkpoint after the training.
        base: The checkpoint before the training.
        n: The name of the weight.

    Raises:
        AdapterError: ``not-float``: a weight that is not of a float dtype changed; ``not-finite``; ``overflow``.
    """
    mine, other = tuned.read(n), base.read(n)
    if mine == other:
        return None
    for weights, tensor in ((tuned, mine), (base, other)):
        if tensor.dtype not in FLOAT_DTYPES:
            message = mismatch("dtype", ", ".join(FLOAT_DTYPES), tensor.dtype) + "; a change of it cannot be coded"
            raise AdapterError(message, code="not-float", where=f"{weights.where}: {n}")
    delta = np.empty(mine.shape, np.float32)
    flat = delta.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        values, before = (_piece(tensor, start, start + _PIECE) for tensor in (mine, other))
        require_finite(values, f"{tuned.where}: {n}")
        require_finite(before, f"{base.where}: {n}")
        with np.errstate(over="ignore"):
            flat[start : start + _PIECE] = values - before
    if not np.isfinite(delta).all():
        raise AdapterError("the change is too large for float32", code="overflow", where=f"{tuned.where}: {n}")
    return delta if delta.any() else None


def _piece(tensor: RawTensor, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Return elements start..stop of a tensor in float64, flat. This saves memory, since a tensor may be large."""
    width = DTYPE_BYTES[tensor.dtype]
    data = memoryview(tensor.data)[width * start : width * stop]
    return to_float64(RawTensor(tensor.dtype, (len(data) // width,), data))


def weight_name(record: str) -> str:
    """Return the weight that a vector record belongs to."""
    return record.removesuffix(SUFFIX)


def totals(adapter: Adapter) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Yield the name and the change of each weight: the exact product plus the vector, with one rounding to float64."""
    vectors = {weight_name(v.name): v.values for v in adapter.vectors}
    for module in adapter.modules:
        total = multiply_factors(module.lora_B, module.lora_A) * module.scaling
        total = total.reshape(module.b_shape[0], *module.a_shape[1:])
        vector = vectors.pop(module.name, None)
        yield module.name, total if vector is None else total + vector
    for key, values in vectors.items():
        yield key, values.astype(np.float64)


class WeightChanges(Dialect):
    """The dialect of changes of whole models."""

    name = "delta"
    title = "dense changes"
    changes_stored_weights = True
    holds_whole_weights = True

    def detect(self, source: AdapterSource) -> bool:
        """Return False, since a change is the difference of two checkpoints and not one file."""
        return False

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Raise AdapterError ``foreign-dialect``; see `detect`."""
        raise AdapterError("dense changes are encoded from two checkpoints", code="foreign-dialect", where=source.where)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return the change of each weight, rounded once to ``dtype`` (None: F32), by its name and ``.diff``."""
        return {key + SUFFIX: from_float64(values, dtype or "F32", where=key) for key, values in totals(adapter)}

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the changes to one safetensors file.

        Args:
            adapter: The adapter to write.
            out: A path that ends in ``.safetensors``.
            dtype: The dtype of all tensors; None is F32. The sum of a weight's records is rounded to it once.
            overwrite: True if an existing file may be replaced.

        Returns:
            The path.

        Raises:
            AdapterError: ``needs-file``, ``overflow``.
            OutputExists: ``out`` exists and ``overwrite`` is False.
        """
        path = Path(out)
        if path.suffix != ".safetensors":
            message = "dense changes are written to one .safetensors file; or merge them with --base"
            raise AdapterError(message, code="needs-file", where=str(out))
        require_free(path, overwrite=overwrite)
        return write_file(path, self.tensors(adapter, dtype), {"format": "pt", **_strings(adapter.metadata)})

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules, since a record states its own scaling."""
        return replace(adapter, modules=tuple(modules))

    def weight_of_record(self, name: str) -> str:
        """Return the weight that a record changes."""
        return weight_name(name)

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each change: the weight of the same name, as it is stored, never transposed."""
        return [
            MergeTarget(delta.name, "linear", delta.shape, weight=weight_name(delta.name), reshaped=True)
            for (delta,) in found.values()
        ]


WEIGHT_CHANGES = WeightChanges()


def _strings(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if isinstance(value, str)}
