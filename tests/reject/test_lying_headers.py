"""Headers that lie about what a file holds end in an error of the package, in whatever form the file is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from nola_forge import Parts, golden, join, split

import nola_codec
from nola_codec.adapters import DIALECTS
from nola_codec.api.decoding import decode_contents

NAMES = ("nmse", "vectors", "layouts", "drawn", "only-raw")
FORMATS = ("peft", "kohya", "diffusers")
SCALINGS = (1e308, 5e-324, -1e300, 0.0)
CONFIGS: tuple[Any, ...] = (
    {"peft_type": "VERA", "r": 1 << 20, "projection_prng_key": 3},
    {"peft_type": "RANDLORA", "r": 3, "projection_prng_key": -1},
    {"peft_type": "LORA", "r": "4", "rank_pattern": {"(": 3}, "alpha_pattern": [1]},
    {"peft_type": "LOHA"}, {"peft_type": 5}, {"alpha": {"dtype": "F32", "shape": [1 << 40], "value": 1.0}},
    {"gguf": {"adapter.lora.alpha": ["FLOAT32", "x"]}}, {"lora_parameters": []}, {"params": {"lora": {"scaling": []}}},
)  # fmt: skip


def changed(name: str, **fields: Any) -> bytes:
    parts = split(golden(name))
    return join(Parts({**parts.top, **fields}, parts.sections))


def read_in_all_forms(data: bytes, *forms: str) -> int:
    """Read a file in some dialects, and return how many of them it has."""
    found = 0
    for form in forms:
        try:
            decode_contents(data, form)
            found += 1
        except nola_codec.NolaError:
            pass
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_that_is_another_one(dialect: str) -> None:
    found = 0
    for name in NAMES:
        data = changed(name, dialect=dialect)
        nola_codec.inspect(data)
        found += read_in_all_forms(data, dialect, *FORMATS)
    assert found < len(NAMES) * (1 + len(FORMATS))  # no dialect has a place for all of them


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_configuration_of_something_else(config: Any) -> None:
    for dialect in ("peft", "kohya", "gguf", "mlx", "mistral"):
        for name in ("nmse", "vectors", "drawn"):
            read_in_all_forms(changed(name, dialect=dialect, config=config), dialect, "peft")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scalings_at_the_ends_of_float64(scaling: float) -> None:
    parts = split(golden("nmse"))
    kinds = [[*kind[:3], scaling, *kind[4:]] for kind in parts.top["kinds"]]
    data = changed("nmse", kinds=kinds)
    read_in_all_forms(data, "peft", *FORMATS)
    with nola_codec.load(data, "numpy") as file:
        for name in file.names():
            if abs(scaling) > 1e100:
                with pytest.raises(nola_codec.NolaError, match=r"delta: expected at most 3\.4e"):
                    file.delta_weight(name)
            else:
                assert not file.delta_weight(name).any()
