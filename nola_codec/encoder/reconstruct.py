"""Decode the content of a file by the arithmetic of the decoder, before the file is written.

A header holds the exponents of the decoded sides and the decoded SHA-256, so the encoder has to decode. It also finds
the exponents here: they are the smallest with which every element fits into int16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.basis import basis_by_id
from nola_codec.decoder.coefficients import Dequantizer
from nola_codec.decoder.factors import DecodedRecord, synthesize_records
from nola_codec.decoder.hashing import DecodedHash
from nola_codec.encoder.assemble import Envelope, RungFacts
from nola_codec.encoder.content import FileContent
from nola_codec.encoder.reference import Prediction
from nola_codec.model.header import GAIN_ONE
from nola_codec.model.records import CodedRecord
from nola_codec.parallel import parallel_map
from nola_codec.quant.scales import MIN_EXPONENT, fitting_exponent

_PORTION = 1 << 20
"""Number of elements that one thread decodes at a time."""
_LARGEST = 32700
"""The peak, in units of int16, that a prediction may have at its exponent; a little below the end of the range."""
_LOWEST = 8
"""How far the exponent of a record may lie below that of its prediction."""
_HEADROOM = 3
"""Octaves of int16 that a side may leave unused so that all sides can share one exponent."""


class FactsCollector:
    """A collector of the header's facts about the decoded records of a rung, which are added in order."""

    def __init__(self) -> None:
        self._hash = DecodedHash()
        self._exponents: list[tuple[int, ...]] = []

    def add(self, decoded: DecodedRecord) -> None:
        """Add the next record."""
        self._hash.update(decoded, NUMPY)
        self._exponents.append(decoded.exponents)

    def finish(self, envelope: Envelope, measured: Mapping[str, float]) -> RungFacts:
        """Add the tensors that are not coded, and return the facts with the measured losses."""
        for tensor in (*envelope.raw.values(), *(tensor for _, tensor in envelope.drawn.values())):
            self._hash.update_raw(tensor)
        return RungFacts(self._exponents, self._hash.digest(), measured)


def decode_rung(
    content: FileContent, envelope: Envelope, rung: int, prediction: Prediction | None = None
) -> Iterator[DecodedRecord]:
    """Yield each record decoded at a rung, in order, with what the reference predicts of it.

    The first guess of an exponent takes the peak of a vector to be six times its root mean square. A record that
    saturates int16 gets a greater exponent and is decoded again. Sides share the largest exponent if that leaves at
    most _HEADROOM octaves unused.
    """
    records = content.rungs[rung]
    dequantizer = Dequantizer(content.quantizers, content.allocations)
    guess = _first_exponents(records, content.squares[rung])
    if prediction is not None:
        _raise_to_prediction(guess, prediction, content.squares[rung])

    def decode_span(span: tuple[int, int]) -> list[DecodedRecord]:
        """Decode the records of a span, and find their exponents."""
        pending = list(range(*span))
        symbols = [[s[i] for s in content.symbols[: rung + 1]] for i in pending]
        points = dict(zip(pending, dequantizer.coefficients([records[i] for i in pending], symbols), strict=True))
        done: dict[int, DecodedRecord] = {}
        while pending:
            raised = [replace(records[i], exponents=guess[i]) for i in pending]
            made = synthesize_records(
                raised, [points[i] for i in pending], generator=envelope.generator, seed=envelope.seed, xp=NUMPY
            )
            for index, decoded in zip(pending, made, strict=True):
                whole = decoded if prediction is None else prediction.add(index, decoded, records[index].name)
                done[index] = whole
                guess[index] = tuple(
                    e + (_is_saturated(own) or _is_saturated(total))
                    for e, own, total in zip(guess[index], decoded.sides, whole.sides, strict=True)
                )
            pending = [i for i in pending if guess[i] != done[i].exponents]
        return [done[i] for i in range(*span)]

    for portion in parallel_map(decode_span, _portions(records)):
        yield from portion


def _first_exponents(
    records: Sequence[CodedRecord], all_squares: Sequence[npt.NDArray[np.float64]]
) -> list[tuple[int, ...]]:
    """Guess the exponents of each record.

    The same side of all modules shares the greatest exponent if it can, and so do all vectors.
    """
    guess = []
    for record, squares in zip(records, all_squares, strict=True):
        lengths = record.kind.vector_lengths
        own = []
        for side, (length, part) in enumerate(zip(lengths, np.split(squares, len(lengths)), strict=True)):
            rms = np.sqrt(part * (basis_by_id(record.kind.basis).norm2(length) / length))
            own.append(fitting_exponent(6 * rms, record.scale_codes(side)))
        guess.append(own)
    for is_pair, side in ((True, 0), (True, 1), (False, 0)):
        members = [i for i, record in enumerate(records) if record.kind.is_pair == is_pair]
        common = max((guess[i][side] for i in members if records[i].units), default=None)
        if common is not None:
            for i in members:
                if not records[i].units or guess[i][side] >= common - _HEADROOM:
                    guess[i][side] = common
    return [tuple(own) for own in guess]


def _raise_to_prediction(
    guess: list[tuple[int, ...]], prediction: Prediction, all_squares: Sequence[npt.NDArray[np.float64]]
) -> None:
    """Raise the exponents of records that have a prediction, until the prediction itself fits into int16.

    The greatest exponent of a side then serves all of them, if it leaves at most _HEADROOM octaves unused.
    """
    for index, known in prediction.records.items():
        own = []
        parts = np.split(all_squares[index], len(known.sides))
        for first, side, exponent, gain, squares in zip(
            guess[index], known.sides, known.exponents, prediction.entry.gains, parts, strict=False
        ):
            peak = float(np.abs(side.astype(np.int64)).max(initial=0)) * gain / GAIN_ONE
            fitting = exponent + max(0, math.ceil(math.log2(max(peak, 1.0) / _LARGEST))) if peak else exponent - _LOWEST
            own.append(max(first, fitting) if squares.any() else max(MIN_EXPONENT, fitting))
        guess[index] = tuple(own)
    for is_pair, side in ((True, 0), (True, 1), (False, 0)):
        members = [i for i, known in prediction.records.items() if (len(known.sides) == 2) == is_pair]
        common = max((guess[i][side] for i in members), default=0)
        for i in members:
            if common - _HEADROOM <= guess[i][side]:
                guess[i] = (*guess[i][:side], common, *guess[i][side + 1 :])


def _portions(records: Sequence[CodedRecord]) -> list[tuple[int, int]]:
    """Divide the records into spans (start, stop) of about _PORTION elements."""
    spans = []
    start = weight = 0
    for index, record in enumerate(records):
        weight += record.kind.elements
        if weight >= _PORTION or index == len(records) - 1:
            spans.append((start, index + 1))
            start, weight = index + 1, 0
    return spans


def _is_saturated(values: npt.NDArray[np.int16]) -> bool:
    """Return True if a value lies at an end of int16's range."""
    return bool(values.size) and (int(values.max()) == 32767 or int(values.min()) == -32768)
