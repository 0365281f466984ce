"""Say what to expect of a file by what its header tells: the half of its verdict that speaks of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.adapters import find_dialect
from nola_codec.adapters.dialects.lycoris_keys import PART
from nola_codec.adapters.image_models import describes_image_model
from nola_codec.adapters.registry import UNKNOWN
from nola_codec.encoder.expectation import UNKNOWN_OUTLOOK, Expectation, expect_from, render_lost_energy
from nola_codec.rendering import render_error

if TYPE_CHECKING:
    from nola_codec.api.inspecting import FileFacts


def expect_of(facts: FileFacts) -> Expectation | None:
    """Return what files with the same effective error kept; None if the measured tasks say nothing about the file."""
    return None if find_difference(facts) else expect_from(facts.measured["effective_error"])


def find_outlook(facts: FileFacts) -> str:
    """Return the second half of a file's verdict: what to expect of its task."""
    expected = expect_of(facts)
    if expected is not None:
        return expected.outlook
    if "loss" in facts.measured:
        return f"trained on a task, with a held-out loss of {render_error(facts.measured['loss'])}"
    if facts.is_trained:
        return "trained on what the adapter predicts; no task was measured"
    nmse = facts.measured.get("nmse")
    return UNKNOWN_OUTLOOK if nmse is None or "effective_error" in facts.measured else render_lost_energy(nmse)


def find_difference(facts: FileFacts) -> str:
    """Return why the measured tasks say nothing about a file, as a sentence; empty if they do.

    The header does not tell whether an importance weighed the error; files with one are taken like all others.
    """
    if facts.is_trained:
        how = " on a task" if "loss" in facts.measured else ""
        return f"The file was trained{how}, so the error of its weights tells nothing. eval measures what it keeps."
    if "effective_error" not in facts.measured:
        nmse = facts.measured.get("nmse")
        end = "" if nmse is None else f" Its NMSE is {render_error(nmse)}."
        return f"The file says no effective error, to which the measured tasks are compared.{end}"
    if facts.reference is not None:
        return "The file holds the difference to an earlier version, and no such file was measured on a task."
    dialect = find_dialect(facts.dialect) or UNKNOWN
    names = [tensor.name for tensor in facts.tensors if tensor.record == "lowrank"]
    if not names or dialect.holds_whole_weights:
        return "The file is no LoRA, and only files of LoRAs were measured on tasks."
    if any(PART.fullmatch(tensor.name) for tensor in facts.tensors if tensor.record in ("lowrank", "vector")):
        return (
            "Some deltas are made of several parts (LoHa, LoKr, Tucker cores), and no such file was measured on a task."
        )
    if describes_image_model(dialect, facts.config, names):
        return "The adapter is one of an image model, and the tasks that were measured are of text models."
    return ""
