"""Figures of components agree with their definitions on dense gradients; weights and precisions are optimal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nola_codec.basis import NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import EFFECTIVE, make_plan
from nola_codec.fit.canonical_form import FormSettings, make_canonical_form
from nola_codec.fit.components import singular_components
from nola_codec.fit.weighted_plan import best_precisions
from nola_codec.fit.weighting import (
    CAP,
    FLOOR,
    TRUST,
    Moments,
    activation_errors,
    component_figures,
    match_moments,
    weigh,
)
from nola_codec.model.adapter import LoraModule
from nola_codec.prng import PHILOX

OUT, IN, RANK, ROWS = 20, 12, 3, 5


def module_of(seed: int = 0, *, name: str = "x", scaling: float = 2.0, out: int = OUT) -> LoraModule:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((RANK, IN), (out, RANK)))
    return LoraModule(name, a, b, (RANK, IN), (out, RANK), scaling)


def moments_of(module: LoraModule, gradients: np.ndarray) -> Moments:
    a, b = module.lora_A.astype(np.float64), module.lora_B.astype(np.float64)
    return Moments(
        np.eye(IN, dtype=np.float32),
        sum(b.T @ g @ a.T for g in gradients),
        sum((g @ a.T).T @ (g @ a.T) for g in gradients),
        sum((b.T @ g) @ (b.T @ g).T for g in gradients),
    )


def gradients_of(module: LoraModule, seed: int = 1) -> np.ndarray:
    """Return gradients of rows that point down along the delta, with noise."""
    noise = np.random.default_rng(seed).standard_normal((ROWS, len(module.lora_B), IN))
    return noise - module.scaling * module.lora_B @ module.lora_A


@pytest.mark.parametrize("scaling", [2.0, -0.5])
def test_figures_are_what_they_are_defined_as(scaling: float) -> None:
    module = module_of(scaling=scaling)
    parts, gradients = singular_components(module.lora_B, module.lora_A), gradients_of(module)
    figures = component_figures(module, parts, moments_of(module, gradients))
    for c in range(RANK):
        u, v = parts.u[c].astype(np.float64), parts.v[c].astype(np.float64)
        s = scaling * parts.s[c]
        assert figures.value[c] == pytest.approx(-s * sum(u @ g @ v for g in gradients), rel=1e-4)
        assert figures.noise[0, c] == pytest.approx(s**2 * sum(((g @ v) ** 2).sum() for g in gradients) / OUT, rel=1e-4)
        assert figures.noise[1, c] == pytest.approx(
            s**2 * sum(((g.T @ u) ** 2).sum() for g in gradients) / IN, rel=1e-4
        )


def test_a_deficient_factor_has_figures_too() -> None:
    module = module_of()
    module = replace(module, lora_B=np.concatenate((module.lora_B[:, :2], module.lora_B[:, :1]), axis=1))
    parts = singular_components(module.lora_B, module.lora_A)
    figures = component_figures(module, parts, moments_of(module, gradients_of(module)))
    assert figures.value[0] > 0
    assert abs(figures.value[2]) < 1e-5 * figures.value[0]


def test_moments_of_another_shape_or_without_numbers_are_refused() -> None:
    module = module_of()
    parts, moments = singular_components(module.lora_B, module.lora_A), moments_of(module, gradients_of(module))
    with pytest.raises(EncodeError, match=r"x: moments: expected those of lora_A \(3, 12\)") as caught:
        component_figures(module, parts, replace(moments, cross=np.zeros((2, 2))))
    assert caught.value.code == "moments"
    with pytest.raises(EncodeError, match="not finite"):
        component_figures(module, parts, replace(moments, left=np.full((RANK, RANK), np.nan)))
    with pytest.raises(EncodeError, match="no moments for 1 of 2 modules, the first y"):
        match_moments([module, replace(module, name="y")], {"x": moments})


def test_weights_keep_their_sum_and_stay_off_the_floor() -> None:
    energy, value = np.array([4.0, 2.0, 1.0, 1.0]), np.array([1.0, 3.0, -0.5, 0.0])
    noise = np.array([[1.0, 1.0, 1.0, 0.0], [1e-6, 1.0, 1.0, 1.0]])
    weight, tolerance = weigh(energy, value, noise)
    assert weight.sum() == pytest.approx(energy.sum())
    assert weight[1] == pytest.approx(3 * weight[0])
    assert weight[2] / weight[0] == pytest.approx(FLOOR * 1.0 / (1.0 * 8 / 3.5))
    assert tolerance[0, 1] == pytest.approx(3**TRUST * tolerance[0, 0])
    assert tolerance[1, 0] == CAP**TRUST  # hardly felt
    assert tolerance[0, 3] == 1.0  # not felt at all: nothing is known
    assert tolerance.min() >= CAP**-TRUST


def test_an_adapter_that_gains_nothing_is_refused() -> None:
    with pytest.raises(EncodeError, match="does not lower the loss") as caught:
        weigh(np.ones(2), np.array([1.0, -2.0]), np.ones((2, 2)))
    assert caught.value.code == "calibration"


def test_nothing_weighs_nothing() -> None:
    assert weigh(np.zeros(2), np.zeros(2), np.zeros((2, 2)))[0].tolist() == [0, 0]


def test_activation_errors_are_those_of_the_inputs() -> None:
    rng, module, other = np.random.default_rng(3), module_of(), module_of(9)
    moments = replace(moments_of(module, gradients_of(module)), inputs=rng.standard_normal((7, IN)).astype(np.float32))
    lost, energy = activation_errors(module, other.lora_B, other.lora_A, moments)
    wanted = module.lora_B @ module.lora_A
    assert lost == pytest.approx((((wanted - other.lora_B @ other.lora_A) @ moments.inputs.T) ** 2).sum(), rel=1e-4)
    assert energy == pytest.approx(((wanted @ moments.inputs.T) ** 2).sum(), rel=1e-4)
    assert activation_errors(module, module.lora_B, module.lora_A, moments)[0] == 0


def test_precisions_cost_least() -> None:
    rng = np.random.default_rng(0)
    cosine2 = np.repeat(np.sort(rng.uniform(0, 1, (2, 9)), axis=1), 2, axis=1)
    rate = np.repeat(np.sort(rng.uniform(0, 3, (2, 9)), axis=1), 2, axis=1)
    weight, gamma = rng.uniform(0, 1, 40), rng.uniform(1, 60, (2, 40))
    found = best_precisions(weight, gamma, cosine2, rate, (64, 100), 1e-3)
    for unit in range(40):
        survival = [cosine2[s] / (cosine2[s] + (1 - cosine2[s]) / gamma[s, unit]) for s in (0, 1)]
        cost = weight[unit] * (1 - survival[0] * survival[1]) + 1e-3 * (64 * rate[0] + 100 * rate[1])
        assert cost[found[unit]] == pytest.approx(cost.min())
    assert len(set(found.tolist())) > 3


def _form(modules: list[LoraModule], **weights: object) -> object:
    settings = FormSettings(NAMES["hadamard"], PHILOX, 1, **weights)
    return make_canonical_form(modules, [*range(len(modules))], settings)


def test_importance_moves_bits() -> None:
    modules = [module_of(0, name="x"), module_of(0, name="y")]
    plain, form = _form(modules), _form(modules, importance=np.array([1.0, 9.0]))
    assert (form.strength**2).sum() == pytest.approx((plain.strength**2).sum())
    assert form.strength[RANK:] / form.strength[:RANK] == pytest.approx([3.0] * RANK)
    precision = make_plan(form, (EFFECTIVE,), 1e-4).precision
    assert (precision[RANK:] > precision[:RANK]).all()


def test_what_tolerates_noise_is_coded_more_coarsely() -> None:
    modules = [module_of(0, name="x"), module_of(0, name="y")]
    base = gradients_of(modules[0])
    moments = []
    for spread in (0.2, 3.0):  # equal values, unequal noise: what is added cancels between rows
        parts = np.random.default_rng(5).standard_normal((ROWS, OUT, IN)) * spread
        moments.append(moments_of(modules[0], base.mean(axis=0) + parts - parts.mean(axis=0)))
    form = _form(modules, moments=moments)
    assert form.strength[:RANK] == pytest.approx(form.strength[RANK:])
    assert (form.tolerance[:, :RANK] > form.tolerance[:, RANK:]).all()
    plan = make_plan(form, (EFFECTIVE,), 1e-3)
    assert plan.precision[plan.kept < RANK].mean() < plan.precision[plan.kept >= RANK].mean()
