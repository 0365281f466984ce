"""Small files that ask for much work: one for each construct that a header can inflate.

for name, costly in COSTLY.items():
    costly.make()        # the bytes, a few kilobytes
    costly.limit         # the name of the limit that refuses it
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nola_forge import Parts, golden, join, pack_integers, split

F32, RADEMACHER = 0, 2


@dataclass(frozen=True)
class Costly:
    """A file and the limit that it exceeds.

    Attributes:
        make: Makes the bytes.
        limit: The name of the limit.
        inspect_only: True if only the lower limits of `inspect` refuse it.
    """

    make: Callable[[], bytes]
    limit: str
    inspect_only: bool = False


def _file(**fields: Any) -> bytes:
    """A golden file with other fields in its header."""
    parts = split(golden("nmse"))
    return join(Parts({**parts.top, **fields}, parts.sections))


def _pair(template: str, out: int, into: int, basis: int = 1, form: int = 0, num_basis: Any = None) -> list[Any]:
    return [0, template, 0, 1.0, 0, F32, basis, form, num_basis, [out, 1], [1, into]]


def _many(rungs: int, count: int, template: str = "#") -> bytes:
    """A file of equal records under one template with a number."""
    parts = split(golden("nmse"))
    steps = [0] + [1] * (count - 1)
    fields = {"kinds": [_pair(template, 1, 1)], "records": [0] * count, "numbers": steps, "streams": None,
              "rungs": parts.top["rungs"] * rungs}  # fmt: skip
    return join(Parts({**parts.top, **fields}, parts.sections))


def _drawn(count: int) -> bytes:
    """Draws from three places far into a sequence, in turn, so that no reader keeps the one that comes next."""
    parts = split(golden("drawn"))
    kind = next(kind for kind in parts.top["kinds"] if kind[0] == 3)
    starts = [1 << 30, (1 << 30) + 1, (1 << 30) + 2]
    kinds = [[3, f"#.{i}", *kind[2:6], kind[6], start, *kind[8:]] for i, start in enumerate(starts)]
    numbers = [int(i >= 3) for i in range(count)]
    return _file(kinds=kinds, records=[i % 3 for i in range(count)], numbers=numbers, streams=None)


def _late_units() -> bytes:
    """2^19 units and a few more that all start at the last of 64 rungs: each looks up a row of each rung and side.

    At the rungs before, all factors are zero, and their hash is right.
    """
    parts = split(golden("nmse"))
    count, rungs, rank = 9, 64, 1 << 16
    first = [(12, 0)] * 2 + [(13, 0)] * 2 + [(14, 0), (0, 0)] + [(4, 0)] * count + [(7, 0)] * (2 * count)
    later = [(0, 0)] + [(4, 0)] * count + [(7, 0)] * (2 * count)
    last = [(0, 0), *((4, rank) for _ in range(count))]
    sections = [first, *[later] * (rungs - 2), last]
    kind = [0, "#", 0, 1.0, 0, F32, 1, 0, None, [1, rank], [rank, 1]]
    zeros = hashlib.sha256(bytes((2 + 2 * 2 * rank) * count)).digest()
    fields = {"kinds": [kind], "records": [0] * count, "numbers": [0] + [1] * (count - 1), "streams": None,
              "rungs": [[zeros, {}]] * rungs, "blocks": [count]}  # fmt: skip
    blocks = [part for own in sections for part in ((3, pack_integers(own)), (0, b""))]
    return join(Parts({**parts.top, **fields}, blocks))


COSTLY = {
    "config of two million empty maps": Costly(lambda: _file(config={"a": [{}] * 2_100_000}), "header_values"),
    "config of two million numbers in many lists": Costly(
        lambda: _file(config={"a": [[0] * 60_000] * 36}), "header_values"
    ),
    "2^14 records at 64 rungs": Costly(lambda: _many(64, 1 << 14), "record_rungs", inspect_only=True),
    "2^15 records at 64 rungs": Costly(lambda: _many(64, 1 << 15), "record_rungs"),
    "long names": Costly(lambda: _many(1, 1 << 15, "x" * 1000 + "#"), "name_characters"),
    "a dense basis of 2^40 entries": Costly(
        lambda: _file(kinds=[_pair("a", 1 << 20, 1 << 20, RADEMACHER, 1, [1 << 20, 1])], records=[0], numbers=[]),
        "dense_products",
    ),
    "a dense change of 2^40 elements": Costly(
        lambda: _file(kinds=[_pair("a", 1 << 20, 1 << 20)], records=[0], numbers=[], dialect="delta"),
        "delta_elements",
    ),
    "few elements at 64 rungs": Costly(
        lambda: _file(kinds=[[2, f"a{'x' * i}", F32, RADEMACHER, 1, [1 << 30]] for i in range(2)], records=[0, 1],
                      numbers=[], rungs=split(golden("nmse")).top["rungs"] * 64),
        "rung_elements",
    ),
    "units that look up 2^26 rows": Costly(_late_units, "look_ups"),
    "draws from far into a sequence": Costly(lambda: _drawn(3 * 100), "words"),
}  # fmt: skip
