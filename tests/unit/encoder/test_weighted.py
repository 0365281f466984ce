"""Encoding by what components gain, and by a caller's importance: bits move, the report and the header say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError
from nola_codec.fit.weighting import Moments

PREFIX = "base_model.model."


def moments_of(synthetic: Any, gain: dict[str, float]) -> dict[str, Moments]:
    """Return moments of gradients -gain delta_W / |delta_W|^2 with noise; the inputs stretch one direction."""
    rng = np.random.default_rng(0)
    found = {}
    for path in synthetic.scalings:
        a, b = (synthetic.tensors[f"{PREFIX}{path}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        delta = b @ a
        rows = [
            -gain.get(path, 1.0) * delta / (delta**2).sum() + rng.standard_normal(delta.shape) * 1e-3 for _ in range(4)
        ]
        inputs = rng.standard_normal((32, a.shape[1])).astype(np.float32)
        inputs[:, 0] *= 10
        found[PREFIX + path] = Moments(
            inputs,
            np.sum([b.T @ g @ a.T for g in rows], axis=0),
            np.sum([(g @ a.T).T @ (g @ a.T) for g in rows], axis=0),
            np.sum([(b.T @ g) @ (b.T @ g).T for g in rows], axis=0),
        )
    return found


def nmse_by_path(report: nola_codec.EncodeReport) -> dict[str, float]:
    return {t.name.removeprefix(PREFIX): t.nmse for t in report.tensors}


def test_what_gains_more_is_kept_better(many: Any) -> None:
    gain = {path: 20.0 if ".v" in path else 1.0 for path in many.scalings}
    _, plain = many.encode(size=12_000)
    data, report = many.encode(size=12_000, fit="activations", weighting=moments_of(many, gain))
    assert len(data) <= 12_000
    before, after = nmse_by_path(plain), nmse_by_path(report)
    wanted = [p for p in gain if ".v" in p]
    assert np.mean([after[p] for p in wanted]) < 0.8 * np.mean([before[p] for p in wanted])
    assert np.mean([after[p] for p in gain if p not in wanted]) > np.mean([before[p] for p in gain if p not in wanted])


def test_activation_errors_are_measured_on_what_is_decoded(many: Any) -> None:
    moments = moments_of(many, {})
    data, report = many.encode(size=12_000, fit="activations", weighting=moments)
    lost = energy = 0.0
    with nola_codec.load(data) as opened:
        for path in many.scalings:
            a, b = (many.tensors[f"{PREFIX}{path}.lora_{x}.weight"] for x in "AB")
            wanted = many.scalings[path] * b @ a
            inputs = moments[PREFIX + path].inputs.T
            own = (((wanted - opened.delta_weight(PREFIX + path).numpy()) @ inputs) ** 2).sum()
            whole = ((wanted @ inputs) ** 2).sum()
            tensor = next(t for t in report.tensors if t.name == PREFIX + path)
            assert tensor.activation_error == pytest.approx(own / whole, rel=1e-3)
            lost, energy = lost + own, energy + whole
        assert opened.header.measured["activation_error"] == report.activation_error
    assert report.activation_error == pytest.approx(lost / energy, rel=1e-3)


def test_without_a_calibration_set_nothing_is_said_of_activations(many: Any) -> None:
    data, report = many.encode(size=12_000, importance={"*": 2.0})
    assert report.activation_error is None
    assert all(t.activation_error is None for t in report.tensors)
    with nola_codec.load(data) as opened:
        assert "activation_error" not in opened.header.measured


def test_importance_moves_bytes_and_equal_importance_moves_none(many: Any) -> None:
    _, plain = many.encode(size=12_000)
    _, more = many.encode(size=12_000, importance={"layers.*.v": 8.0})
    before, after = nmse_by_path(plain), nmse_by_path(more)
    assert all(after[p] < before[p] for p in before if ".v" in p)
    _, equal = many.encode(size=12_000, importance={"*": 2.0})
    assert equal.nmse == pytest.approx(plain.nmse, rel=0.02)
    assert equal.effective_error == pytest.approx(plain.effective_error, rel=0.02)


def test_importance_of_nothing_drops_a_tensor(many: Any) -> None:
    _, report = many.encode(size=12_000, importance={"layers.0.q": 0})
    kept = {t.name: t.kept for t in report.tensors}
    assert kept[PREFIX + "layers.0.q"] == 0
    assert min(count for name, count in kept.items() if name != PREFIX + "layers.0.q") > 0


def test_an_error_is_reached_in_the_weighted_objective(many: Any) -> None:
    gain = {path: 20.0 if ".v" in path else 1.0 for path in many.scalings}
    _, report = many.encode(error=0.1, fit="activations", weighting=moments_of(many, gain))
    assert report.effective_error is not None
    assert 0.09 < report.effective_error <= 0.1


def test_calibration_that_fits_no_module_or_shows_no_gain(many: Any) -> None:
    moments = moments_of(many, {})
    with pytest.raises(EncodeError, match=r"no moments for 1 of 30 modules, the first .*layers\.3\.q"):
        many.encode(size=12_000, fit="activations",
                    weighting={k: v for k, v in moments.items() if k != PREFIX + "layers.3.q"})  # fmt: skip
    against = {name: replace(m, cross=-m.cross) for name, m in moments.items()}
    with pytest.raises(EncodeError, match="does not lower the loss") as caught:
        many.encode(size=12_000, fit="activations", weighting=against)
    assert caught.value.code == "calibration"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "gradients"}, "fit: expected one of weights, activations, task, found 'gradients'"),
        ({"fit": "activations"}, "fit activations needs what a calibration set says"),
        ({"weighting": {}}, "a calibration set serves fit activations only"),
        ({"fit": "activations", "weighting": {}, "nmse": 0.1}, "fit activations weighs components by more than"),
        ({"importance": {}, "objective": "nmse"}, "importance weighs components by more than"),
        ({"importance": {}, "bits": 4}, "importance weighs components, and the factor form"),
    ],
)
def test_options_without_their_partners(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        EncodeOptions(**options)
    assert caught.value.code == "option"
