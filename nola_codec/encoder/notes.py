"""Sentences that a user should read after an encode."""

from __future__ import annotations

from nola_codec.encoder.options import EncodeOptions


def notes(
    options: EncodeOptions, nmse: float, effective: float | None, carried: float, coarser: int
) -> tuple[str, ...]:
    """Return the sentences that apply to a finished file.

    Args:
        options: The options of the encode.
        nmse: The NMSE as measured.
        effective: The effective error; None if it is not defined.
        carried: Share of the file that carried tensors take.
        coarser: Number of rungs before the last one.
    """
    if options.is_factor_form and nmse > 0.5:
        return (
            f"{nmse:.1%} of the delta's energy is lost: a random basis of few coefficients keeps about their share of "
            "it. Files for a task are trained in this form; from weights alone, leave out num_basis.",
        )
    said = []
    wanted = 1 if options.rungs is None else len(options.rungs)
    if options.has_rungs and coarser < wanted:
        said.append(
            f"the file has {coarser or 'no'} coarser rung{'' if coarser == 1 else 's'}: a rung must be smaller than "
            "the next one, and large enough for names and configuration"
        )
    if carried > 0.25:
        said.append(f"{carried:.0%} of the file are tensors carried as they came; `inspect --tensors` lists them")
    if options.tuner is not None and nmse > 0.3:
        said.append(
            f"NMSE {nmse:.3f} says nothing of a file that was trained on a task: its weights need not be the adapter's"
        )
    if effective is not None and nmse > 0.3:
        said.append(
            f"NMSE {nmse:.3f} is large by design: the objective keeps signal and lets through noise that models "
            "hardly see. Measure on the task; use --nmse for a bound on the weights."
        )
    if effective is not None and effective > 0.25:
        said.append(
            f"effective error {effective:.2f} is high: at sizes this small some tasks keep nine tenths of their gain, "
            "others two thirds. Measure before you ship it."
        )
    return tuple(said)
