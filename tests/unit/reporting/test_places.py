from __future__ import annotations

import pytest

from nola_codec.reporting.places import MOST_LAYERS, MOST_TYPES, OUTSIDE, make_grid, natural_key, split_name


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.3.mlp.experts.17.up_proj", "model.layers.3", "mlp.experts.#.up_proj"),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
         "down_blocks.0.attentions.1.transformer_blocks.0", "attn1.to_out.#"),
        ("lora_te_text_model_encoder_layers_11_mlp_fc1", "lora_te_text_model_encoder_layers_11", "mlp_fc1"),
        ("transformer.h.5.attn.c_attn", "transformer.h.5", "attn.c_attn"),
        ("net.2.proj.0.weight", "net.2", "proj.#.weight"),
        ("text_encoder:17", "text_encoder:17", "text_encoder:#"),
        ("lm_head", OUTSIDE, "lm_head"),
        ("fc.0", OUTSIDE, "fc.0"),
        ("", OUTSIDE, ""),
        ("..", OUTSIDE, ".."),
    ],
)  # fmt: skip
def test_split_name(name: str, layer: str, kind: str) -> None:
    assert split_name(name) == (layer, kind)


def test_numbers_sort_as_numbers() -> None:
    names = ["a.10", "a.9", "a.02", "a", "b.1", "a." + "9" * 9000]
    assert sorted(names, key=natural_key) == ["a", "a.02", "a.9", "a.10", "a." + "9" * 9000, "b.1"]


def test_a_grid_adds_up_all_weights() -> None:
    items = [
        (f"layers.{i}.type{j}", {"bytes": float(i * j), "coefficients": 1.0})
        for i in range(MOST_LAYERS + 4)
        for j in range(MOST_TYPES + 2)
    ]
    grid = make_grid(items, {"bytes_each": lambda sums: sums["bytes"] / sums["coefficients"]})
    assert len(grid.types) == MOST_TYPES
    assert len(grid.layers) == MOST_LAYERS
    assert grid.types[0].name == f"type{MOST_TYPES + 1}"
    assert grid.types[-1].name == "3 other types"
    assert grid.layers[-1].name == "5 other layers"
    total = sum(figures["bytes"] for _, figures in items)
    for groups in (grid.types, grid.layers, [cell for row in grid.cells for cell in row if cell is not None]):
        assert sum(group.sums["bytes"] for group in groups) == total
        assert sum(group.weights for group in groups) == len(items)
        for group in groups:
            assert group.rates == {"bytes_each": group.sums["bytes"] / group.sums["coefficients"]}


def test_a_grid_of_nothing() -> None:
    assert make_grid([], {}).cells == ()
