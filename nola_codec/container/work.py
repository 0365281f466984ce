"""Count the work that a header asks for, before anything of it is done (specification, "Limits")."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields

from nola_codec.basis import basis_by_id
from nola_codec.container.limits import Limits
from nola_codec.model.records import CodedKind, DrawnKind, Kind, RawKind
from nola_codec.model.tensors import Draw

_KEPT_DRAWS = 2
"""The latest draws that a reader keeps (`prng.draws.draw_tensor`)."""
_DENSE_CHANGES = "delta"
"""The dialect whose decoded form is the products of factors, not the factors."""


@dataclass(frozen=True)
class Work:
    """What a file makes a reader do, by the names of `Limits`.

    Attributes:
        total_elements: The elements of all factors and vector records, and the bytes of all other tensors.
        rung_elements: The same, times the number of rungs, since each rung has a hash of all of it.
        coefficients: The coefficients of all records as if all units were kept, times the number of rungs.
        dense_products: The entries of dense bases times the vectors of each, times the number of rungs.
        record_rungs: The number of coded records times that of rungs.
        words: The words of MT19937 for all drawn records; one that repeats one of the two draws before costs none.
        delta_elements: The elements of the products of all factors, if the dialect is that of dense changes.
    """

    total_elements: int
    rung_elements: int
    coefficients: int
    dense_products: int
    record_rungs: int
    words: int
    delta_elements: int

    def check(self, limits: Limits) -> None:
        """Raise FormatError ``limit`` if the work exceeds a limit."""
        for field in fields(self):
            limits.require(field.name, getattr(self, field.name), _PLACES[field.name])


_PLACES = {
    "total_elements": "header `kinds shape` (elements or bytes of all records)",
    "rung_elements": "header `kinds shape` (elements or bytes of all records, times rungs)",
    "coefficients": "header `kinds num_basis` (coefficients of all records, times rungs)",
    "dense_products": "header `kinds num_basis` (length times coefficients in dense bases, times rungs)",
    "record_rungs": "header `records` (coded records, times rungs)",
    "words": "header `kinds start` (words of all drawn records)",
    "delta_elements": "header `kinds shape` (elements of all weights of the dialect `delta`)",
}


def count_work(kinds: Sequence[Kind], ids: Sequence[int], rungs: int, dialect: str) -> Work:
    """Count the work of a file.

    Args:
        kinds: The kinds of the header.
        ids: The number of the kind of each record.
        rungs: The number of rungs.
        dialect: The dialect of the header.
    """
    counts = [(kinds[number], count) for number, count in Counter(ids).items()]
    coded = [(kind, count) for kind, count in counts if isinstance(kind, CodedKind)]
    elements = sum(kind.elements * count for kind, count in coded)
    other = sum(kind.nbytes * count for kind, count in counts if isinstance(kind, RawKind))
    other += sum(kind.draw.nbytes * count for kind, count in counts if isinstance(kind, DrawnKind))
    products = sum(kind.product_shape[0] * kind.product_shape[1] * count for kind, count in coded if kind.is_pair)
    return Work(
        total_elements=elements + other,
        rung_elements=(elements + other) * rungs,
        coefficients=sum(kind.vectors(kind.most_units) * sum(kind.num_basis) * count for kind, count in coded) * rungs,
        dense_products=sum(_dense_products(kind) * count for kind, count in coded) * rungs,
        record_rungs=sum(count for _, count in coded) * rungs,
        words=_count_words([kind.draw for kind in map(kinds.__getitem__, ids) if isinstance(kind, DrawnKind)]),
        delta_elements=products if dialect == _DENSE_CHANGES else 0,
    )


def _dense_products(kind: CodedKind) -> int:
    """Return the multiplications of one record of a kind with a dense basis, and 0 for other kinds."""
    if basis_by_id(kind.basis).is_fast:
        return 0
    return kind.vectors(kind.most_units) * sum(side.length * side.num_basis for side in kind.sides)


def _count_words(draws: Sequence[Draw]) -> int:
    total = 0
    kept: OrderedDict[Draw, None] = OrderedDict()
    for draw in draws:
        if draw not in kept:
            total += draw.words
        kept[draw] = None
        kept.move_to_end(draw)
        if len(kept) > _KEPT_DRAWS:
            kept.popitem(last=False)
    return total
