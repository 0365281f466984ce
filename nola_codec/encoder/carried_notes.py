"""Write the sentences about carried tensors: which of them take the bytes of a file, and what they lost."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.encoder.carried import ReducedCarried, bytes_in
from nola_codec.encoder.report import CarriedReport
from nola_codec.rendering import render_error, render_largest, render_size

LARGE_SHARE = 0.25
"""The share of a file from which a note names the carried tensors."""


def carried_note(reduced: ReducedCarried, carried: Sequence[CarriedReport], size: int, ratio: float) -> tuple[str, ...]:
    """Return the sentence that names the carried tensors if they take a large share of a file, else nothing.

    Args:
        reduced: The carried tensors.
        carried: Their reports.
        size: The size of the file in bytes.
        ratio: The size of the adapter in fp16 over that of the file.
    """
    taken = sum(each.bytes for each in carried)
    if taken <= LARGE_SHARE * size:
        return ()
    larger = f"the file is {1 / ratio:.1f}x larger than the adapter in fp16, and " if ratio < 1 else ""
    named = render_largest({each.name: each.bytes for each in carried})
    advice = carried_advice(reduced)
    sentence = f"{larger}carried tensors take {taken / size:.0%} of the file: {named}"
    return (f"{sentence}; {advice}" if advice else sentence,)


def loss_note(carried: Sequence[CarriedReport], form: str) -> tuple[str, ...]:
    """Return the sentence that says what carried tensors lost in a form, or that none could have it."""
    if form == "exact":
        return ()
    reduced = [each for each in carried if each.form != "exact"]
    if not reduced:
        return (f"--carried {form} changed nothing: the adapter has no carried tensor that may lose precision",)
    worst = max(reduced, key=lambda each: each.relative_error)
    forms = " and ".join(sorted({each.form for each in reduced}))
    many = f"{len(reduced)} carried tensors are" if len(reduced) > 1 else "1 carried tensor is"
    if worst.relative_error == 0:
        return (f"{many} stored in the form {forms}, without any loss",)
    error = render_error(worst.relative_error)
    return (f"{many} stored in the form {forms}; the largest relative error is {error}, that of {worst.name}",)


def carried_advice(reduced: ReducedCarried) -> str:
    """Return what would make the carried tensors smaller, as the end of a sentence; empty if nothing can.

    The sizes are those of the tensors, before any compression of their bytes.
    """
    left = [reduced.sources[key] for key, able in reduced.reducible.items() if able and reduced.forms[key] == "exact"]
    now = sum(len(tensor.data) for tensor in left)
    options = [(form, sum(bytes_in(tensor, form) for tensor in left)) for form in ("bf16", "int8", "coded")]
    smaller = [f"{render_size(size)} with --carried {form}" for form, size in options if size < 0.9 * now]
    return f"before compression, {render_size(now)} of them become {_listed(smaller)}" if smaller else ""


def _listed(parts: Sequence[str]) -> str:
    """Return parts of a sentence as ``a, b or c``."""
    return " or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
