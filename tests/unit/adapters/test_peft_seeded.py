"""PEFT's methods of few trained numbers: their draws, their functions, their formulas and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.waveft.layer import WaveFTLinear

import nola_codec
from nola_codec.adapters import dialect_of, read
from nola_codec.adapters.dialects.fixed_functions import fixed_circle, fixed_exp
from nola_codec.adapters.dialects.peft_seeded import PEFT_FOURIERFT, PEFT_WAVEFT
from nola_codec.adapters.dialects.torch_draws import normal_numbers, permutation_start
from nola_codec.adapters.dialects.wavelets import WAVELETS
from nola_codec.encoder.delta_errors import JoinedDelta, find_shared_deltas
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.safetensors_writer import dump

M = "base_model.model.layers.0.q"
N = "base_model.model.layers.1.q"
Tensors = dict[str, RawTensor]


def floats(*shape: int, dtype: str = "F32") -> RawTensor:
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return from_float32(values, dtype)


def integers(*shape: int, below: int, dtype: str = "I64") -> RawTensor:
    values = np.random.default_rng(sum(shape)).integers(0, below, shape)
    return RawTensor(dtype, shape, values.astype({"I64": "<i8", "U8": "u1"}[dtype]).tobytes())


def unilora() -> tuple[dict[str, Any], Tensors]:
    tensors = {"base_model.unilora_theta_d": floats(7)}
    for side, shape in (("A", (2, 5)), ("B", (4, 2))):
        tensors[f"{M}.unilora_indices_{side}"] = integers(*shape, below=7)
        tensors[f"{M}.unilora_scales_{side}"] = floats(*shape)
    return {"peft_type": "UNILORA", "r": 2, "theta_d_length": 7, "save_indices": True}, tensors


def tinylora() -> tuple[dict[str, Any], Tensors]:
    tensors = {f"base_model.tinylora_v.{group}": floats(17) for group in range(2)}
    for number, module in enumerate((M, N)):
        P = torch.normal(0.0, 2**-0.5, (17, 2, 2), generator=torch.Generator().manual_seed(42 + number))
        tensors |= {f"{module}.tinylora_P": from_float32(P.numpy(), "F32"),
                    f"{module}.tinylora_A": floats(2, 5), f"{module}.tinylora_B": floats(4, 2)}  # fmt: skip
    return {"peft_type": "TINYLORA", "r": 2, "u": 17}, tensors


def vblora() -> tuple[dict[str, Any], Tensors]:
    tensors = {"base_model.vblora_vector_bank": floats(6, 3), f"{M}.vblora_logits_A": floats(2, 2, 6),
               f"{M}.vblora_logits_B": floats(3, 2, 6)}  # fmt: skip
    return {"peft_type": "VBLORA", "r": 2, "num_vectors": 6, "vector_length": 3, "topk": 2}, tensors


def top_k() -> tuple[dict[str, Any], Tensors]:
    config, tensors = vblora()
    for side, shape in (("A", (2, 2)), ("B", (3, 2))):
        del tensors[f"{M}.vblora_logits_{side}"]
        tensors[f"{M}.vblora_logits_{side}_topk_indices"] = integers(*shape, 2, below=6, dtype="U8")
        tensors[f"{M}.vblora_logits_{side}_topk_weights"] = floats(*shape, 1)
    return {**config, "save_only_topk_weights": True}, tensors


def fourierft() -> tuple[dict[str, Any], Tensors]:
    config = {"peft_type": "FOURIERFT", "n_frequency": 6, "scaling": 3.0, "random_loc_seed": 9}
    return config, {f"{M}.fourierft_spectrum": floats(6)}


def waveft() -> tuple[dict[str, Any], Tensors]:
    config = {"peft_type": "WAVEFT", "n_frequency": 6, "scaling": 3.0, "random_loc_seed": 9, "wavelet_family": "db2"}
    return config, {f"{M}.waveft_spectrum": floats(6)}


GOOD: dict[str, Callable[[], tuple[dict[str, Any], Tensors]]] = {
    "UNILORA": unilora, "TINYLORA": tinylora, "VBLORA": vblora, "TOP_K": top_k, "FOURIERFT": fourierft,
    "WAVEFT": waveft,
}  # fmt: skip


def save(path: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(dump(tensors, {"format": "pt"}))
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_permutations_are_pytorchs() -> None:
    for size, count, seed in ((1, 1, 0), (10, 10, 5), (700, 700, 2**40 + 3), (576 * 576, 1000, 777), (10, 3, -1)):
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]
        assert permutation_start(seed, size, count).tolist() == drawn.tolist()


def test_normal_numbers_are_nearly_pytorchs() -> None:
    for size in (1, 2, 3, 8, 15, 16, 17, 31, 32, 50, 256):
        drawn = torch.normal(0.0, 1.0, (size,), generator=torch.Generator().manual_seed(size))
        assert np.allclose(drawn.numpy(), normal_numbers(size, size), atol=1e-5)


def test_fixed_functions() -> None:
    """They are exact to a few units in the last place, and known bits guard the order of their operations."""
    x = np.concatenate([np.linspace(-700, 5, 20001), [0.0, -746.0, -np.inf]])
    assert np.allclose(fixed_exp(x), np.exp(x), rtol=4e-16, atol=0)
    for steps in (1, 2, 3, 8, 77, 576):
        angles = 2 * np.pi * np.arange(steps) / steps
        cosine, sine = fixed_circle(steps)
        assert np.allclose(cosine, np.cos(angles), atol=2e-15)
        assert np.allclose(sine, np.sin(angles), atol=2e-15)
    cosine, sine = fixed_circle(7)
    assert [float(v).hex() for v in (cosine[1], sine[1], *fixed_exp(np.array([-0.3, -20.1])))] == KNOWN_BITS


KNOWN_BITS = ["0x1.3f3a0e28bedd2p-1", "0x1.904c37505de4bp-1", "0x1.7b4c869c37c05p-1", "0x1.00532af8b0cf5p-29"]


@pytest.mark.parametrize("family", WAVELETS)
def test_wavelets_are_pefts(family: str) -> None:
    """The factors make PEFT's delta for every wavelet, also for layers of odd sizes."""
    from peft import WaveFTConfig

    config = WaveFTConfig(n_frequency=40, wavelet_family=family, random_loc_seed=3, scaling=2.0)
    for shape in ((10, 15), (9, 12)):
        layer = WaveFTLinear(torch.nn.Linear(shape[1], shape[0]), "default", config, n_frequency=40)
        spectrum = torch.randn(40)
        layer.waveft_spectrum["default"].data.copy_(spectrum)
        tensors = {f"{M}.waveft_spectrum": from_float32(spectrum.numpy(), "F32")}
        options = {"peft_type": "WAVEFT", "n_frequency": 40, "wavelet_family": family, "random_loc_seed": 3,
                   "scaling": 2.0}  # fmt: skip
        (delta,) = PEFT_WAVEFT.combined_deltas(Adapter("peft", (), tensors, options))
        left, right = delta.factors({}, shape)
        theirs = layer.get_delta_weight("default").detach().numpy()
        assert np.allclose(left @ right * delta.scale, theirs, atol=3e-6)


def total(terms: Any) -> float:
    """Upwards, one rounding each: what sum() does not promise."""
    result = 0.0
    for each in terms:
        result += each
    return result


def numbers(tensor: RawTensor) -> Any:
    if tensor.dtype in ("I64", "U8"):
        return np.frombuffer(tensor.data, {"I64": "<i8", "U8": "u1"}[tensor.dtype]).reshape(tensor.shape).tolist()
    return np.frombuffer(tensor.data, np.float32).astype(np.float64).reshape(tensor.shape).tolist()


def by_hand(method: str, config: dict[str, Any], tensors: Tensors) -> tuple[list[list[float]], list[list[float]]]:
    """Left (4 or 9, K) and right (K, 5 or 6) of layer 0 in Python's floats, by the formulas of the specification."""
    t = {key.removeprefix("base_model.").removeprefix("model.layers.0.q."): numbers(x) for key, x in tensors.items()}
    if method == "UNILORA":
        theta = t["unilora_theta_d"]
        b, a = (
            [[theta[i] * s for i, s in zip(*rows, strict=True)]
             for rows in zip(t[f"unilora_indices_{side}"], t[f"unilora_scales_{side}"], strict=True)] for side in "BA"
        )  # fmt: skip
        return b, a
    if method == "TINYLORA":
        v, P = t["tinylora_v.0"], t["tinylora_P"]
        R = [[total(v[i] * P[i][k][m] for i in range(17)) for m in range(2)] for k in range(2)]
        return [[total(row[k] * R[k][m] for k in range(2)) for m in range(2)] for row in t["tinylora_B"]], t[
            "tinylora_A"
        ]
    bank = t["vblora_vector_bank"]

    def piece(side: str, first: int, second: int) -> list[float]:
        if method == "TOP_K":
            chosen = t[f"vblora_logits_{side}_topk_indices"][first][second]
            (weight,) = t[f"vblora_logits_{side}_topk_weights"][first][second]
            weights = [weight, 1.0 - weight]
        else:
            logits = t[f"vblora_logits_{side}"][first][second]
            chosen = sorted(range(6), key=lambda i: -logits[i])[:2]
            powers = [float(fixed_exp(np.array(logits[i] - logits[chosen[0]]))) for i in chosen]
            weights = [power / total(powers) for power in powers]
        return [total(w * bank[i][e] for w, i in zip(weights, chosen, strict=True)) for e in range(3)]

    left = [[piece("B", tile, k)[e] for k in range(2)] for tile in range(3) for e in range(3)]
    return left, [[x for tile in range(2) for x in piece("A", k, tile)] for k in range(2)]


@pytest.mark.parametrize("method", ["UNILORA", "TINYLORA", "VBLORA", "TOP_K"])
def test_factors_are_those_of_the_specification(method: str) -> None:
    config, tensors = GOOD[method]()
    adapter = Adapter("peft", (), tensors, config)
    delta = dialect_of(adapter).combined_deltas(adapter)[0]
    made = delta.factors({}, delta.shape({}))
    assert made is not None
    for ours, wanted in zip(made, by_hand(method, config, tensors), strict=True):
        assert ours.tolist() == wanted


def test_spectra_are_those_of_the_specification() -> None:
    """A layer of 4 x 5: each number at its place, by the definitions of both transforms, and known bits."""
    for method, digits in (("FOURIERFT", KNOWN_FOURIER), ("WAVEFT", KNOWN_WAVE)):
        config, tensors = GOOD[method]()
        adapter = Adapter("peft", (), tensors, config)
        (delta,) = dialect_of(adapter).combined_deltas(adapter)
        left, right = delta.factors({}, (4, 5)) or (np.zeros(0), np.zeros(0))
        places = permutation_start(9, 20, 6)
        spectrum = numbers(next(iter(tensors.values())))
        wanted = np.zeros((4, 5))
        for value, place in zip(spectrum, places.tolist(), strict=True):
            i, j = divmod(place, 5)
            for p in range(4):
                for q in range(5):
                    if method == "FOURIERFT":
                        wanted[p, q] += value * math.cos(2 * math.pi * (i * p / 4 + j * q / 5)) / 20
                    else:
                        wanted[p, q] += value * _wavelet(i, j, p, q)
        assert np.allclose(left @ right, wanted, atol=1e-14)
        assert total((left[1] * right[:, 2]).tolist()).hex() == digits


KNOWN_FOURIER = "-0x1.1616da16acc53p-4"
KNOWN_WAVE = "0x1.5ffb114c41a33p+0"


def _wavelet(i: int, j: int, p: int, q: int) -> float:
    """The element (p, q) of one coefficient of db2 in a layer of 4 x 5: padded to 6 x 8, made again as 4 x 6."""
    low = WAVELETS["db2"]
    high = [(-1) ** m * low[3 - m] for m in range(4)]
    y, x = i + 1, j + 1
    row = (high if x >= 4 else low, p + 2 - 2 * (y % 3))
    column = (high if y >= 3 else low, q + 2 - 2 * (x % 4))
    return math.prod(taps[tap] if 0 <= tap < 4 else 0.0 for taps, tap in (row, column))


@pytest.mark.parametrize("method", GOOD)
def test_good_ones_are_read(method: str, tmp_path: Path) -> None:
    adapter = read(save(tmp_path / "a", *GOOD[method]()))
    assert adapter.vectors
    assert all(vector.gain > 0 for vector in adapter.vectors)


def test_carried_numbers_are_not_said_to_change_nothing(tmp_path: Path) -> None:
    """Without a rate nothing is coded; the report has no line for coded parameters, and no word of zero deltas."""
    report = nola_codec.encode(save(tmp_path / "a", *GOOD["UNILORA"]()))
    assert report.parameters == report.carried_parameters > 0
    assert not any("changes nothing" in note for note in report.notes)
    assert "for 0 parameters" not in str(report)


def test_a_file_is_compared_with_the_logits_that_it_was_made_of(tmp_path: Path) -> None:
    """A rate leaves the largest logits only; only what is left of both is compared, and other logits differ."""
    config, tensors = GOOD["VBLORA"]()
    source = save(tmp_path / "a", config, tensors)
    nola_codec.encode(source, tmp_path / "a.nola", nmse=0.1)
    for pair in ((source, tmp_path / "a.nola"), (tmp_path / "a.nola", source)):
        found = nola_codec.compare(*pair)
        assert found.same_structure
        assert len(found.carried_equal) == 4 * len([key for key in tensors if key.endswith("logits_A")])
        assert found.nmse < 0.12
    key = next(key for key in tensors if key.endswith("logits_A"))
    other = save(tmp_path / "b", config, tensors | {key: from_float32(np.zeros(tensors[key].shape, np.float32), "F32")})
    assert nola_codec.compare(source, other).carried_different == (key,)


def test_a_spectrum_is_no_matrix_to_compare_with(tmp_path: Path) -> None:
    spectrum = save(tmp_path / "a", *GOOD["FOURIERFT"]())
    whole = save(tmp_path / "b", *GOOD["UNILORA"]())
    with pytest.raises(AdapterError, match="only the base model tells: merge both and compare those"):
        nola_codec.compare(spectrum, whole)


@pytest.mark.parametrize(
    ("method", "change", "code"),
    [
        ("UNILORA", {"theta_d_length": 8}, "bad-shape"), ("UNILORA", {"r": 3}, "bad-shape"),
        ("UNILORA", {"r": 0}, "bad-config"), ("UNILORA", {"theta_d_length": "7"}, "bad-config"),
        ("UNILORA", {"save_indices": 1}, "bad-config"), ("UNILORA", {"proj_seed": 1.5}, "bad-config"),
        ("UNILORA", {f"-{M}.unilora_indices_B": None}, "missing-partner"),
        ("UNILORA", {f"-{M}.unilora_scales_A": None}, "missing-partner"),
        ("UNILORA", {f"+{M}.unilora_scales_A": floats(2, 4)}, "bad-shape"),
        ("UNILORA", {f"+{M}.unilora_indices_A": integers(2, 5, below=9)}, "bad-shape"),
        ("UNILORA", {f"+{M}.unilora_indices_A": floats(2, 5)}, "bad-shape"),
        ("UNILORA", {"-base_model.unilora_theta_d": None}, "missing-partner"),
        ("TINYLORA", {"u": 18}, "bad-shape"), ("TINYLORA", {"r": 3}, "rank-mismatch"),
        ("TINYLORA", {"weight_tying": 1.5}, "bad-config"),
        ("TINYLORA", {"-base_model.tinylora_v.1": None}, "missing-partner"),
        ("TINYLORA", {"+base_model.tinylora_v.2": floats(17)}, "bad-shape"),
        ("TINYLORA", {"weight_tying": 1.0}, "bad-shape"),
        ("TINYLORA", {f"-{M}.tinylora_B": None}, "missing-partner"),
        ("TINYLORA", {f"-{M}.tinylora_A": None}, "missing-partner"),
        ("TINYLORA", {f"+{M}.tinylora_P": floats(17, 2, 3)}, "bad-shape"),
        ("VBLORA", {"num_vectors": 7}, "bad-shape"), ("VBLORA", {"topk": 7}, "bad-config"),
        ("VBLORA", {"save_only_topk_weights": True}, "missing-partner"), ("VBLORA", {"r": 1}, "bad-shape"),
        ("VBLORA", {f"-{M}.vblora_logits_A": None}, "missing-partner"),
        ("TOP_K", {"save_only_topk_weights": False}, "missing-partner"),
        ("TOP_K", {f"+{M}.vblora_logits_A_topk_indices": integers(2, 2, 2, below=200, dtype="U8")}, "bad-shape"),
        ("TOP_K", {f"+{M}.vblora_logits_A_topk_weights": floats(2, 2, 2)}, "bad-shape"),
        ("FOURIERFT", {"n_frequency": 7}, "rank-mismatch"), ("FOURIERFT", {"scaling": None}, "bad-config"),
        ("FOURIERFT", {"scaling": math.inf}, "bad-config"), ("FOURIERFT", {"random_loc_seed": None}, "bad-config"),
        ("FOURIERFT", {"n_frequency_pattern": [1]}, "bad-config"),
        ("FOURIERFT", {"n_frequency_pattern": {"q": -1}}, "bad-config"),
        ("FOURIERFT", {f"+{M}.fourierft_spectrum": floats(6, 1)}, "bad-shape"),
        ("FOURIERFT", {f"+{M}.other": floats(6)}, "unknown-key"),
        ("FOURIERFT", {f"-{M}.fourierft_spectrum": None}, "empty-adapter"),
        ("FOURIERFT", {f"+{M}.fourierft_spectrum": integers(6, below=3)}, "not-float"),
        ("WAVEFT", {"wavelet_family": "db11"}, "bad-config"), ("WAVEFT", {"wavelet_family": ["db1"]}, "bad-config"),
        ("WAVEFT", {"use_idwt": "no"}, "bad-config"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_ones_are_refused(method: str, change: dict[str, Any], code: str, tmp_path: Path) -> None:
    config, tensors = GOOD[method]()
    for key, value in change.items():
        if key.startswith("-"):
            del tensors[key[1:]]
        elif key.startswith("+"):
            tensors[key[1:]] = value
        else:
            config[key] = value
    if not tensors:
        tensors["base_model.model.x"] = floats(2)
    with pytest.raises(AdapterError) as caught:
        read(save(tmp_path / "a", config, tensors))
    assert caught.value.code == code


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for method, key in (("FOURIERFT", f"{M}.fourierft_spectrum"), ("VBLORA", f"{M}.vblora_logits_A")):
        config, tensors = GOOD[method]()
        shape = tensors[key].shape
        tensors[key] = RawTensor("F32", shape, np.full(shape, np.nan, "<f4").tobytes())
        with pytest.raises(AdapterError) as caught:
            read(save(tmp_path / method, config, tensors))
        assert caught.value.code == "not-finite"


def test_logits_of_minus_infinity_are_never_chosen(tmp_path: Path) -> None:
    """A model of the top-k form that was saved whole again has them."""
    config, tensors = vblora()
    key = f"{M}.vblora_logits_A"
    logits = np.full((2, 2, 6), -np.inf, "<f4")
    logits[..., 4], logits[..., 1] = 0.5, 0.25
    tensors[key] = RawTensor("F32", logits.shape, logits.tobytes())
    adapter = read(save(tmp_path / "a", config, tensors))
    assert adapter.raw[key] == tensors[key]
    (delta,) = dialect_of(adapter).combined_deltas(adapter)
    bank = adapter.vectors[0].values.astype(np.float64)
    weight = 1 / (1 + math.exp(-0.25))
    left, right = delta.factors({v.name: v.values for v in adapter.vectors}, (9, 6)) or (np.zeros(0), np.zeros(0))
    assert np.allclose(right[0, :3], weight * bank[4] + (1 - weight) * bank[1])


def test_a_layer_that_is_too_large_is_refused() -> None:
    config, tensors = fourierft()
    (delta,) = PEFT_FOURIERFT.combined_deltas(Adapter("peft", (), tensors, config))
    with pytest.raises(AdapterError, match="merge the decoded directory with PEFT") as caught:
        delta.factors({}, (1 << 15, 1 << 15))
    assert caught.value.code == "limit"
    many = {f"{M}.fourierft_spectrum": floats(20000)}
    (delta,) = PEFT_FOURIERFT.combined_deltas(Adapter("peft", (), many, {**config, "n_frequency": 20000}))
    with pytest.raises(AdapterError, match="more products than a merge may") as caught:
        delta.factors({}, (14000, 15000))
    assert caught.value.code == "limit"


def test_few_indices_do_not_make_large_factors(tmp_path: Path) -> None:
    """A megabyte of indices could stand for factors of a terabyte."""
    config = {"peft_type": "VBLORA", "r": 2, "num_vectors": 6, "vector_length": 65536, "save_only_topk_weights": True,
              "topk": 1}  # fmt: skip
    tensors = {"base_model.vblora_vector_bank": floats(6, 65536)}
    for side, shape in (("A", (2, 2000, 1)), ("B", (2000, 2, 1))):
        tensors[f"{M}.vblora_logits_{side}_topk_indices"] = integers(*shape, below=6, dtype="U8")
    with pytest.raises(AdapterError, match="elements of A and B") as caught:
        read(save(tmp_path / "a", config, tensors))
    assert caught.value.code == "limit"


def test_deltas_that_share_a_vector_are_measured_as_one(tmp_path: Path) -> None:
    """Layers 0 and 1 share theta; each of them is counted once."""
    config, tensors = unilora()
    tensors |= {key.replace("layers.0", "layers.1"): tensor for key, tensor in tensors.items()}
    adapter = read(save(tmp_path / "a", config, tensors))
    theta = next(v for v in adapter.vectors if v.name.endswith("theta_d"))
    only = replace(adapter, vectors=(theta,))
    shared = find_shared_deltas(only, only.vectors)
    joined = shared.by_record[0].composite
    assert isinstance(joined, JoinedDelta)
    one, two = dialect_of(only).combined_deltas(only)
    values = {theta.name: theta.values.astype(np.float64)}
    assert shared.by_record[0].energy() == pytest.approx(
        one.squared_distance(values, None) + two.squared_distance(values, None)
    )
    assert joined.combine(values).shape == joined.shape({}) == (40,)
