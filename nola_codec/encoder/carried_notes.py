"""Write the sentences about carried tensors: which of them take the bytes of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nola_codec.encoder.report import CarriedReport
from nola_codec.rendering import render_size

LARGE_SHARE = 0.25
"""The share of a file from which a note names the carried tensors."""
_NAMED = 3
"""The greatest number of tensors that a sentence names."""


def name_largest(sizes: Mapping[str, int]) -> str:
    """Return the largest of some tensors as text, with their sizes: ``lm_head.weight 16.4 MB and 3 others``.

    Args:
        sizes: The size of each tensor in bytes, by its key; there is at least one.
    """
    largest = sorted(sizes, key=lambda key: (-sizes[key], key))
    named = [f"{key} {render_size(sizes[key])}" for key in largest[:_NAMED]]
    others = len(largest) - len(named)
    if others:
        named.append(f"{others} other{'' if others == 1 else 's'}")
    return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]


def carried_note(carried: Sequence[CarriedReport], size: int, ratio: float) -> tuple[str, ...]:
    """Return the sentence that names the carried tensors if they take a large share of a file, else nothing.

    Args:
        carried: The reports of the carried tensors.
        size: The size of the file in bytes.
        ratio: The size of the adapter in fp16 over that of the file.
    """
    taken = sum(each.bytes for each in carried)
    if taken <= LARGE_SHARE * size:
        return ()
    larger = f"the file is {1 / ratio:.1f}x larger than the adapter in fp16, and " if ratio < 1 else ""
    named = name_largest({each.name: each.bytes for each in carried})
    return (f"{larger}carried tensors take {taken / size:.0%} of the file: {named}",)
