"""The rules of a dialect decide what may be asked for, and how its adapters are coded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nola_codec.adapters import CodingRules, dialect_of
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.rules import apply_rules, check_rules
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter, VectorTensor


@pytest.fixture
def vera() -> Adapter:
    config = {"peft_type": "VERA", "r": 4, "projection_prng_key": 0, "save_projection": False}
    vectors = tuple(
        VectorTensor(f"base_model.model.q.vera_lambda_{end}", np.ones(size, np.float32))
        for end, size in (("b", 8), ("d", 4))
    )
    return Adapter("peft", (), config=config, vectors=vectors)


def test_a_lora_may_be_coded_in_any_way(small: Adapter) -> None:
    assert dialect_of(small).coding_rules(small) == CodingRules()
    options = EncodeOptions(rank=2, objective="effective")
    assert apply_rules(small, options) == (small, options)


def test_without_a_rate_exact_vectors_are_carried(vera: Adapter) -> None:
    adapter, options = apply_rules(vera, EncodeOptions())
    assert adapter.vectors == ()
    assert sorted(adapter.raw) == [v.name for v in vera.vectors]
    assert "carried exact" in adapter.notes[-1]
    assert options.objective == "nmse"


@pytest.mark.parametrize("rate", [{"size": 900}, {"nmse": 0.1}, {"bits": 4}, {"rungs": (500,)}])
def test_a_rate_codes_them(rate: dict[str, object], vera: Adapter) -> None:
    adapter, options = apply_rules(vera, EncodeOptions(**rate))  # type: ignore[arg-type]
    assert adapter == vera
    assert options.objective == (None if "bits" in rate else "nmse")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rank": 2}, "rank of VeRA"),
        ({"objective": "effective"}, "by the NMSE"),
        ({"importance": {"*": 2.0}}, "by the NMSE"),
    ],
)
def test_what_a_dialect_does_not_allow_is_refused(asked: dict[str, object], message: str, vera: Adapter) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        check_rules(vera, EncodeOptions(**asked))  # type: ignore[arg-type]
    assert caught.value.code == "option"


def test_another_rank_in_the_factor_form(small: Adapter) -> None:
    options = EncodeOptions(bits=4, rank=2)
    with_config = replace(small, vectors=(), config={"peft_type": "LORA", "r": 6, "lora_alpha": 12})
    adapter, _ = apply_rules(with_config, options)
    assert adapter.config is not None
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (2, 4)
    with pytest.raises(EncodeError, match="in the dialect kohya"):
        apply_rules(replace(small, dialect="kohya"), options)
    check_rules(replace(small, dialect="kohya"), EncodeOptions(rank=2))
