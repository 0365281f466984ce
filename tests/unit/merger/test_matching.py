"""Names, shapes and orientations: the place of a delta."""

from __future__ import annotations

import numpy as np
import pytest

from nola_codec.errors import AdapterError
from nola_codec.merger.matching import MergeTarget, delta_shape, resolve_places
from nola_codec.merger.stored_names import StoredNames
from nola_codec.model.adapter import LoraModule


def test_names_with_and_without_prefix() -> None:
    names = StoredNames(["h.0.q.weight", "model.decoder.k.weight", "x.p.weight", "y.p.weight", "weight"])
    assert names.find("h.0.q.weight") == "h.0.q.weight"
    assert names.find("transformer.h.0.q.weight") == "h.0.q.weight"
    assert names.find("decoder.k.weight") == "model.decoder.k.weight"
    assert names.find("k.weight") == "model.decoder.k.weight"
    assert names.find("p.weight") is None  # two of them
    assert names.find("lm_head.weight") is None


def test_delta_shapes() -> None:
    assert delta_shape("linear", (2, 5), (7, 2)) == (7, 5)
    assert delta_shape("conv", (2, 5, 3, 3), (7, 2, 1, 1)) == (7, 5, 3, 3)
    assert delta_shape("embedding", (2, 50), (8, 2)) == (50, 8)
    module = LoraModule("m", np.zeros((2, 5), np.float32), np.zeros((7, 2), np.float32), (2, 5), (7, 2), 3.0)
    assert MergeTarget.of(module) == MergeTarget("m", "linear", (7, 5), 3.0, False)


def target(path: str, *shape: int, flag: bool = False) -> MergeTarget:
    layout = "conv" if len(shape) > 2 else "linear"
    return MergeTarget(f"base_model.model.{path}", layout, shape, 1.0, flag)


@pytest.mark.parametrize(
    ("shape", "flag", "model_type", "transposed"),
    [
        ((3, 5), False, "llama", False),
        ((5, 3), True, "custom", True),
        ((3, 5), True, "custom", False),  # the flag was left on by another module
        ((5, 3), False, "gpt2", True),  # and here left off
        ((5, 5), False, "gpt2", True),
        ((5, 5), True, "gpt2", True),
        ((5, 5), True, "custom", True),
        ((5, 5), False, "llama", False),
    ],
)
def test_orientation(shape: tuple[int, int], flag: bool, model_type: str, transposed: bool) -> None:
    delta = (5, 5) if shape == (5, 5) else (3, 5)
    found = resolve_places(
        [target("h.0.c_proj", *delta, flag=flag)], {"h.0.c_proj.weight": shape}, {"model_type": model_type}
    )
    assert found["h.0.c_proj.weight"].transposed is transposed


def test_a_wide_weight_tells_how_square_ones_are_stored() -> None:
    """PEFT has one flag for all modules, and ignores it for a linear layer, whose weight is (out, in)."""
    targets = [target(name, *shape, flag=True) for name, shape in (("q", (5, 5)), ("up", (7, 5)), ("down", (5, 7)))]
    straight = {"q.weight": (5, 5), "up.weight": (7, 5), "down.weight": (5, 7)}
    turned = {name: shape[::-1] for name, shape in straight.items()}
    for shapes, transposed in ((straight, False), (turned, True)):
        found = resolve_places(targets, shapes, {"model_type": "custom"})
        assert {place.transposed for place in found.values()} == {transposed}
    with pytest.raises(AdapterError, match=r"q\.weight is square, and the model stores some weights \(in, out\)") as e:
        resolve_places(targets, straight | {"up.weight": (5, 7)}, {"model_type": "custom"})
    assert e.value.code == "base-mismatch"


def test_a_linear_head_of_gpt2_is_not_transposed() -> None:
    found = resolve_places([target("lm_head", 5, 5, flag=True)], {"lm_head.weight": (5, 5)}, {"model_type": "gpt2"})
    assert found["lm_head.weight"].transposed is False


def test_attention_projections() -> None:
    shapes = {"attn.in_proj_weight": (12, 4), "attn.out_proj.weight": (4, 4)}
    found = resolve_places([target("attn", 12, 4), target("attn.base_layer.out_proj", 4, 4)], shapes, {})
    assert {m.weight for m in found.values()} == set(shapes)


def test_every_misfit_is_listed() -> None:
    shapes = {"a.weight": (3, 5), "b.weight": (3, 5), "c.weight": (4, 2, 3)}
    targets = [
        target("a", 3, 5),
        target("b", 5, 3),
        target("c", 4, 3, 3),
        target("d", 1, 1),
        target("base_layer.a", 3, 5),
    ]
    with pytest.raises(AdapterError) as e:
        resolve_places(targets, shapes, {"model_type": "llama"})
    assert e.value.code == "base-mismatch"
    message = str(e.value)
    assert message.startswith("4 parts of the adapter")
    assert "base_model.model.b: shape: expected [5, 3], found [3, 5] (b.weight)" in message
    assert "base_model.model.c: shape: expected [4, 3, 3]" in message
    assert "base_model.model.d: no weight d.weight" in message
    assert "a.weight is already changed by base_model.model.a" in message
