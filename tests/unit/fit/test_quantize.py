"""What `quantize` says of its vectors is what its levels and codebooks say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES, BasisKey, basis_by_id
from nola_codec.fit.allocation import EFFECTIVE, NMSE, Objective, make_plan
from nola_codec.fit.bank import Bank
from nola_codec.fit.quantize import Quantized, quantize
from nola_codec.prng import PHILOX

SHAPES = [(96, 256, 8), (256, 64, 8), (97, 65, 5)]
HADAMARD = NAMES["hadamard"]


def vectors(bank: Bank, made: Quantized, side: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit's coefficients, and the integer points they became, in float64."""
    unit = made.kept[position]
    length, row = int(bank.lengths[side][unit]), bank.rows[side][unit]
    quantizer = made.quantizers[made.rung[side, position]]
    assert quantizer is not None
    levels = made.levels[side][length][row].astype(int)
    points = np.array(quantizer.codebook.points, np.float64)[levels + quantizer.codebook.size // 2]
    return bank.matrices[side][length][row].astype(np.float64), points


@pytest.mark.parametrize("objective", [NMSE, EFFECTIVE])
def test_measured_equals_recomputed(objective: Objective, make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(SHAPES)
    made = quantize(bank, make_plan(bank, objective, 2.0**-12), HADAMARD)
    assert len(made.kept) > 6
    for position, unit in enumerate(made.kept):
        scale = bank.singular[unit]
        for side in (0, 1):
            x, points = vectors(bank, made, side, position)
            cosine2 = (x @ points) ** 2 / ((x @ x) * (points @ points))
            assert made.cosine2[side, position] == pytest.approx(cosine2, rel=1e-4)
            value = np.array([cosine2])
            assert made.survival[side, position] == pytest.approx(objective.survival(value, side)[0], rel=1e-4)
            key = BasisKey(PHILOX, 7, 2 * int(bank.module[unit]) + side)
            peak = int(np.abs(points).max())
            whole = basis_by_id(HADAMARD).synthesize(points[None, None].astype(int), len(x), (key,), peak, NUMPY)
            norm = float(np.linalg.norm(np.asarray(whole, np.float64)))
            assert made.norms[side, position] == pytest.approx(norm, rel=1e-5)
            scale *= objective.gain(value, side)[0] * np.sqrt(cosine2) / norm
        assert made.amplitude[position] == pytest.approx(16 * np.log2(scale), abs=0.01)


def test_bits_are_the_entropy_of_the_levels(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(SHAPES)
    made = quantize(bank, make_plan(bank, NMSE, 2.0**-12), HADAMARD)
    bits = 0.0
    for position in range(len(made.kept)):
        for side in (0, 1):
            quantizer = made.quantizers[made.rung[side, position]]
            assert quantizer is not None
            assert quantizer.frequencies is not None
            _, points = vectors(bank, made, side, position)
            symbols = np.searchsorted(quantizer.codebook.points, points)
            bits -= np.log2(np.array(quantizer.frequencies)[symbols] / 4096).sum()
    # Units dropped after quantizing (all zero on one side) are counted, and cost next to nothing.
    assert made.coefficient_bits == pytest.approx(bits, rel=0.01)


def test_frequencies_are_symmetric_and_complete(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(SHAPES)
    made = quantize(bank, make_plan(bank, NMSE, 2.0**-14), HADAMARD)
    used = [q for q in made.quantizers if q is not None]
    assert len(used) > 3
    for quantizer in used:
        assert quantizer.frequencies is not None
        assert sum(quantizer.frequencies) == 4096
        assert min(quantizer.frequencies) >= 1
        assert quantizer.frequencies == quantizer.frequencies[::-1]
        assert quantizer.codebook.points == tuple(-p for p in reversed(quantizer.codebook.points))


def test_better_precision_is_more_alike(make_bank: Callable[..., Bank]) -> None:
    bank = make_bank(SHAPES)
    coarse, fine = (quantize(bank, make_plan(bank, NMSE, value), HADAMARD) for value in (2.0**-10, 2.0**-16))
    both = np.intersect1d(coarse.kept, fine.kept)
    assert len(both) > 3
    of_coarse = coarse.cosine2[:, np.isin(coarse.kept, both)]
    of_fine = fine.cosine2[:, np.isin(fine.kept, both)]
    assert (of_fine > of_coarse).all()


def test_threads_change_nothing(make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("NOLA_THREADS", threads)
        bank = make_bank(SHAPES)
        made = quantize(bank, make_plan(bank, EFFECTIVE, 2.0**-12), HADAMARD)
        points = [vectors(bank, made, side, position)[1] for side in (0, 1) for position in range(len(made.kept))]
        found.append((np.concatenate(points), made.amplitude, made.quantizers))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
