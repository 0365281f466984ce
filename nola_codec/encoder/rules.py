"""What the dialect of an adapter allows, applied to an adapter and the options of its encode."""

from __future__ import annotations

from dataclasses import replace

from nola_codec.adapters import dialect_of
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter


def check_rules(adapter: Adapter, options: EncodeOptions) -> None:
    """Refuse options that the adapter's dialect does not allow.

    Raises:
        EncodeError: ``option``, with the dialect's reason.
    """
    dialect = dialect_of(adapter)
    rules = dialect.coding_rules(adapter)
    if options.rank is not None and rules.rank_reason:
        raise EncodeError(rules.rank_reason, code="option")
    chosen = (None, *rules.objectives)
    has_weights = options.has_weights or options.tuner is not None
    if rules.objectives_reason and (has_weights or options.objective not in chosen):
        raise EncodeError(rules.objectives_reason, code="option")
    if options.is_factor_form and options.rank is not None:
        dialect.config_with_rank(adapter, options.rank)


def apply_rules(adapter: Adapter, options: EncodeOptions) -> tuple[Adapter, EncodeOptions]:
    """Return the adapter and the options as the rules of its dialect make them.

    Vectors that stay exact without a rate become carried tensors; the dialect's only objective becomes the objective;
    in the factor form, another rank goes into the configuration.

    Raises:
        EncodeError: ``option``, see `check_rules`.
    """
    check_rules(adapter, options)
    dialect = dialect_of(adapter)
    rules = dialect.coding_rules(adapter)
    if rules.exact_note and not options.has_rate:
        notes = (*adapter.notes, rules.exact_note)
        adapter = replace(adapter, raw=dialect.tensors(adapter), vectors=(), notes=notes)
    if options.is_factor_form:
        if options.rank is not None:
            adapter = replace(adapter, config=dialect.config_with_rank(adapter, options.rank))
        return adapter, options
    if len(rules.objectives) == 1:
        options = replace(options, objective=rules.objectives[0])
    return adapter, options
