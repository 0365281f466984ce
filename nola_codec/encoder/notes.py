"""Write the sentences that a user should read after an encode."""

from __future__ import annotations

from collections.abc import Sequence

from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.options import EncodeOptions
from nola_codec.rendering import render_size

_SATURATED_SHARE = 0.95
"""The share of an allowed size below which a file has used all that the adapter can use."""


def reference_notes(job: EncodeJob) -> tuple[str, ...]:
    """Return the sentences about a file that holds the difference to an earlier version."""
    if job.prediction is None:
        return ()
    entry, items = job.prediction.entry, len(job.items)
    name = f"{entry.name!r}, " if entry.name else ""
    said = [f"the file can only be decoded with its reference, {name}SHA-256 {entry.sha256.hex()[:16]}...: keep both"]
    alone = items - len(job.prediction.items)
    if alone:
        why = "they are not in the reference, have other shapes there, or are zero now"
        said.append(f"{alone} of {items} records are coded without the reference: {why}")
    return tuple(said)


def target_notes(job: EncodeJob, size: int) -> tuple[str, ...]:
    """Return the sentences about an adapter that changes nothing, and about a size that it cannot use.

    Args:
        job: The encode.
        size: The size of the finished file in bytes.
    """
    said = []
    options = job.options
    if job.items and not job.energies.any():
        carried = ", and only its carried tensors can change a model" if job.envelope.raw else ""
        said.append(f"the adapter changes nothing: all its deltas are zero, as before a training{carried}")
    limit = options.size if options.size is not None else 0
    if options.ratio is not None:
        limit = int(2 * job.parameters / options.ratio)
    can_tell = options.tuner is None and not options.is_factor_form  # a training leaves room for its amplitudes
    if limit and can_tell and job.energies.any() and size < _SATURATED_SHARE * limit:
        said.append(
            f"the file takes {render_size(size)} of the {render_size(limit)} that are allowed: either every component "
            "has the finest quantizers, or finer ones would take more than that"
        )
    return tuple(said)


def notes(
    options: EncodeOptions,
    nmse: float,
    effective: float | None,
    rung_bytes: Sequence[int],
    *,
    is_of_image_model: bool = False,
) -> tuple[str, ...]:
    """Return the sentences that apply to a finished file.

    Args:
        options: The options of the encode.
        nmse: The measured NMSE.
        effective: The effective error; None if it is not defined.
        rung_bytes: The bytes of the file's beginning up to the end of each rung, coarsest first.
        is_of_image_model: True for an adapter of an image model, which prompts do not train.
    """
    if options.is_factor_form and nmse > 0.5:
        return (
            f"{nmse:.1%} of the delta's energy is lost: few coefficients on a random basis keep little of a delta. "
            "This form is meant for training; to encode given weights, leave out num_basis and bits.",
        )
    said = []
    asked = sorted(options.rungs or ())
    coarser = len(rung_bytes) - 1
    larger = [pair for pair in zip(rung_bytes[:-1], asked, strict=False) if pair[0] > pair[1]]
    if options.has_rungs and coarser < max(1, len(asked)):
        said.append(
            f"the file has {coarser or 'no'} coarser rung{'' if coarser == 1 else 's'}: a rung must be smaller than "
            "the next one, and large enough for names and configuration"
        )
    elif larger:
        sizes = ", ".join(f"{found:,} bytes for {wanted:,}" for found, wanted in larger)
        said.append(
            f"coarser rungs are larger than asked for, since only the last size is searched for: {sizes}; ask for that "
            "much less if they are limits"
        )
    if effective is not None and effective > 0.25:
        hint = " A file that is trained with a dozen --prompts, or with text of the task (--data), keeps more."
        hint = "" if options.fit == "task" or is_of_image_model else hint
        said.append(
            f"effective error {effective:.2f} is high, and tasks differ most at such small sizes: measure yours before "
            f"you use the file.{hint}"
        )
    return tuple(said)
