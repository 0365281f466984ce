"""Find places for the deltas of an image or video adapter in a base model that names its modules in another layout.

An adapter for ``double_blocks.0.img_attn.qkv`` changes ``transformer_blocks.0.attn.to_q``, ``to_k`` and ``to_v`` of the
same model in Diffusers, each with some of its rows; and the other way round. Rows are taken from the exact delta, so
the bits are those of the adapter that `--format` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.adapters.families.catalog import FAMILIES
from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.names import ModuleName, split_name
from nola_codec.adapters.families.recognition import NamedModule, match_text
from nola_codec.adapters.families.relayout import RowPiece, row_pieces
from nola_codec.merger.weight_places import Place

# Flux calls the weight of a norm ``scale``. A parameter that belongs to no module, such as Wan's ``modulation``, has no
# ending, and counts as a weight.
_ENDINGS = {"weight": (".weight", "_weight", ".scale", "_scale"), "bias": (".bias", "_bias")}
# What wraps a model in some checkpoints; `split_name` knows the prefixes that adapters have too.
_WRAPPERS = ("module.", "model.", "net.")
_DENOISER = "denoiser"


@dataclass(frozen=True)
class _Piece:
    """Rows of a weight or of a delta that are a module of Diffusers.

    Attributes:
        place: The text encoder that the module is in, ``"denoiser"``, or ``""`` if its name does not tell.
        tensor: ``"weight"`` or ``"bias"``.
        rows: The path of the module, and the rows.
        inputs: The number of inputs, with kernels flattened.
    """

    place: str
    tensor: str
    rows: RowPiece
    inputs: int

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.rows.stop - self.rows.start

    def may_be(self, other: _Piece) -> bool:
        """Return True if two pieces are of the same tensor, and of the same shape."""
        same_place = not self.place or not other.place or self.place == other.place
        return same_place and (self.tensor, self.inputs, self.count) == (other.tensor, other.inputs, other.count)


class LayoutPlaces:
    """The modules of Diffusers that the weights of a base model hold, for each family that the model may be of."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the object; the names are read when they are first needed.

        Args:
            shapes: The shape of each weight of the base model, by name.
        """
        self._shapes = shapes
        self._stored: dict[str, dict[str, list[tuple[str, _Piece]]]] = {}

    def find(self, target: MergeTarget, weight: str) -> list[Place]:
        """Return the places of a delta in a base model of another layout.

        Args:
            target: The delta.
            weight: The name of its weight, with any prefixes; it may be flattened.

        Returns:
            The places, which together take the whole delta. The list is empty if no family has places for all of it,
            or if families disagree.
        """
        found: list[list[Place]] = []
        for family in FAMILIES:
            pieces = _pieces(family, weight, target.shape)
            places = [each for piece in pieces for each in self._places(family, target.name, piece, len(pieces) == 1)]
            if pieces and sum(_rows_of(each, target) for each in places) == target.shape[0]:
                found.append(places)
        return found[0] if found and all(each == found[0] for each in found) else []

    def _places(self, family: Family, name: str, piece: _Piece, is_whole: bool) -> list[Place]:
        """Return the places of one piece of a delta: none, one, or one for each half if the halves change places."""
        stored = self._weights_of(family).get(piece.rows.path, [])
        sites = [(weight, site) for weight, site in stored if site.may_be(piece)]
        if len(sites) != 1:
            return []
        (weight, site), start = sites[0], piece.rows.start
        fills = site.count == self._shapes[weight][0]
        if piece.rows.is_swapped == site.rows.is_swapped:
            taken = () if is_whole else ((start, piece.rows.stop),)
            put = () if fills else ((site.rows.start, site.rows.stop),)
            return [Place(name, weight, weight, False, taken, put)]
        half, at = piece.count // 2, site.rows.start
        return [
            Place(name, weight, weight, False, ((first, first + half),), ((to, to + half),))
            for first, to in ((start, at + half), (start + half, at))
        ]

    def _weights_of(self, family: Family) -> dict[str, list[tuple[str, _Piece]]]:
        """Return the weights that hold each module of Diffusers, if the model is of a family, by the module's path."""
        if family.title not in self._stored:
            found: dict[str, list[tuple[str, _Piece]]] = {}
            for weight, shape in self._shapes.items():
                for piece in _pieces(family, weight, shape):
                    found.setdefault(piece.rows.path, []).append((weight, piece))
            self._stored[family.title] = found
        return self._stored[family.title]


def _rows_of(place: Place, target: MergeTarget) -> int:
    return place.taken[0][1] - place.taken[0][0] if place.taken else target.shape[0]


def _pieces(family: Family, weight: str, shape: tuple[int, ...]) -> list[_Piece]:
    """Return the modules of Diffusers in a weight of a model of a family, or in a delta of it; none if it has no such.

    Args:
        family: The family.
        weight: The name of the weight or bias.
        shape: Its shape.
    """
    if not shape:
        return []
    endings = ((tensor, end) for tensor, ends in _ENDINGS.items() for end in ends)
    tensor, ending = next((each for each in endings if weight.endswith(each[1])), ("weight", ""))
    name = _unwrapped(weight.removesuffix(ending))
    module = NamedModule(weight, name, shape[0], math.prod(shape[1:]))
    text = None if name.is_of_denoiser else match_text(module)
    if text is None and name.place and not name.is_of_denoiser:
        return []
    match = text[1] if text is not None else family.find(name.path, is_flat=name.is_flat)
    if match is None:
        return []
    # A bias does not tell the number of inputs, by which some weights are divided.
    is_unclear = tensor == "bias" and len(match.rule.diffusers) > 1 and match.rule.split != "equal"
    if match.part is None and (is_unclear or match.rule.row_counts(module.out, module.inputs) is None):
        return []
    place = _DENOISER if text is None else _text_place(name.place, text[0])
    return [_Piece(place, tensor, rows, module.inputs) for rows in row_pieces(match, module.out, module.inputs)]


def _unwrapped(name: str) -> ModuleName:
    """Take the name of a module apart, without the wrappers around the whole model."""
    found = split_name(name)
    while not found.place and found.path.startswith(_WRAPPERS):
        found = split_name(found.path.partition(".")[2])
    return found


def _text_place(place: str, kind: str) -> str:
    """Return the text encoder that a prefix means, under one name for each; T5 is the only one of its kind."""
    if kind == "t5":
        return "t5"
    return {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}.get(place, place)
