"""`Rule`: one module of the original layout, and the modules of Diffusers that hold its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

RowSplit = Literal["equal", "block", "grouped"]
"""How the rows of one original weight are divided among the modules of Diffusers:

equal    All parts have as many rows.
block    All parts but the last have as many rows as the weight has inputs (q, k, v); the last one has a multiple (mlp).
grouped  The first part has as many rows as the weight has inputs (q), and two others share the rest (k, v); each of
         them has fewer.
"""

Swap = Literal["never", "always", "final"]
"""When the two halves of the rows change places: Diffusers stores scale before shift, other code shift before scale.

final  Only if there are exactly two halves, so twice as many rows as inputs. The last block of SD3 is like that.
"""


@dataclass(frozen=True)
class Rule:
    """One module of the original layout, and the modules of Diffusers that hold its rows, in their order.

    Attributes:
        original: The path in the original layout; ``{}`` stands for a number.
        diffusers: The paths in the layout of Diffusers, with the same numbers.
        split: How the rows are divided, if there are several paths.
        swap: When the two halves of the rows change places.
        mlp_ratio: The rows of the last part over the inputs, for the split ``block``.
        ratio: The rows of the original weight over its inputs, as a fraction, if all models of the family have it. It
            tells families apart that have modules of one name.
        is_alias: True if no weight of the original layout is called so, but only modules of some adapters.
    """

    original: str
    diffusers: tuple[str, ...]
    split: RowSplit = "equal"
    swap: Swap = "never"
    mlp_ratio: int = 4
    ratio: tuple[int, int] | None = None
    is_alias: bool = False

    def row_counts(self, out: int, inputs: int) -> tuple[int, ...] | None:
        """Return the number of rows of each part of a weight (out, inputs); None if no such weight has the shape."""
        number = len(self.diffusers)
        if self.ratio is not None and out * self.ratio[1] != inputs * self.ratio[0]:
            return None
        if self.split == "equal" or number == 1:
            return (out // number,) * number if out % number == 0 else None
        if self.split == "block":
            counts = (inputs,) * (number - 1) + (self.mlp_ratio * inputs,)
            return counts if sum(counts) == out else None
        rest = out - inputs
        return (inputs, rest // 2, rest // 2) if 0 < rest < 2 * inputs and rest % 2 == 0 else None

    def usual_counts(self, known: Mapping[int, int], inputs: int) -> tuple[int, ...] | None:
        """Return the number of rows of each part from those of some parts; None if they do not tell.

        Args:
            known: The rows of the parts that an adapter has, by the number of the part.
            inputs: The number of inputs.
        """
        number = len(self.diffusers)
        if self.split == "equal" or number == 1:
            counts: tuple[int, ...] = (next(iter(known.values())),) * number
        elif self.split == "block":
            counts = (inputs,) * (number - 1) + (self.mlp_ratio * inputs,)
        else:
            small = known.get(1, known.get(2))
            if small is None:
                return None
            counts = (inputs, small, small)
        return counts if all(counts[part] == rows for part, rows in known.items()) else None

    def is_swapped(self, out: int, inputs: int) -> bool:
        """Return True if the two halves of the rows of a weight (out, inputs) change places."""
        return self.swap == "always" or (self.swap == "final" and out == 2 * inputs)


@dataclass(frozen=True)
class Match:
    """A name that a rule knows.

    Attributes:
        rule: The rule.
        numbers: The numbers in the name, which take the places of ``{}``.
        part: The part of the original module that the name means, if the name is one of Diffusers; None if it is the
            name of the original module.
    """

    rule: Rule
    numbers: tuple[str, ...]
    part: int | None = None

    @property
    def original(self) -> str:
        """The path of the module in the original layout."""
        return self.rule.original.format(*self.numbers)

    @property
    def diffusers(self) -> tuple[str, ...]:
        """The paths of the modules in the layout of Diffusers."""
        return tuple(path.format(*self.numbers) for path in self.rule.diffusers)


class NameIndex:
    """The names of some rules in one layout, with dots or flattened, for a fast search."""

    def __init__(self, names: Mapping[str, tuple[Rule, int | None]], *, is_flat: bool) -> None:
        """Make the index.

        Args:
            names: The rule of each path, and the part that the path means.
            is_flat: True for names in which underscores stand for dots.
        """
        self._candidates: dict[str, list[tuple[re.Pattern[str], Rule, int | None]]] = {}
        for path, (rule, part) in names.items():
            name = path.replace(".", "_") if is_flat else path
            pattern = re.compile(r"(\d+)".join(re.escape(piece) for piece in name.split("{}")))
            self._candidates.setdefault(_without_numbers(name), []).append((pattern, rule, part))

    def find(self, name: str) -> Match | None:
        """Return the match of a name, or None."""
        for pattern, rule, part in self._candidates.get(_without_numbers(name), ()):
            found = pattern.fullmatch(name)
            if found is not None:
                return Match(rule, found.groups(), part)
        return None


class RuleTable:
    """The rules of one model, searched by name."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules

    def find(self, name: str, *, is_flat: bool) -> Match | None:
        """Return the match of a name in the original layout, or else in that of Diffusers; None if no rule knows it."""
        original, diffusers = self._flat if is_flat else self._dotted
        return original.find(name) or diffusers.find(name)

    @cached_property
    def _dotted(self) -> tuple[NameIndex, NameIndex]:
        return self._index(is_flat=False)

    @cached_property
    def _flat(self) -> tuple[NameIndex, NameIndex]:
        return self._index(is_flat=True)

    def _index(self, *, is_flat: bool) -> tuple[NameIndex, NameIndex]:
        original: dict[str, tuple[Rule, int | None]] = {rule.original: (rule, None) for rule in self._rules}
        # OneTrainer numbers the parts: `img_attn.qkv.0` is `to_q`.
        diffusers: dict[str, tuple[Rule, int | None]] = {
            f"{rule.original}.{part}": (rule, part)
            for rule in self._rules if len(rule.diffusers) > 1 for part in range(len(rule.diffusers))
        }  # fmt: skip
        diffusers |= {
            path: (rule, part)
            for rule in self._rules if not rule.is_alias for part, path in enumerate(rule.diffusers)
        }  # fmt: skip
        return NameIndex(original, is_flat=is_flat), NameIndex(diffusers, is_flat=is_flat)


def renamed(
    pairs: Mapping[str, str], before: str = "", after: str = "", *, ratio: tuple[int, int] | None = None
) -> tuple[Rule, ...]:
    """Return the rules of modules that only have another name.

    Args:
        pairs: The path in the layout of Diffusers, by the path in the original layout.
        before: A text before each original path, such as ``double_blocks.{}.``.
        after: A text before each path of Diffusers.
        ratio: `Rule.ratio`.
    """
    return tuple(Rule(before + original, (after + diffusers,), ratio=ratio) for original, diffusers in pairs.items())


def unchanged(paths: tuple[str, ...], before: str = "") -> tuple[Rule, ...]:
    """Return the rules of modules that both layouts call alike."""
    return tuple(Rule(before + path, (before + path,)) for path in paths)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+|\{\}", "#", name)
