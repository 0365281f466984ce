"""The reference of an encode: an earlier version of the adapter, decoded, and what it predicts of the new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.decoder.prediction import add_prediction
from nola_codec.errors import EncodeError
from nola_codec.fit.alignment import align_factors
from nola_codec.fit.allocation import Objective
from nola_codec.fit.difference_form import PredictedItem, fit_gains
from nola_codec.model.adapter import Codable
from nola_codec.model.header import GAIN_ONE, ReferenceEntry


@dataclass(frozen=True)
class KnownReference:
    """An earlier version that is decoded.

    Attributes:
        sha256, files, name: The same as in `ReferenceEntry`.
        dialect: The dialect of the version.
        records: Its decoded records by name, as NumPy arrays.
        paths: The paths of its own file and of all files below it, as far as they have paths.
    """

    sha256: bytes
    files: int
    name: str
    dialect: str
    records: Mapping[str, DecodedRecord]
    paths: tuple[str, ...] = ()


ANY_REFERENCE = KnownReference(bytes(32), 0, "", "", {})
"""A reference that stands for another one where options are checked before there is a file."""


@dataclass(frozen=True)
class Prediction:
    """What a reference predicts of an adapter.

    Attributes:
        entry: The name of the reference in the file, with its gains.
        items: For the number of each item that has a prediction, the item beside it.
        records: The sides that are added to the records of these items, by number.
    """

    entry: ReferenceEntry
    items: Mapping[int, PredictedItem]
    records: Mapping[int, DecodedRecord]

    def add(self, index: int, decoded: DecodedRecord, name: str) -> DecodedRecord:
        """Return a decoded record with its prediction added, if it has one."""
        known = self.records.get(index)
        return decoded if known is None else add_prediction(decoded, known, self.entry.gains, NUMPY, name)


def predict(items: Sequence[Codable], reference: KnownReference, objective: Objective) -> Prediction:
    """Bring each item into the gauge of the reference, and find the gains.

    A pair is predicted if the reference has one of its name for a weight of the same shape, and a vector if the
    reference has one of its name and shape. A pair whose delta is zero is not: alone it takes no bytes.

    Args:
        items: The modules, then the vectors, in the order of the file's records.
        reference: The reference.
        objective: The objective.
    """
    found: dict[int, PredictedItem] = {}
    records: dict[int, DecodedRecord] = {}
    zeros = 0
    for index, item in enumerate(items):
        known = reference.records.get(item.name)
        if known is None or len(known.sides) != len(item.sides):
            continue
        sides = tuple(np.asarray(side) for side in known.sides)
        if item.is_pair:
            out, columns = item.vector_lengths
            if (sides[0].shape[0], sides[1].shape[1]) != (out, columns):
                continue
            if not all(side.any() for side in item.sides):
                zeros += 1
                continue
            sides = _with_rank(sides[0], item.rank, 1), _with_rank(sides[1], item.rank, 0)
        elif sides[0].shape != item.sides[0].shape:
            continue
        records[index] = DecodedRecord(sides, known.exponents)
        predicted = records[index].float32(NUMPY)
        own = item.sides
        if item.is_pair:
            factors = (array.astype(np.float64) for array in (*item.sides, *predicted))
            own = tuple(array.astype(np.float32) for array in align_factors(*factors))
        found[index] = PredictedItem(own, predicted, item.error_gain)
    if not found and not zeros:
        message = "the reference has no tensor of a name and a shape that the adapter has"
        raise EncodeError(f"{message}: it is no earlier version of it", code="reference")
    entry = ReferenceEntry(reference.sha256, reference.files, (GAIN_ONE, GAIN_ONE), reference.name)
    return with_gains(Prediction(entry, found, records), objective)


def with_gains(prediction: Prediction, objective: Objective) -> Prediction:
    """Return a prediction with the gains that are best for an objective."""
    gains = fit_gains(list(prediction.items.values()), (objective.gamma[0], objective.gamma[1]))
    return replace(prediction, entry=replace(prediction.entry, gains=gains))


def _with_rank(side: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """Return an int16 factor with `rank` components: the first ones, or zeros after them."""
    kept = side.take(range(min(rank, side.shape[axis])), axis)
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, rank - kept.shape[axis])
    return np.pad(kept, padding)
