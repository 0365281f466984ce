"""The factor form: its size is simple arithmetic, and it keeps the energy that a random basis must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nola_codec


@pytest.mark.parametrize(("num_basis", "bits"), [(500, 4), (500, 1), (200, 8), (50, 16), (777, 3)])
def test_size_is_coefficients_times_bits(num_basis: int, bits: int, make_synthetic: Callable[..., Any]) -> None:
    wide = make_synthetic(only=("layers.0.q", "layers.1.q", "layers.10.q", "wide"))
    encoded, report = wide.encode(num_basis=num_basis, bits=bits)
    facts = nola_codec.inspect(encoded)
    counts = {"layers.0.q": (768, 1024), "layers.1.q": (768, 1024), "layers.10.q": (768, 1024), "wide": (320, 4096)}
    coefficients = sum(min(num_basis, n) for pair in counts.values() for n in pair)
    assert facts.coefficients == coefficients
    payload = coefficients * bits / 8
    assert payload * 0.9 < facts.bytes_by_part["coefficients"] <= payload + 8
    # Names, configuration, two scales a module; a Lloyd-Max codebook of 8 bits is spelt out.
    assert report.bytes <= payload + (1100 if bits == 8 else 500)
    assert (report.form, report.objective) == ("factor", "nmse")
    assert report.effective_error is None


def test_energy_kept_is_about_the_share_of_coefficients(make_synthetic: Callable[..., Any]) -> None:
    """A projection of both factors on k of N directions keeps k/N of each; fitting them together keeps more."""
    wide = make_synthetic(only=("layers.0.q", "layers.1.q"))
    kept = {k: 1 - wide.encode(num_basis=k, bits=8)[1].nmse for k in (100, 300, 768)}
    assert list(kept.values()) == sorted(kept.values())
    for num_basis, share in kept.items():
        # Each factor keeps its share, so the product of the shares is a lower bound.
        assert share >= 0.9 * (num_basis / 768) * (num_basis / 1024)
    assert kept[100] < 0.5  # no 200 random directions hold half of 1792 numbers
    assert kept[768] > 0.75


def test_what_is_lost_is_said_plainly(synthetic: Any) -> None:
    _, report = synthetic.encode(num_basis=20)
    assert report.nmse > 0.5
    assert len(report.notes) == 1
    assert f"{report.nmse:.1%} of the delta's energy is lost" in report.notes[0]
    assert synthetic.encode(bits=8)[1].notes == ()


def test_bits_alone_takes_every_coefficient(synthetic: Any) -> None:
    encoded, report = synthetic.encode(bits=8)
    assert nola_codec.inspect(encoded).coefficients >= 0.9 * report.parameters
    assert report.nmse < 1e-3


def test_more_bits_lose_less(synthetic: Any) -> None:
    errors = [synthetic.encode(bits=bits)[1].nmse for bits in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1
    assert errors[2] < 0.05


@pytest.mark.parametrize("basis", ["hadamard", "rademacher", "uniform"])
def test_every_basis_serves(basis: str, synthetic: Any) -> None:
    encoded, report = synthetic.encode(num_basis=64, basis=basis)
    facts = nola_codec.inspect(encoded)
    assert facts.bases == (basis,)
    assert facts.form == ("factor",)
    assert 0.3 < report.nmse < 1


def test_a_new_rank_keeps_every_scaling(synthetic: Any) -> None:
    encoded, report = synthetic.encode(bits=8, rank=2)
    with nola_codec.load(encoded) as opened:
        assert {r.kind.rank for r in opened.header.pairs} == {2}
        assert {r.name.removeprefix("base_model.model."): r.kind.scaling for r in opened.header.pairs} == (
            synthetic.scalings
        )
        config = opened.header.config
    assert config is not None
    assert config["r"] == 2
    assert not config["rank_pattern"]
    assert synthetic.nmse(encoded) == pytest.approx(report.nmse, rel=1e-6)
