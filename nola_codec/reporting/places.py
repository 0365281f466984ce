"""Split the names of weights into a layer and a module type, and arrange figures by both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

MOST_TYPES = 24
"""The greatest number of module types that a grid lists; the weakest ones are put together."""
MOST_LAYERS = 96
"""The greatest number of layers that a grid lists; the last ones are put together."""
OUTSIDE = "outside of all layers"
"""The layer of a name without numbers."""

_LAYER_WORDS = ("layers", "layer", "blocks", "block", "attentions", "resnets")


def split_name(name: str) -> tuple[str, str]:
    """Return the layer and the module type of a weight; numbers in the type, as those of experts, become ``#``.

    >>> split_name("model.layers.12.self_attn.q_proj")
    ('model.layers.12', 'self_attn.q_proj')
    >>> split_name("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0")
    ('lora_unet_up_blocks_1_attentions_0_transformer_blocks_0', 'attn1_to_out_#')
    """
    numbered = re.fullmatch(r"(.+):[0-9]+", name)  # modules that have a number and no name
    if numbered is not None:
        return name, f"{numbered[1]}:#"
    parts = re.split(r"([._])", name)  # words at even places, what separates them at odd ones
    words = parts[::2]
    numbers = [i for i, word in enumerate(words[:-1]) if i and word.isascii() and word.isdigit()]
    named = [i for i in numbers if words[i - 1] == "h" or words[i - 1].endswith(_LAYER_WORDS)]
    if not numbers:
        return OUTSIDE, name
    last = named[-1] if named else numbers[0]
    rest = ["#" if part.isascii() and part.isdigit() else part for part in parts[2 * last + 2 :]]
    return "".join(parts[: 2 * last + 1]), "".join(rest)


def short_layer(name: str) -> str:
    """Return the numbers in the name of a layer, or its beginning: ``12`` for ``model.layers.12``.

    >>> short_layer("up_blocks.1.attentions.0"), short_layer("lm_head")
    ('1.0', 'lm_he')
    """
    numbers = [part for part in name.replace("_", ".").split(".") if part.isascii() and part.isdigit()]
    return ".".join(numbers)[:12] or name[:5]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names with numbers by the numbers: ``layers.2`` before ``layers.10``."""
    keys = []
    for part in re.split(r"([0-9]+)", name):
        number = part.lstrip("0") if part.isascii() and part.isdigit() else None
        keys.append((0, len(number), number) if number is not None else (1, 0, part))
    return keys


@dataclass(frozen=True)
class Group:
    """The sums over the weights of one layer, of one module type, or of both.

    Attributes:
        name: The layer or the module type.
        weights: The number of weights.
        sums: The sum of each figure, by its name.
        rates: What follows from the sums, by its name.
    """

    name: str
    weights: int
    sums: Mapping[str, float]
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    """Figures by module type and layer.

    Attributes:
        types: The module types, the largest sum of the first figure first.
        layers: The layers, in the order of their numbers.
        cells: For each type, the group of each layer; None where a layer has no such weight.
    """

    types: tuple[Group, ...]
    layers: tuple[Group, ...]
    cells: tuple[tuple[Group | None, ...], ...]


Rates = Mapping[str, Callable[[Mapping[str, float]], float]]
"""For each rate of a group, what computes it from the sums of the group."""


def make_grid(items: Iterable[tuple[str, Mapping[str, float]]], rates: Rates) -> Grid:
    """Add up figures by module type and layer.

    Args:
        items: (name, figures) of each weight. All weights have the same figures.
        rates: The rates of each group.
    """
    placed = [(*split_name(name), figures) for name, figures in items]
    first = next(iter(placed[0][2]), "") if placed else ""
    sizes: dict[str, float] = {}
    for _, kind, figures in placed:
        sizes[kind] = sizes.get(kind, 0.0) + figures[first]
    types = _names(sorted(sizes, key=lambda kind: (-sizes[kind], kind)), MOST_TYPES, "other types")
    layers = _names(sorted({layer for layer, _, _ in placed}, key=natural_key), MOST_LAYERS, "other layers")
    found: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for layer, kind, figures in placed:
        found.setdefault((types[kind], layers[layer]), []).append(figures)
    add = partial(_add, rates)
    rows, columns = list(dict.fromkeys(types.values())), list(dict.fromkeys(layers.values()))
    return Grid(
        tuple(add(row, [each for column in columns for each in found.get((row, column), ())]) for row in rows),
        tuple(add(column, [each for row in rows for each in found.get((row, column), ())]) for column in columns),
        tuple(
            tuple(add("", found[row, column]) if (row, column) in found else None for column in columns) for row in rows
        ),
    )


def _names(ordered: Sequence[str], most: int, others: str) -> dict[str, str]:
    """Return the name of the group of each name: its own, or that of all names after the first ones."""
    kept = len(ordered) if len(ordered) <= most else most - 1
    rest = f"{len(ordered) - kept} {others}"
    return {name: name if number < kept else rest for number, name in enumerate(ordered)}


def _add(rates: Rates, name: str, figures: Sequence[Mapping[str, float]]) -> Group:
    sums: dict[str, float] = {}
    for each in figures:
        for key, value in each.items():
            sums[key] = sums.get(key, 0.0) + value
    return Group(name, len(figures), sums, {key: rate(sums) for key, rate in rates.items()})
