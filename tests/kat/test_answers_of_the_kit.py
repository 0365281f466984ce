"""The package gives the known answers of the conformance kit, in NumPy and in PyTorch."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from conformance_kit import KIT

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.basis.hadamard import block_and_passes
from nola_codec.container.draw_wire import draw_from_wire
from nola_codec.container.limits import DEFAULT_LIMITS
from nola_codec.container.quantizer_wire import quantizer_from_wire
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.decoder.prediction import add_prediction
from nola_codec.entropy import CODECS
from nola_codec.entropy.adaptive import IntegerReader, IntegerWriter
from nola_codec.model.quantizers import Runs, SymbolModel
from nola_codec.prng import PHILOX, signs, subset, words
from nola_codec.prng.draws import draw_tensor
from nola_codec.prng.mt19937 import mt19937
from nola_codec.quant.points import book_points
from nola_codec.quant.scales import layer_weight, mantissa_and_shift, scale_to_int16


@pytest.fixture(scope="module", params=["numpy", "torch"])
def xp(request: pytest.FixtureRequest) -> Arrays:
    """Each array library."""
    return NUMPY if request.param == "numpy" else TorchArrays()


@cache
def answers(name: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads((KIT / "answers" / f"{name}.json").read_text(encoding="utf-8"))
    assert made
    return made


def test_words(xp: Arrays) -> None:
    for a in answers("words"):
        made = words(PHILOX, seed=int(a["seed"]), stream=a["t"], purpose=a["purpose"], start=0, count=1001, xp=xp)
        assert xp.numpy(made)[:10].tolist() == a["words"]
        assert int(made[1000]) == a["word_1000"]


def test_signs(xp: Arrays) -> None:
    for a in answers("signs"):
        key = {"seed": int(a["seed"]), "stream": a["t"], "purpose": a["purpose"]}
        assert xp.numpy(signs(PHILOX, **key, start=0, count=len(a["signs"]), xp=xp)).tolist() == a["signs"]


def test_subsets(xp: Arrays) -> None:
    for a in answers("subsets"):
        made = subset(PHILOX, seed=int(a["seed"]), stream=a["t"], population=a["n"], size=a["k"], xp=xp)
        assert xp.numpy(made).tolist() == a["positions"]


def test_bases(xp: Arrays) -> None:
    for a in answers("hadamard-blocks"):
        assert block_and_passes(a["n"]) == (a["block"], a["passes"])
    for a in answers("bases"):
        q = xp.asarray(np.array([[a["q"]]], np.int32))
        key = BasisKey(PHILOX, int(a["seed"]), a["t"])
        assert xp.numpy(basis_by_id(a["basis"]).synthesize(q, a["n"], (key,), 7, xp))[0, 0].tolist() == a["y"], a["n"]


def test_quantizers() -> None:
    for a in answers("quantizers"):
        quantizer = quantizer_from_wire(a["quantizer"])
        dtype = np.uint8 if quantizer.codebook.size <= 256 else np.uint16
        made = book_points(quantizer.codebook, np.array([a["symbols"]], dtype), a["count"])
        assert made[0].tolist() == a["points"], a["quantizer"]
    assert [layer_weight(a["w"]) for a in answers("weights")] == [a["weight"] for a in answers("weights")]


@pytest.mark.parametrize("codec", [0, 2])
def test_entropy_codecs(codec: int) -> None:
    for a in answers("rans" if codec else "packed"):
        tables = a["frequencies"] if codec else [None] * len(a["sizes"])
        sizes = [len(table) for table in tables] if codec else a["sizes"]
        models = [SymbolModel(size, table and tuple(table)) for size, table in zip(sizes, tables, strict=True)]
        runs = Runs(*np.array(a["runs"], np.int64).reshape(-1, 2).T)
        assert CODECS[codec].decode(bytes.fromhex(a["section"]), runs, models).tolist() == a["symbols"]


def test_adaptive_integers() -> None:
    for a in answers("integers"):
        reader = IntegerReader(bytes.fromhex(a["section"]), "section")
        assert [reader.read(role) for role in a["roles"]] == a["integers"]
        reader.finish()
        writer = IntegerWriter()
        for role, value in zip(a["roles"], a["integers"], strict=True):
            writer.write(role, value)
        assert writer.finish().hex() == a["section"]


def test_scales(xp: Arrays) -> None:
    for a in answers("scales"):
        mantissas, shifts = mantissa_and_shift(np.array([[a["code"]]]), np.array([[a["exponent"]]]))
        made = scale_to_int16(xp.asarray(np.array([a["y"]], np.int64)), mantissas, shifts, xp)
        assert xp.numpy(made)[0].tolist() == a["results"], a


def test_draws() -> None:
    for a in answers("mt19937"):
        made = mt19937(a["seed"], 0, 10_000).tolist()
        assert made[:6] == a["words"]
        assert [made[i] for i in (623, 624, 9999)] == [a[f"word_{i}"] for i in (623, 624, 9999)]
        assert mt19937(a["seed"], 700, 50).tolist() == made[700:750]
    published = next(a for a in answers("mt19937") if a["seed"] == 5489)  # what the C++ standard asks of std::mt19937
    assert (published["words"][0], published["word_9999"]) == (3499211612, 4123659995)
    for a in answers("draws"):
        *fields, divisor = (a[name] for name in a if name != "bytes")
        floats = [float.fromhex(value) for value in fields[-2:]]
        wire = [*fields[:-2], *floats, divisor and float.fromhex(divisor)]
        assert draw_tensor(draw_from_wire(wire, DEFAULT_LIMITS)).data.hex() == a["bytes"]


def test_references(xp: Arrays) -> None:
    for a in answers("references"):
        own, old = (
            DecodedRecord((xp.asarray(np.array(a[side], np.int16)),), (a[exponent],))
            for side, exponent in (("own", "exponent"), ("old", "exponent_of_reference"))
        )
        made = add_prediction(own, old, (a["gain"], a["gain"]), xp, "a")
        assert xp.numpy(made.sides[0]).tolist() == a["v"]
