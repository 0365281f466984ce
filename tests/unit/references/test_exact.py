"""The rule that turns an adapter that was never coded into a reference, and the sum, by the worked vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nola_forge import ROOT

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.decoder.prediction import add_prediction
from nola_codec.errors import AdapterError, FormatError
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.references.exact import exact_records, hash_records


def record_of(*values: float) -> DecodedRecord:
    (record,) = exact_records(Adapter("peft", (), vectors=(VectorTensor("v", np.array(values, np.float32)),))).values()
    return record


@pytest.mark.parametrize(
    ("values", "exponent", "elements"),
    [
        ((1.0, -0.5), -14, [16384, -8192]),
        ((32767 * 2.0**-15, 2.0**-15), -15, [32767, 1]),
        ((-1.0, 1.5 * 2.0**-14, 2.5 * 2.0**-14), -14, [-16384, 2, 2]),  # ties to even
        ((0.0, 0.0), -120, [0, 0]),
        ((2.0**-140,), -120, [0]),
        ((3.4e38,), 100, None),
    ],
)
def test_least_exponent_and_nearest_integers(
    values: tuple[float, ...], exponent: int, elements: list[int] | None
) -> None:
    if elements is None:
        with pytest.raises(AdapterError, match="too large"):
            record_of(*values)
        return
    record = record_of(*values)
    assert record.exponents == (exponent,)
    assert record.sides[0].tolist() == elements


def test_infinite_numbers_are_refused() -> None:
    for value in (np.inf, np.nan):
        with pytest.raises(AdapterError) as caught:
            record_of(value)
        assert caught.value.code == "not-finite"


def test_the_hash_is_over_values_alone() -> None:
    one, two = {"a": record_of(1.0, 2.0)}, {"b": record_of(1.0, 2.0)}
    assert hash_records(one) == hash_records(two) != hash_records({"a": record_of(1.0, 2.001)})


@pytest.mark.parametrize("xp", [NUMPY, TorchArrays()], ids=["numpy", "torch"])
def test_the_worked_vectors(xp: Arrays) -> None:
    text = (ROOT / "spec" / "nola-v1.md").read_text(encoding="utf-8")
    rows = re.findall(r"d = (-?\d+), r = (-?\d+), G = (\d+), e - e_ref = (-?\d+): s = (\d+), v = (-?\d+)", text)
    assert len(rows) == 4
    for own, other, gain, gap, _, wanted in ([int(n) for n in row] for row in rows):
        pair = [xp.asarray(np.array([[value]], np.int16)) for value in (own, other)]
        made = add_prediction(DecodedRecord((pair[0],), (gap - 9,)), DecodedRecord((pair[1],), (-9,)), (gain,), xp, "x")
        assert (xp.numpy(made.sides[0]).tolist(), made.exponents) == ([[wanted]], (gap - 9,))


def test_exponents_that_are_too_far_apart() -> None:
    side = np.array([[3, -32768]], np.int16)
    with pytest.raises(FormatError) as caught:
        add_prediction(DecodedRecord((side,), (-10,)), DecodedRecord((side,), (0,)), (1024,), NUMPY, "x")
    assert caught.value.code == "scale"
    made = add_prediction(DecodedRecord((side,), (53,)), DecodedRecord((side,), (0,)), (1024,), NUMPY, "x")
    assert made.sides[0].tolist() == side.tolist()  # a reference that is 2^53 times smaller adds nothing
