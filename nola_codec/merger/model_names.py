"""Find the stored tensors of a model by the names that Transformers, of any version, gives them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nola_codec.checkpoints.key_renames import KeyRenames, WeightName, experts_transposed
from nola_codec.merger.arithmetic.parts import Region
from nola_codec.merger.stored_names import StoredNames

# Components that a composite model puts before the names of its language model, in one order or the other.
_OUTER = ("model", "language_model")


@dataclass(frozen=True)
class StoredPart:
    """A stored tensor that is a part of a weight, or holds it.

    Attributes:
        stored: The name of the stored tensor.
        name: What it means in memory.
    """

    stored: str
    name: WeightName


class ModelNames:
    """The stored tensors of a model, found by name.

    A name is looked for as it is, then by the rules of Transformers for this model (`KeyRenames`), then without or with
    leading components (`StoredNames`), and at last without the components ``model`` and ``language_model``.
    """

    def __init__(self, stored: Iterable[str], config: Mapping[str, Any]) -> None:
        """Read the names of the stored tensors.

        Args:
            stored: The names.
            config: ``config.json`` of the model.
        """
        names = list(stored)
        self._renames = KeyRenames.of(config)
        self._transposed = experts_transposed(config) is True
        self._stored = frozenset(names)
        self._by_whole: dict[str, list[StoredPart]] = {}
        self._by_inner: dict[str, set[str]] = {}
        for name in names:
            read = self._renames.read(name)
            self._by_whole.setdefault(read.whole, []).append(StoredPart(name, read))
            self._by_inner.setdefault(_inner(read.whole), set()).add(read.whole)

    @cached_property
    def alike(self) -> StoredNames:
        """The stored tensors by their names alone; they are read when no name and no rule finds a weight."""
        return StoredNames(self._stored)

    def find(self, *names: str) -> str | None:
        """Return the stored tensor that the names mean; None if there is none, or more than one."""
        found = self.find_all(names)
        return found[0] if len(found) == 1 else None

    def find_all(self, names: Sequence[str]) -> list[str]:
        """Return all stored tensors that the names mean by the first of the ways that finds any."""
        identical = [name for name in names if name in self._stored]
        if identical:
            return identical[:1]
        read = [self._renames.read(name) for name in names]
        known = [each for each in read if each.whole in self._by_whole]
        if known:
            return self._exact(known[0], self._by_whole[known[0].whole])
        return self.alike.find_all(names) or self._exact(read[0], self._inner_parts(read[0]))

    def find_parts(self, name: str) -> tuple[WeightName, list[StoredPart]]:
        """Return what a name means, and the stored tensors that it is spread over, or the one that it is a part of.

        The list is empty if there are none.
        """
        read = self._renames.read(name)
        if read.expert is not None and self._transposed:
            return read, []  # such models do not keep the parts one after the other
        parts = self._by_whole.get(read.whole) or self._inner_parts(read)
        return read, [part for part in parts if part.name.is_whole != read.is_whole]

    def _exact(self, read: WeightName, parts: Iterable[StoredPart]) -> list[str]:
        return [part.stored for part in parts if _same(part.name, read)]

    def _inner_parts(self, read: WeightName) -> list[StoredPart]:
        wholes = self._by_inner.get(_inner(read.whole), set())
        return self._by_whole[next(iter(wholes))] if len(wholes) == 1 else []


def region_of(name: WeightName, whole: tuple[int, ...]) -> Region | None:
    """Return the part of a whole weight that a name means; None if the weight cannot be split so.

    Args:
        name: A part of the weight, with equal shares of the rows.
        whole: The shape of the whole weight: (out, ...), or (experts, out, in).
    """
    region: list[tuple[int, int]] = []
    if name.expert is not None:
        if len(whole) != 3 or name.expert >= whole[0]:
            return None
        region.append((name.expert, name.expert + 1))
    if len(region) >= len(whole) or whole[len(region)] % name.count:
        return None
    share = whole[len(region)] // name.count
    if name.count > 1:
        region.append((name.part * share, (name.part + 1) * share))
    return tuple(region)


def _same(stored: WeightName, wanted: WeightName) -> bool:
    return (stored.part, stored.count, stored.expert) == (wanted.part, wanted.count, wanted.expert)


def _inner(name: str) -> str:
    """Return a name without the leading components that only tell where the language model lies in a larger model."""
    parts = name.replace("vision_tower.vision_model.", "vision_tower.", 1).split(".")
    while len(parts) > 2 and parts[0] in _OUTER:
        del parts[0]
    return ".".join(parts)
