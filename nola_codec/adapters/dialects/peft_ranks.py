"""Fit PEFT's configuration to modules of other ranks and scalings, and the ranks to what a configuration can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects.peft_config import has_alpha_for, with_ranks
from nola_codec.adapters.ranks import raise_rank, with_rank
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import LoraModule


def fit_ranks(
    config: Mapping[str, Any], modules: Sequence[LoraModule], path_of: Callable[[str], str]
) -> tuple[dict[str, Any], list[LoraModule]]:
    """Return a configuration, and the modules with the ranks that it states.

    The scalings stay exact: zero components are added to a module at whose rank no alpha gives its scaling. If that
    would be needed with ``use_rslora`` alone, the flag is cleared.

    Args:
        config: The configuration to adapt; it does not change.
        modules: The modules, with the scalings that the configuration shall state. Those with the same path (experts of
            one parameter, the projections of an attention) get the same rank.
        path_of: Returns the path that the configuration knows a module by.

    Raises:
        AdapterError: ``not-expressible``: no rank fits, or modules with the same path have several scalings.
    """
    largest: dict[str, LoraModule] = {}
    for module in modules:
        path = path_of(module.name)
        if path in largest and largest[path].scaling != module.scaling:
            message = f"the configuration has one scaling for {path}, whose factors have several"
            raise AdapterError(message, code="not-expressible", where=module.name)
        if path not in largest or largest[path].rank < module.rank:
            largest[path] = module
    flag = bool(config.get("use_rslora"))
    if flag and not all(has_alpha_for(m.scaling, m.rank, True) for m in largest.values()):
        flag = False
        config = {**config, "use_rslora": False}
    ranks, scalings = {}, {}
    for path, module in largest.items():
        scaling = module.scaling
        fitted = raise_rank(module, lambda rank, s=scaling: has_alpha_for(s, rank, flag), "peft")  # type: ignore[misc]
        ranks[path], scalings[path] = fitted.rank, scaling
    return with_ranks(config, ranks, scalings), [with_rank(m, ranks[path_of(m.name)]) for m in modules]
