"""Coefficients -> int16 sides of many records in one call of a kernel, for the basis that nearly all files have.

The sides lie in one array, in the order in which the decoded SHA-256 takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Array
from nola_codec.basis.hadamard import Hadamard, block_and_passes
from nola_codec.container.layers import JoinedUnits, join_units
from nola_codec.decoder.coefficients import CoefficientGroup, Coefficients
from nola_codec.kernels import Library
from nola_codec.kernels.transforms import LARGEST_SUM, SideForm, VectorPools, synthesize_hadamard_sides
from nola_codec.model.records import CodedKind, CodedRecord, Side
from nola_codec.prng import SIGNS, SIGNS_SECOND
from nola_codec.quant.scales import mantissa_and_shift, require_shifts


class JoinedSides(NamedTuple):
    """The sides of several records.

    Attributes:
        sides: The int16 arrays of each record.
        image: All of them as the decoded SHA-256 takes them: the exponents of a record, and its sides. int16 (size,);
            None if a record does not have two sides.
    """

    sides: list[tuple[Array, ...]]
    image: npt.NDArray[np.int16] | None


def joinable(records: Sequence[CodedRecord], coefficients: Sequence[Coefficients]) -> npt.NDArray[np.bool_]:
    """Return True for each record that `join_sides` takes: all rows of a Hadamard basis, and sums of 32 bits."""
    units, group = join_units(records), CoefficientGroup.of(coefficients)
    if not all(_is_integer(pool) for pool in group.pools):
        return np.zeros(len(units), bool)
    norms = np.array([_largest_norm(kind) for kind in units.kinds], np.int64)[units.kind_numbers]
    return np.asarray((norms > 0) & (group.peaks * norms <= LARGEST_SUM))


def join_sides(
    lib: Library, records: Sequence[CodedRecord], coefficients: Sequence[Coefficients], seed: int
) -> JoinedSides:
    """Synthesize and scale the sides of records that are `joinable`.

    Args:
        lib: The library.
        records: The records.
        coefficients: The coefficients of each record.
        seed: The seed of the generator, 0 to 2^64 - 1.

    Raises:
        FormatError: ``scale``: a scale is out of range.
    """
    units, group = join_units(records), CoefficientGroup.of(coefficients)
    sides = [side for kind in units.kinds for side in kind.sides]
    sizes = np.array([side.elements for side in sides], np.int64)[units.side_rows]
    # One element before the first side of each record has the exponents of two sides.
    gaps = np.zeros(len(sizes), np.int64)
    gaps[units.side_counts.cumsum() - units.side_counts] = 1
    ends = (sizes + gaps).cumsum()
    places = ends - sizes
    exponents = np.array([exponent for record in records for exponent in record.exponents], np.int64)
    out = np.empty(int(ends[-1]), np.int16)
    streams = np.array([record.stream for record in records], np.int64).repeat(units.side_counts)
    synthesize_hadamard_sides(
        lib,
        VectorPools(group.pools, group.pool_numbers, group.rows, group.counts),
        [_form_of(side) for side in sides],
        units.side_rows,
        seed,
        2 * streams + units.side_numbers,
        (SIGNS, SIGNS_SECOND),
        _scales(units, exponents),
        places,
        out,
    )
    shapes = {id(kind): [side.shape for side in kind.sides] for kind in units.kinds}
    parts = zip(places.tolist(), ends.tolist(), strict=True)
    made = [
        tuple(out[start:end].reshape(shape) for shape, (start, end) in zip(shapes[id(r.kind)], parts, strict=False))
        for r in records
    ]
    if not bool((units.side_counts == 2).all()):
        return JoinedSides(made, None)
    out[places[::2] - 1] = exponents.astype(np.int8).view(np.int16)
    return JoinedSides(made, out)


def _scales(
    units: JoinedUnits, exponents: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the mantissas and the shifts of all vectors, int64 (vectors,) each; `exponents` are those of all sides."""
    vectors = units.vectors
    codes = (units.amplitude * units.of_kinds([kind.code_steps for kind in units.kinds]))[vectors.units]
    mantissas, shifts = mantissa_and_shift(codes, exponents[vectors.sides])
    require_shifts(shifts, lambda place: units.side_owner(int(vectors.sides[place])).name)
    return mantissas, shifts


def _largest_norm(kind: CodedKind) -> int:
    """Return the largest sum of a kind for coefficients up to 1; 0 if its sides do not have all rows of the basis."""
    if kind.basis != Hadamard.id or any(side.num_basis != side.length for side in kind.sides):
        return 0
    return max(Hadamard().bound(side.length, side.num_basis, 1) for side in kind.sides)


def _is_integer(array: Array) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "i" and array.dtype.itemsize <= 4


def _form_of(side: Side) -> SideForm:
    components = 1 if side.axis is None else side.shape[side.axis]
    return SideForm(side.length, block_and_passes(side.length), components, side.axis == 1)
