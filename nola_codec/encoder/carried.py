"""Reduce carried tensors to the form that the option `carried` asks for, and measure what each of them loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from nola_codec.adapters import dialect_of
from nola_codec.array_types import Float64Array
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import Container, open_container
from nola_codec.decoder.carried_forms import CODED, INT8, INT8_SCALE, is_reduced, restore_carried
from nola_codec.decoder.decoder import Decoder
from nola_codec.encoder.report import CarriedReport
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import coded_dtype, from_float32, from_float64, to_float32, to_float64

SMALLEST = 1024
"""The least number of elements of a tensor that is reduced: the others take next to no bytes."""
_PIECE = 1 << 22
"""The number of elements that are worked on at once."""
_MOST_LEVEL = 127
"""The greatest level of the form int8."""


@dataclass(frozen=True)
class ReducedCarried:
    """An adapter whose carried tensors were brought into another form.

    Attributes:
        adapter: The adapter with the records that stand for its tensors.
        sources: The tensors in their own form, by key: all carried tensors that were not drawn.
        forms: The form of each of them.
        reducible: True for each of them that may have another form than ``exact``.
    """

    adapter: Adapter
    sources: Mapping[str, RawTensor] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    reducible: Mapping[str, bool] = field(default_factory=dict)


def reduce_carried(adapter: Adapter, form: str) -> ReducedCarried:
    """Bring the carried tensors of an adapter into a form, as far as they may have it.

    A tensor stays as it is if it is not of floats or has fewer than SMALLEST elements, or if it describes a delta and
    is no weight of the model (an alpha, a magnitude). The forms ``int8`` and ``coded`` are for matrices; other tensors
    become BF16 under both. Float32 tensors become F16 in place of BF16 if that loses nothing.

    Args:
        adapter: The adapter as read.
        form: One of CARRIED_FORMS.

    Raises:
        EncodeError: ``reserved-key``: a key of the adapter would be taken for a part of a reduced tensor.
    """
    sources = {key: tensor for key, tensor in adapter.raw.items() if key not in adapter.draws}
    reserved = next((key for key in (*sources, *(v.name for v in adapter.vectors)) if is_reduced(key)), None)
    if reserved is not None:
        message = "a tensor of this name cannot be carried: the name is that of a part of a reduced tensor"
        raise EncodeError(message, code="reserved-key", where=reserved)
    dialect = dialect_of(adapter)
    raw: dict[str, RawTensor] = {key: adapter.raw[key] for key in adapter.draws if key in adapter.raw}
    vectors: list[VectorTensor] = []
    forms: dict[str, str] = {}
    reducible = {key: dialect.may_be_rounded(key) and is_reducible(tensor) for key, tensor in sources.items()}
    for key, tensor in sources.items():
        chosen = form if reducible[key] else "exact"
        chosen = "bf16" if chosen in ("int8", "coded") and len(tensor.shape) < 2 else chosen
        forms[key] = _add_reduced(key, tensor, chosen, raw, vectors)
    reduced = replace(adapter, raw=raw, vectors=(*adapter.vectors, *vectors))
    return ReducedCarried(reduced, sources, forms, reducible)


def is_reducible(tensor: RawTensor) -> bool:
    """Return True if a tensor has a dtype and a size that another form may make smaller."""
    return tensor.dtype in ("F32", "F64", "F16", "BF16") and math.prod(tensor.shape) >= SMALLEST


def bytes_in(tensor: RawTensor, form: str) -> int:
    """Return the bytes that a reducible tensor takes in a form, before any compression; 5.5 bits a number if coded."""
    bits = {"exact": 8 * len(tensor.data) / max(1, math.prod(tensor.shape)), "bf16": 16.0, "int8": 8.0, "coded": 5.5}
    return round(math.prod(tensor.shape) * min(bits[form], bits["exact"]) / 8)


def _add_reduced(key: str, tensor: RawTensor, form: str, raw: dict[str, RawTensor], vectors: list[VectorTensor]) -> str:
    """Add the records of one tensor in a form, and return the form; it is ``exact`` if the tensor cannot have it."""
    try:
        if form == "bf16" and tensor.dtype in ("F32", "F64"):
            raw[key] = _in_sixteen_bits(tensor, key)
            return form
        if form == "int8":
            raw[key + INT8], raw[key + INT8_SCALE] = _to_int8(tensor, key)
            return form
        if form == "coded":
            values = to_float32(tensor, where=key)
            if np.isfinite(values).all() and values.any():
                vectors.append(VectorTensor(key + CODED, values, coded_dtype(tensor.dtype), is_carried=True))
                return form
    except AdapterError:  # a value has no finite neighbour in the form
        pass
    raw[key] = tensor
    return "exact"


def _in_sixteen_bits(tensor: RawTensor, key: str) -> RawTensor:
    """Return a tensor rounded to BF16; or in F16, if only that is exact."""
    values = to_float64(tensor)
    rounded = from_float64(values, "BF16", where=key)
    if np.array_equal(to_float64(rounded), values, equal_nan=True):
        return rounded
    try:
        half = from_float64(values, "F16", where=key)
    except AdapterError:
        return rounded
    return half if np.array_equal(to_float64(half), values, equal_nan=True) else rounded


def _to_int8(tensor: RawTensor, key: str) -> tuple[RawTensor, RawTensor]:
    """Return the levels of a matrix, -127 to 127, and the scale of each row in the tensor's own dtype.

    Raises:
        AdapterError: ``overflow`` for a value that is not finite.
    """
    values = to_float32(tensor, where=key).reshape(tensor.shape[0], -1)
    if not np.isfinite(values).all():
        raise AdapterError("a value is not finite", code="overflow", where=key)
    peak = np.abs(values).max(axis=1) if values.size else np.zeros(len(values), np.float32)
    scale = from_float32(peak / np.float32(_MOST_LEVEL), coded_dtype(tensor.dtype), where=key)
    factors = to_float64(scale)
    divisor = np.where(factors > 0, factors, 1.0)
    step = max(1, _PIECE // max(1, values.shape[1]))
    levels = np.empty(values.shape, np.int8)
    for start in range(0, len(values), step):
        part = np.rint(values[start : start + step] / divisor[start : start + step, None])
        levels[start : start + step] = np.clip(part, -_MOST_LEVEL, _MOST_LEVEL)
    return RawTensor("I8", tensor.shape, levels.tobytes()), scale


def report_carried(reduced: ReducedCarried, data: bytes) -> tuple[CarriedReport, ...]:
    """Return one report for each carried tensor; the losses are measured on what the file decodes to.

    Args:
        reduced: The tensors before and after they were brought into another form.
        data: The bytes of the finished file.
    """
    with open_container(data) as container:
        sizes = _record_bytes(container)
        numbers = {record.name: number for number, record in enumerate(container.header.raw)}
        reports = []
        for key, source in reduced.sources.items():
            form = reduced.forms[key]
            names = [name for name in _record_names(key, form) if name in sizes]
            error = 0.0
            if form != "exact":
                raw = {name: container.raw_tensor(numbers[name]) for name in names if name in numbers}
                vectors = [
                    VectorTensor(name, decoded.float32(NUMPY)[0], coded_dtype(source.dtype))
                    for name, decoded in (Decoder(container, NUMPY).decode_vectors(names) if form == "coded" else ())
                ]
                restored, _ = restore_carried(raw, vectors)
                error = relative_error(source, restored[key])
            reports.append(
                CarriedReport(key, source.dtype, source.shape, sum(sizes[name] for name in names), form, error)
            )
        return tuple(reports)


def relative_error(source: RawTensor, decoded: RawTensor) -> float:
    """Return the Frobenius norm of the difference of two float tensors of one shape, over that of the first.

    Elements that are not finite are left out.
    """
    lost, energy = 0.0, 0.0
    first, second = _flat(source), _flat(decoded)
    for start in range(0, len(first), _PIECE):
        a, b = first[start : start + _PIECE], second[start : start + _PIECE]
        finite = np.isfinite(a)
        difference: Float64Array = a[finite].astype(np.float64) - b[finite]
        lost += float(np.square(difference).sum())
        energy += float(np.square(a[finite], dtype=np.float64).sum())
    return math.sqrt(lost / energy) if energy else 0.0


def _flat(tensor: RawTensor) -> npt.NDArray[np.floating]:
    """Return the values of a tensor as a flat array, exact."""
    return (to_float64(tensor) if tensor.dtype == "F64" else to_float32(tensor)).reshape(-1)


def _record_names(key: str, form: str) -> tuple[str, ...]:
    """Return the names of the records that stand for a tensor in a form."""
    return {"int8": (key + INT8, key + INT8_SCALE), "coded": (key + CODED,)}.get(form, (key,))


def _record_bytes(container: Container) -> dict[str, int]:
    """Return the bytes that each carried record and each vector record takes in a file, by name."""
    header = container.header
    stored = {
        record.name: header.sections[header.raw_section(number)].length for number, record in enumerate(header.raw)
    }
    return stored | vector_bytes(container)


def vector_bytes(container: Container) -> dict[str, int]:
    """Return the bytes that each vector record takes in a file, by name.

    A coded carried tensor has a block of its own (`content.block_sizes`). In other blocks a vector counts by its share
    of the elements.
    """
    header, found, first = container.header, {}, 0
    for block, count in enumerate(header.blocks):
        records = header.coded[first : first + count]
        first += count
        sections = [header.units_section(rung) + 1 + block for rung in range(len(header.rungs))]
        length = sum(header.sections[section].length for section in sections)
        whole = sum(record.kind.elements for record in records)
        for record in records:
            if not record.kind.is_pair:
                found[record.name] = round(length * record.kind.elements / whole)
    return found
