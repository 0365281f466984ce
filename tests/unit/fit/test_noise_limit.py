"""The limit of noise, and the objectives that keep to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nola_codec.fit.allocation import EFFECTIVE
from nola_codec.fit.canonical_form import DENSE, LORA_B, CanonicalForm
from nola_codec.fit.noise_limit import NOISE_PER_OUTPUT, NOISE_RANGE, QUIETER_OBJECTIVES, noise_limit

SHAPES = ((96, 64, 4), (128, 64, 2))


def with_energy(form: CanonicalForm, energy: float) -> CanonicalForm:
    """Return the form with strengths that have this sum of squares."""
    return replace(form, strength=form.strength * np.sqrt(energy / float((form.strength**2).sum())))


def test_it_is_a_squared_norm_for_an_output(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    energy = (96 + 128) * NOISE_PER_OUTPUT / 2
    assert noise_limit(with_energy(form, energy)) == pytest.approx(2.0)
    assert noise_limit(with_energy(form, 2 * energy)) == pytest.approx(1.0)
    assert noise_limit(with_energy(form, 1e6)) == NOISE_RANGE[0]
    assert noise_limit(with_energy(form, 1e-6)) == NOISE_RANGE[1]


def test_it_goes_by_the_energy_before_weights(make_form: Callable[..., CanonicalForm]) -> None:
    form = with_energy(make_form(SHAPES), (96 + 128) * NOISE_PER_OUTPUT)
    weighted = replace(form, strength=form.strength * np.where(form.record == 0, 3.0, 0.1), energy=form.strength**2)
    assert noise_limit(weighted) == noise_limit(form)


def test_vectors_have_no_part_in_it(make_form: Callable[..., CanonicalForm]) -> None:
    form = with_energy(make_form(SHAPES), 1e6)
    roles = np.where(form.roles == LORA_B, DENSE, form.roles)
    assert noise_limit(replace(form, roles=roles)) == NOISE_RANGE[1]


def test_each_objective_is_quieter_than_the_one_before() -> None:
    assert QUIETER_OBJECTIVES[0] == EFFECTIVE
    gammas = np.array([objective.gamma for objective in QUIETER_OBJECTIVES])
    assert (np.diff(gammas[:, :3], axis=0) < 0).all()
    assert (gammas >= 1).all()
    assert (gammas[:, 1] >= gammas[:, 0]).all()
    assert all(objective.boost == EFFECTIVE.boost for objective in QUIETER_OBJECTIVES)
