"""Drafts estimate what a file will have, and a newer draft never changes an older one silently."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nola_codec.encoder.assemble import code_rungs, estimate_bytes
from nola_codec.encoder.content import QuantizedAdapter
from nola_codec.encoder.drafts import Draft, Drafter, make_drafter
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.measuring import measure_rung
from nola_codec.encoder.pipeline import canonical_form, code_file
from nola_codec.fit.allocation import EFFECTIVE, NMSE, Objective
from nola_codec.fit.levels import StaleDraftError


def drafter_for(job: EncodeJob, objective: Objective = EFFECTIVE) -> Drafter:
    return make_drafter(job, canonical_form(job), objective)


def all_symbols(draft: Draft) -> list[bytes]:
    return [symbols.tobytes() for rung in draft.content.symbols for symbols in rung]


def at(drafter: Drafter, exponent: float) -> Draft:
    """Make a draft at a lambda relative to the mean energy of a unit."""
    return drafter.draft(2.0 ** (drafter.log2_unit + exponent))


def test_a_newer_draft_does_not_change_an_older_one_silently(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    first = at(drafter, -10)
    before = all_symbols(first)
    assert all_symbols(first) == before
    second = at(drafter, -6)
    assert all_symbols(second) != before
    with pytest.raises(StaleDraftError):
        all_symbols(first)
    with pytest.raises(StaleDraftError):
        code_rungs(first.content, first.sizes)
    assert all_symbols(at(drafter, -10)) == before


@pytest.mark.parametrize("objective", [EFFECTIVE, NMSE])
@pytest.mark.parametrize("exponent", [-12.0, -8.0, -4.0])
def test_estimates_are_near_what_is_measured(
    objective: Objective, exponent: float, make_job: Callable[..., EncodeJob]
) -> None:
    job = make_job(objective=objective.name)
    drafter = drafter_for(job, objective)
    draft = at(drafter, exponent)
    weights = drafter.record_weights()
    errors = drafter.effective_errors(draft, weights)
    quantized = QuantizedAdapter(draft.content, draft.sizes, errors, weights)
    file = code_file(job, quantized)
    assert len(file.data) == pytest.approx(draft.bytes, rel=0.02, abs=16)
    assert draft.bytes == estimate_bytes(draft.content, draft.sizes, job.envelope, job.raw_sections)
    measured = measure_rung(job, quantized, 0)
    if objective is NMSE:
        assert errors is None
        assert draft.error == pytest.approx(measured.squared_errors.sum() / job.energies.sum(), rel=1e-3)
    else:
        assert errors is not None
        assert draft.error == pytest.approx(errors[0].sum() / weights.sum())
    assert 0.5 < draft.error / drafter.expected_error(draft.plan) < 2


def test_nothing_is_kept_in_an_empty_draft(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    empty = drafter.draft_empty()
    assert len(empty.plan.kept) == 0
    assert empty.error == 1.0
    assert empty.bytes == drafter.empty_bytes
    assert set(b"".join(all_symbols(empty))) == set()


def test_smaller_lambdas_cost_more_and_lose_less(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    drafts = [at(drafter, exponent) for exponent in (-14, -11, -8, -5, -2)]
    sizes, errors = [d.bytes for d in drafts], [d.error for d in drafts]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert np.ptp(sizes) > 1000
