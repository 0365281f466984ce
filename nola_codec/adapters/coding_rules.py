"""`CodingRules`: everything that the encoder has to know about a dialect, without naming the dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nola_codec.model.adapter import Adapter


@dataclass(frozen=True)
class CodingRules:
    """The limits that a dialect sets to the coding of one adapter. The defaults allow everything.

    Attributes:
        objectives: The names of the allowed objectives, the default one first.
        objectives_reason: The message for a user who asks for another objective, a fit or weights; empty if all
            are allowed.
        objective_note: The note for the report if the first objective is taken although the user chose none; empty if
            there is nothing to say.
        rank_reason: The message for a user who chooses a rank; empty if a rank may be chosen.
        exact_note: The note for the report if vectors are carried exactly unless the user asks for a rate; empty if
            vectors are always coded.
        gains_are_estimates: True if the gain of a vector is only an estimate. The encoder then measures the energy of a
            delta on the delta itself, if it knows all parts of it.
        unknown_note: The note for the report if no delta can be made, so that all errors come from estimated gains.
        estimated_note: The note for the report if some deltas are too large to be made; it has the fields {estimated}
            and {coded}.
        measured_note: The note for the report if all deltas are made and measured; empty if there is nothing to say.
        reduce: The function that brings an adapter into the form that a rate codes; None if it stays as it is.
    """

    objectives: tuple[str, ...] = ("effective", "nmse")
    objectives_reason: str = ""
    objective_note: str = ""
    rank_reason: str = ""
    exact_note: str = ""
    gains_are_estimates: bool = False
    unknown_note: str = ""
    estimated_note: str = ""
    measured_note: str = ""
    reduce: Callable[[Adapter], Adapter] | None = None


COMBINED_RULES = CodingRules(
    # The noise of a part is multiplied by the other parts, so it is not random in the delta, and the effective errors
    # of the parts say nothing about the delta. With parts of an effective error of 0.02, a LoKr was worse than none.
    objectives=("nmse",),
    objectives_reason="deltas that are made of several parts (LoHa, LoKr, Tucker cores) are coded by the NMSE; other "
    "objectives, fits and weights are for deltas that are one product",
    objective_note="the objective is the NMSE, and so is the error of a target: some deltas are made of several parts "
    "(LoHa, LoKr, Tucker cores), and the effective error is known for single products only",
)
"""The rules for coding an adapter with a delta that several parts make (`CombinedDelta`)."""
