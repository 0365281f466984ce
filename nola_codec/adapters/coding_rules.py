"""How the adapters of a dialect may be coded: what the encoder has to know of a dialect, in neutral terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodingRules:
    """The limits that a dialect sets to the coding of one adapter. Without any, everything is allowed.

    Attributes:
        objectives: Names of the objectives that are allowed, the default first.
        objectives_reason: Message for a user who asks for another objective, a fit or weights; empty if all
            are allowed.
        rank_reason: Message for a user who chooses a rank; empty if one may be chosen.
        exact_note: Note for the report if vectors are carried exactly as long as no rate is asked for; empty if they
            are coded like everything else.
        gains_are_estimates: True if the gain of a vector is an estimate. The energy of a delta is then measured on the
            delta, where its other parts are known.
        unknown_note: Note for the report if estimated gains are all there is, since no delta can be made.
        estimated_note: Note if some deltas are too large to be made; it has the fields {estimated} and {coded}.
        measured_note: Note if all deltas are made and measured.
    """

    objectives: tuple[str, ...] = ("effective", "nmse")
    objectives_reason: str = ""
    rank_reason: str = ""
    exact_note: str = ""
    gains_are_estimates: bool = False
    unknown_note: str = ""
    estimated_note: str = ""
    measured_note: str = ""
