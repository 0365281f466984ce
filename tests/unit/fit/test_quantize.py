"""The figures that `quantize` returns agree with its levels and codebooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES, BasisKey, basis_by_id
from nola_codec.fit.allocation import EFFECTIVE, NMSE, Objective, make_plan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.levels import Workspace
from nola_codec.fit.quantize import QuantizedForm, quantize, unit_points
from nola_codec.model.quantizers import Codebook, Dependent, Trellis
from nola_codec.prng import PHILOX

SHAPES = [(96, 640, 8), (640, 64, 8), (97, 65, 5)]
HADAMARD = NAMES["hadamard"]


def quantized(
    form: CanonicalForm, objective: Objective, exponent: float, steps: tuple[int, ...] = (0,)
) -> QuantizedForm:
    """Return a form quantized at lambda 2^exponent."""
    plan = make_plan(form, (objective,) * len(steps), 2.0**exponent, steps)
    return quantize(form, plan, HADAMARD, Workspace())


def vector(
    form: CanonicalForm, made: QuantizedForm, side: int, position: int, rung: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of a unit and their integer points, in float64."""
    unit = made.kept[position]
    length, row = int(form.lengths[side][unit]), form.rows[side][unit]
    points = unit_points(form, made, side, np.array([position]), rung)[0]
    return form.matrices[side][length][row].astype(np.float64), points.astype(np.float64)


@pytest.mark.parametrize("steps", [(0,), (-16, 0), (-24, -12, 0)])
@pytest.mark.parametrize("objective", [NMSE, EFFECTIVE])
def test_measured_equals_recomputed(
    objective: Objective, steps: tuple[int, ...], make_form: Callable[..., CanonicalForm]
) -> None:
    form = make_form(SHAPES)
    made = quantized(form, objective, -17, steps)
    assert len(made.kept) > 9
    total = float((form.strength**2).sum())
    for rung in range(len(steps)):
        there = np.flatnonzero(made.entry <= rung)
        share = made.survival[rung].prod(axis=0)
        survived = float((form.strength[made.kept] ** 2 * share)[there].sum())
        boost = (survived / total) ** -objective.boost
        for position in there.tolist():
            unit = made.kept[position]
            scale = form.singular[unit] * boost
            for side in (0, 1):
                x, points = vector(form, made, side, position, rung)
                cosine2 = (x @ points) ** 2 / ((x @ x) * (points @ points))
                value = np.array([cosine2])
                assert made.survival[rung, side, position] == pytest.approx(
                    objective.survival(value, side)[0], rel=1e-3
                )
                assert made.squares[rung, side, position] == pytest.approx(points @ points, rel=1e-4)
                key = BasisKey(PHILOX, 7, 2 * int(form.record[unit]) + side)
                peak = int(np.abs(points).max())
                whole = basis_by_id(HADAMARD).synthesize(points[None, None].astype(int), len(x), (key,), peak, NUMPY)
                norm = float(np.linalg.norm(np.asarray(whole, np.float64)))
                scale *= objective.gain(value, side)[0] * np.sqrt(cosine2) / norm
            assert made.amplitude[rung, position] == pytest.approx(16 * np.log2(scale), abs=0.02)


def test_every_family_of_quantizers_is_used_and_well_formed(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    books = [q for made in (quantized(form, NMSE, -20), quantized(form, EFFECTIVE, -14)) for q in made.quantizers]
    assert {type(q.codebook) for q in books} == {Trellis, Dependent, Codebook}
    for quantizer in books:
        if isinstance(quantizer.codebook, Trellis):
            assert quantizer.frequencies is None
            continue
        assert quantizer.frequencies is not None
        assert len(quantizer.frequencies) == quantizer.codebook.size
        assert sum(quantizer.frequencies) == 4096
        assert min(quantizer.frequencies) >= 1
        assert quantizer.frequencies == quantizer.frequencies[::-1]


def test_better_precision_is_more_alike(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    coarse, fine = (quantized(form, NMSE, value) for value in (-12, -18))
    both = np.intersect1d(coarse.kept, fine.kept)
    assert len(both) > 3
    of_coarse = coarse.survival[0][:, np.isin(coarse.kept, both)]
    of_fine = fine.survival[0][:, np.isin(fine.kept, both)]
    assert (of_fine > of_coarse).all()


def test_rungs_only_get_better(make_form: Callable[..., CanonicalForm]) -> None:
    made = quantized(make_form(SHAPES), NMSE, -18, (-32, -16, 0))
    assert set(made.entry) == {0, 1, 2}
    layered = (made.quantizer >= 0).sum(axis=0).max()
    assert layered >= 2
    old = made.entry == 0
    assert (np.diff(made.survival[:, :, old].prod(axis=1), axis=0) >= -1e-6).all()


def test_what_is_known_from_a_draft_is_not_searched_anew(make_form: Callable[..., CanonicalForm]) -> None:
    """The levels are the same whether other drafts came before or not."""
    form, space = make_form(SHAPES), Workspace()
    for exponent in (-9.0, -11.5, -12.0):
        plan = make_plan(form, (EFFECTIVE,), 2.0**exponent)
        again = quantize(form, plan, HADAMARD, space)
    fresh = quantized(form, EFFECTIVE, -12)
    trellises = [i for i, q in enumerate(fresh.quantizers) if isinstance(q.codebook, Trellis)]
    for position in range(len(fresh.kept)):
        for side in (0, 1):
            if fresh.quantizer[0, side, position] in trellises:
                one, other = (m.symbols(form, 0, side, position).tolist() for m in (fresh, again))
                assert one == other


def test_threads_change_nothing(make_form: Callable[..., CanonicalForm], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("NOLA_THREADS", threads)
        form = make_form(SHAPES)
        made = quantized(form, EFFECTIVE, -12)
        points = [vector(form, made, side, position, 0)[1] for side in (0, 1) for position in range(len(made.kept))]
        found.append((np.concatenate(points), made.amplitude, made.quantizers))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
