"""Name the modules of an adapter in another layout: split fused modules, and join those that the target fuses.

A split gives each part its rows of lora_B and the whole lora_A. Modules are joined with lora_A one above the other and
lora_B block by block, so that their ranks add up; if all of them share one lora_A, it is kept once. Both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.families.rule import Match, Rule
from nola_codec.adapters.ranks import with_factors
from nola_codec.array_types import Float32Array
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import LoraModule
from nola_codec.model.tensors import RawTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowPiece:
    """The rows of a module that become a module of Diffusers.

    Attributes:
        path: The path of the module of Diffusers.
        start, stop: The rows.
        is_swapped: True if the two halves of these rows change places.
    """

    path: str
    start: int
    stop: int
    is_swapped: bool = False


def row_pieces(match: Match, out: int, inputs: int) -> tuple[RowPiece, ...]:
    """Return the pieces of a module (out, inputs), in the order of its rows.

    Args:
        match: The match of the module's name.
        out: The number of rows. `Rule.row_counts` must know the shape.
        inputs: The number of inputs.
    """
    if match.part is not None:
        return (RowPiece(match.diffusers[match.part], 0, out),)
    counts = match.rule.row_counts(out, inputs)
    assert counts is not None
    swapped, start, pieces = match.rule.is_swapped(out, inputs), 0, []
    for path, count in zip(match.diffusers, counts, strict=True):
        pieces.append(RowPiece(path, start, start + count, swapped))
        start += count
    return tuple(pieces)


def split_module(module: LoraModule, pieces: Sequence[RowPiece]) -> list[LoraModule]:
    """Return one module for each piece, under the path of the piece. The factors keep their bits.

    If no column of lora_B serves two pieces, as in a module that was joined, each piece gets its own columns alone.
    """
    rows = [_rows(module.lora_B, piece) for piece in pieces]
    used = [np.flatnonzero(part.any(axis=0)) for part in rows]
    is_shared = not all(len(part) for part in used) or len({*np.concatenate(used)}) < sum(len(part) for part in used)
    columns = [np.arange(module.rank)] * len(pieces) if is_shared or len(pieces) == 1 else used
    return [
        _module_of(module, piece.path, module.lora_A[kept], part[:, kept])
        for piece, part, kept in zip(pieces, rows, columns, strict=True)
    ]


def split_rows(tensor: RawTensor, piece: RowPiece, out: int) -> RawTensor:
    """Return the rows of a carried tensor with one element for each row of the delta: a bias or a DoRA magnitude.

    Raises:
        AdapterError: ``bad-shape``: the tensor has another number of elements.
    """
    size = int(np.prod(tensor.shape, dtype=np.int64))
    if size != out:
        raise AdapterError(f"expected {out} elements, found {size}", code="bad-shape", where=piece.path)
    width = len(tensor.data) // out
    elements = np.frombuffer(tensor.data, np.uint8).reshape(out, width)
    kept = _rows(elements, piece)
    shape = tuple(len(kept) if length == out else length for length in tensor.shape)
    return replace(tensor, shape=shape, data=kept.tobytes())


def join_modules(rule: Rule, name: str, parts: Mapping[int, LoraModule]) -> LoraModule:
    """Return the module of the original layout that does what some modules of Diffusers do; missing ones add nothing.

    Args:
        rule: The rule of the original module.
        name: The name of the joined module.
        parts: The modules by the number of the part.

    Raises:
        AdapterError: ``not-expressible``: the sizes do not fit each other, or scalings differ so that no common one is
            exact.
    """
    first = next(iter(parts.values()))
    if len(rule.diffusers) == 1:
        out, inputs = first.vector_lengths
        rows = RowPiece(name, 0, out, rule.is_swapped(out, inputs))
        return split_module(first, [rows])[0]
    inputs = first.lora_A.shape[1]
    known = {part: len(module.lora_B) for part, module in parts.items()}
    counts = rule.usual_counts(known, inputs)
    if counts is None or any(m.lora_A.shape[1] != inputs or m.layout != "linear" for m in parts.values()):
        message = f"the original layout has one module for {', '.join(rule.diffusers)}, and these shapes do not fit it"
        raise AdapterError(message, code="not-expressible", where=first.name)
    sides = {part: (_scaled(module, first.scaling), module.lora_A) for part, module in parts.items()}
    if len(parts) == len(counts) and all(_is_equal(m, first) for m in parts.values()):
        return _module_of(first, name, first.lora_A, np.concatenate([sides[part][0] for part in range(len(counts))]))
    rank = sum(module.rank for module in parts.values())
    lora_B = np.zeros((sum(counts), rank), np.float32)
    column = 0
    for part, (side, _) in sides.items():
        start = sum(counts[:part])
        lora_B[start : start + len(side), column : column + side.shape[1]] = side
        column += side.shape[1]
    return _module_of(first, name, np.concatenate([side for _, side in sides.values()]), lora_B)


def _rows(values: Array, piece: RowPiece) -> Array:
    rows = values[piece.start : piece.stop]
    return np.roll(rows, len(rows) // 2, axis=0) if piece.is_swapped else rows


def _module_of(module: LoraModule, name: str, lora_A: Float32Array, lora_B: Float32Array) -> LoraModule:
    made = with_factors(module, np.ascontiguousarray(lora_A), np.ascontiguousarray(lora_B))
    return replace(made, name=name)


def _is_equal(module: LoraModule, other: LoraModule) -> bool:
    return module.scaling == other.scaling and np.array_equal(module.lora_A, other.lora_A)


def _scaled(module: LoraModule, scaling: float) -> Float32Array:
    """Return lora_B for another scaling of the module. Raises AdapterError ``not-expressible`` if that would round."""
    if module.scaling == scaling:
        return module.lora_B
    exact = module.lora_B.astype(np.float64) * (module.scaling / scaling if scaling else np.nan)
    rounded = exact.astype(np.float32)
    if not np.array_equal(rounded.astype(np.float64) * scaling, module.lora_B.astype(np.float64) * module.scaling):
        message = f"the scalings {scaling} and {module.scaling} meet in one module, and a common one would round"
        raise AdapterError(message, code="not-expressible", where=module.name)
    return rounded
