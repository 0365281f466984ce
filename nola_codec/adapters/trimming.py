"""Drop the components of an adapter that are zero, so that its ranks are as small as its dialect allows.

A small `.nola` file keeps only the strongest components of each module. The others decode to rows and columns of zeros,
which take room in the adapter and time in a model.
"""

from __future__ import annotations

from nola_codec.adapters.ranks import TrimCount, without_zeros
from nola_codec.adapters.registry import deltas, dialect_of
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter


def trim(adapter: Adapter) -> tuple[Adapter, TrimCount]:
    """Return an adapter with the same deltas and smaller ranks, and what was dropped.

    The parts of deltas that are no plain product (LoHa, LoKr) keep their ranks.

    Raises:
        AdapterError: ``not-expressible``: the adapter has no pairs of factors, or its dialect cannot have other ranks.
    """
    dialect = dialect_of(adapter)
    if not adapter.modules or dialect.holds_whole_weights:
        message = f"{dialect.title} has no pairs of factors whose ranks could be smaller"
        raise AdapterError(message, code="not-expressible", where="trim")
    products = {delta.product.name for delta in deltas(adapter) if delta.product is not None}
    trimmed = [without_zeros(m) if m.name in products else m for m in adapter.modules]
    needed = sum(m.rank for m in trimmed)
    found = sum(m.rank for m in adapter.modules)
    if needed == found:
        return adapter, TrimCount(found, 0, 0)
    result = dialect.with_modules(adapter, trimmed)
    final = sum(m.rank for m in result.modules)
    return result, TrimCount(found, found - final, final - needed)
