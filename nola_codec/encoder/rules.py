"""Apply the rules of a dialect to an adapter and to the options of its encode."""

from __future__ import annotations

from dataclasses import replace

from nola_codec.adapters import dialect_of
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter


def check_rules(adapter: Adapter, options: EncodeOptions) -> None:
    """Raise an error if the adapter's dialect does not allow the options.

    Raises:
        EncodeError: ``option``: The dialect does not allow an option; the message gives its reason.
    """
    dialect = dialect_of(adapter)
    rules = dialect.coding_rules(adapter)
    if options.rank is not None and rules.rank_reason:
        raise EncodeError(rules.rank_reason, code="option")
    chosen = (None, *rules.objectives)
    has_weights = options.importance is not None or options.tuner is not None
    if rules.objectives_reason and (has_weights or options.objective not in chosen):
        raise EncodeError(rules.objectives_reason, code="option")
    if options.is_factor_form and options.rank is not None:
        dialect.config_with_rank(adapter, options.rank)


def apply_rules(adapter: Adapter, options: EncodeOptions) -> tuple[Adapter, EncodeOptions]:
    """Return the adapter and the options after the rules of the dialect were applied.

    Without a rate, vectors that the dialect wants exact become carried tensors; with one, the adapter is brought into
    the form that the dialect has for it. If the dialect allows one objective only, this becomes the objective. In the
    factor form, another rank is written into the configuration.

    Raises:
        EncodeError: ``option``, see `check_rules`.
    """
    check_rules(adapter, options)
    dialect = dialect_of(adapter)
    rules = dialect.coding_rules(adapter)
    if rules.exact_note and not options.has_rate:
        notes = (*adapter.notes, rules.exact_note)
        adapter = replace(adapter, raw=dialect.tensors(adapter), vectors=(), notes=notes)
    if rules.reduce is not None and options.has_rate:
        adapter = rules.reduce(adapter)
    if options.is_factor_form:
        if options.rank is not None:
            adapter = replace(adapter, config=dialect.config_with_rank(adapter, options.rank))
        return adapter, options
    return choose_objective(adapter, options)


def choose_objective(adapter: Adapter, options: EncodeOptions) -> tuple[Adapter, EncodeOptions]:
    """Return the adapter, and the options with the only objective that its dialect allows, if there is only one.

    If the user chose no objective, the adapter gets the note that the dialect has for this case.

    Raises:
        EncodeError: ``option``, see `check_rules`.
    """
    check_rules(adapter, options)
    rules = dialect_of(adapter).coding_rules(adapter)
    if len(rules.objectives) > 1:
        return adapter, options
    if rules.objective_note and options.objective is None and options.nmse is None:
        adapter = replace(adapter, notes=(*adapter.notes, rules.objective_note))
    return adapter, replace(options, objective=rules.objectives[0])
