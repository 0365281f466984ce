"""An adapter that was never coded, as a reference: its tensors rounded to int16 by a rule without choice.

The rule looks at the values alone. So the same adapter in another store (npz, a pickle, shards), or with the same
values in another dtype, is the same reference and has the same hash.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.container.names import natural_key
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.decoder.hashing import DecodedHash
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, Codable
from nola_codec.quant.scales import MAX_EXPONENT, MIN_EXPONENT

_LARGEST = 32767


def exact_records(adapter: Adapter) -> dict[str, DecodedRecord]:
    """Return the factors and vectors of an adapter as records, in the order of a file.

    Raises:
        AdapterError: ``not-finite``: A tensor has a number that is infinite or none. ``overflow``: It has a number
            above the range of records.
    """
    items: tuple[Codable, ...] = (
        *sorted(adapter.modules, key=lambda module: natural_key(module.name)),
        *sorted(adapter.vectors, key=lambda vector: natural_key(vector.name)),
    )
    return {item.name: _record(item.name, item.sides) for item in items}


def hash_records(records: dict[str, DecodedRecord]) -> bytes:
    """Return the SHA-256 over records, 32 bytes: the decoded SHA-256 of a file that has these records and no other."""
    sha256 = DecodedHash()
    for record in records.values():
        sha256.update(record, NUMPY)
    return sha256.digest()


def _record(name: str, sides: tuple[npt.NDArray[np.float32], ...]) -> DecodedRecord:
    rounded, exponents = [], []
    for side in sides:
        peak = float(np.abs(side).max(initial=0.0))
        if not math.isfinite(peak):
            raise AdapterError("expected finite numbers, found infinite ones or none", code="not-finite", where=name)
        exponent = _exponent(peak)
        if exponent > MAX_EXPONENT:
            message = f"expected magnitudes up to {math.ldexp(_LARGEST, MAX_EXPONENT):.3g}, found {peak:.3g}: too large"
            raise AdapterError(message, code="overflow", where=name)
        exponents.append(exponent)
        scaled = np.rint(np.ldexp(side.astype(np.float64), -exponent))  # exact, then rounded once, ties to even
        rounded.append(scaled.astype(np.int16))
    return DecodedRecord(tuple(rounded), tuple(exponents))


def _exponent(peak: float) -> int:
    """Return the least exponent e, from MIN_EXPONENT on, with peak <= 32767 * 2^e."""
    if peak == 0:
        return MIN_EXPONENT
    exponent = math.frexp(peak)[1] - 16
    while math.ldexp(_LARGEST, exponent) < peak:
        exponent += 1
    return max(exponent, MIN_EXPONENT)
