"""The levels of a draft can be read until a newer draft is begun, and never change silently."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nola_codec.basis import NAMES
from nola_codec.fit.allocation import EFFECTIVE, make_plan
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.levels import StaleDraftError, Workspace
from nola_codec.fit.quantize import QuantizedForm, quantize

SHAPES = [(96, 128, 4), (64, 64, 4)]


def quantized_at(form: CanonicalForm, exponent: float, workspace: Workspace) -> QuantizedForm:
    return quantize(form, make_plan(form, (EFFECTIVE,), 2.0**exponent), NAMES["hadamard"], workspace)


def all_symbols(form: CanonicalForm, quantized: QuantizedForm) -> list[bytes]:
    return [quantized.symbols(form, 0, side, unit).tobytes() for side in (0, 1) for unit in range(len(quantized.kept))]


def test_a_newer_draft_makes_an_older_one_unreadable(make_form: Callable[..., CanonicalForm]) -> None:
    form, workspace = make_form(SHAPES), Workspace()
    first = quantized_at(form, -14, workspace)
    before = all_symbols(form, first)
    second = quantized_at(form, -8, workspace)
    assert all_symbols(form, second)
    with pytest.raises(StaleDraftError, match="draft 1 was written over by draft 2"):
        first.symbols(form, 0, 0, 0)
    assert all_symbols(form, quantized_at(form, -14, workspace)) == before


def test_drafts_of_two_workspaces_leave_each_other_alone(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    first = quantized_at(form, -14, Workspace())
    before = all_symbols(form, first)
    quantized_at(form, -8, Workspace())
    assert all_symbols(form, first) == before


def test_what_does_not_live_in_the_workspace_stays_readable(make_form: Callable[..., CanonicalForm]) -> None:
    form, workspace = make_form(SHAPES), Workspace()
    first = quantized_at(form, -14, workspace)
    amplitude, squares, quantizers = first.amplitude.copy(), first.squares.copy(), first.quantizers
    quantized_at(form, -8, workspace)
    assert first.rungs == 1
    assert first.amplitude.tolist() == amplitude.tolist()
    assert first.squares.tolist() == squares.tolist()
    assert first.quantizers == quantizers
